"""torch.nn.GRU, LSTM and RNN over captions: the same results, faster on the CPU.

Letters in shapes: B captions, T tokens, E input width, H hidden, L layers, R rows (beams or draws).
The hidden state is a tuple for every cell: (h,) of a GRU or RNN, (h, c) of an LSTM.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .dropout import dropout
from .linear import linear
from .recurrence_backward import CELL_STEPS, run_layer

Hidden = tuple[Tensor, ...]


def call_cell(cell: nn.RNNBase, inputs: Any, hidden: Hidden | None = None) -> tuple[Any, Hidden]:
    """Return `cell(inputs, hidden)`, in float32 on a GPU even under autocast.

    Under autocast cuDNN would run the cell in float16. The gradients of a mean over thousands of
    tokens are too small for float16.

    Args:
        cell: any torch recurrent layer with `batch_first`.
        inputs: (B, T, E) or a PackedSequence.
        hidden: (L, B, H) each; None starts from zeros.

    Returns:
        The outputs, as `cell` returns them, and the hidden state at the end.
    """
    weight: Tensor = cell.all_weights[0][0]
    if weight.is_cuda:
        inputs = inputs.to(weight.dtype)
        hidden = hidden and tuple(part.to(weight.dtype) for part in hidden)
    has_one_tensor = cell.mode != "LSTM"
    with torch.autocast("cuda", enabled=False):
        outputs, end = cell(inputs, hidden[0] if hidden and has_one_tensor else hidden)
    return outputs, (end,) if has_one_tensor else end


def read_captions(
    cell: nn.RNNBase, inputs: Tensor, hidden: Hidden | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Return the outputs of `cell` over captions of different lengths.

    Training on the CPU uses the backward pass of `recurrence_backward`.

    Args:
        cell: unidirectional nn.GRU, nn.LSTM or nn.RNN (tanh) with `batch_first`.
        inputs: (B, T, E).
        hidden: (L, B, H) each; None starts from zeros.
        lengths: (B,) int64 on the CPU, descending; None if all captions have T tokens.

    Returns:
        (B, T, H), zeros after the end of a caption.
    """
    if lengths is None:
        outputs: Tensor = call_cell(cell, inputs, hidden)[0]
        return outputs
    packed = pack_padded_sequence(inputs, lengths, batch_first=True)
    if inputs.device.type == "cpu" and torch.is_grad_enabled():
        for layer in range(cell.num_layers):
            if layer:
                packed = packed._replace(data=dropout(packed.data, cell.dropout, cell.training))
            start = None if hidden is None else tuple(part[layer] for part in hidden)
            packed = run_layer(cell, layer, packed, start)
    else:
        packed, _ = call_cell(cell, packed, hidden)
    return pad_packed_sequence(packed, batch_first=True, total_length=inputs.shape[1])[0]


def read_token(
    cell: nn.RNNBase,
    embedding: nn.Embedding,
    token_ids: Tensor,
    hidden: Hidden,
    hidden_index: Tensor | None = None,
) -> tuple[Tensor, Hidden]:
    """Advance every row by one token.

    Equal to `cell(embedding(token_ids)[:, None], hidden[:, hidden_index])`. When decoding on the
    CPU, each distinct token and each distinct hidden row is multiplied only once: many beams read
    the same token, or continue the same beam.

    Args:
        cell: as for `read_captions`.
        embedding: of V words to E.
        token_ids: (R,) int64.
        hidden: (L, S, H) each.
        hidden_index: (R,) int64, which of the S rows each row continues; None if S = R, in order.

    Returns:
        outputs: (R, H).
        hidden: (L, R, H) each, the next hidden state.
    """
    if torch.is_grad_enabled() or cell.training or token_ids.device.type != "cpu":
        if hidden_index is not None:
            hidden = tuple(part.index_select(1, hidden_index) for part in hidden)
        outputs, hidden = call_cell(cell, embedding(token_ids)[:, None], hidden)
        return outputs[:, 0], hidden
    tokens, token_index = token_ids.unique(return_inverse=True)
    return read_shared_rows(cell, embedding(tokens), token_index, hidden, hidden_index)


@torch.no_grad()
def read_shared_rows(
    cell: nn.RNNBase,
    inputs: Tensor,
    input_index: Tensor,
    hidden: Hidden,
    hidden_index: Tensor | None = None,
) -> tuple[Tensor, Hidden]:
    """Advance rows that share inputs and hidden states by one step, without gradients or dropout.

    Args:
        cell: as for `read_captions`.
        inputs: (U, E), the distinct inputs.
        input_index: (R,) int64, which input each row reads.
        hidden: (L, S, H) each, the distinct hidden states.
        hidden_index: (R,) int64, which hidden state each row continues; None if S = R, in order.

    Returns:
        outputs: (R, H), in the dtype of the matrix products.
        hidden: (L, R, H) each.
    """
    next_hidden: list[Hidden] = []
    for layer, (input_weight, hidden_weight, input_bias, hidden_bias) in enumerate(
        cell.all_weights
    ):
        input_gates = linear(inputs, input_weight, input_bias)
        if layer == 0:
            input_gates = input_gates.index_select(0, input_index)
        before = tuple(part[layer].to(input_gates.dtype) for part in hidden)
        hidden_gates = linear(before[0], hidden_weight, hidden_bias)
        if hidden_index is not None:
            hidden_gates = hidden_gates.index_select(0, hidden_index)
            before = tuple(part.index_select(0, hidden_index) for part in before)
        after = CELL_STEPS[type(cell)](input_gates, hidden_gates, before).hidden
        next_hidden.append(after)
        inputs = after[0]
    return inputs, tuple(torch.stack(parts) for parts in zip(*next_hidden, strict=True))


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split (R,) row numbers into the distinct ones and an index into them.

    Returns:
        rows: (S,) int64, each row number once.
        index: (R,) int64 with `rows[index]` the argument. None on a GPU, where the rows come back
            as they are: it would have to wait for S.
    """
    if rows.device.type != "cpu":
        return rows, None
    distinct, index = rows.unique(return_inverse=True)
    return distinct, index
