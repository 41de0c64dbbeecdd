"""Backpropagation through time for torch.nn.GRU, LSTM and RNN, faster than autograd on the CPU.

At every time step, autograd allocates a gradient as large as the whole batch, mostly zeros, and
adds to the gradient of the recurrent matrix. Here one loop runs back through the steps, and one
matrix product computes the gradient of the recurrent matrix.

Letters in shapes: B captions, W tokens of all captions, E input width, H hidden, G gates of H each,
n captions still active at a step. Tokens are ordered as in a PackedSequence: the first token of all
captions, then the second of those that have two, and so on. Under autocast, matrix products use its
dtype; values that accumulate over the steps stay in float32.

Source: backpropagation through time, Werbos 1990; the cells as documented in torch.nn.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

from .padding import pad_rows, round_rows

# One layer's hidden state of n captions: (h,) of a GRU or RNN, (h, c) of an LSTM; (n, H) each.
LayerHidden = tuple[Tensor, ...]


def run_layer(
    cell: nn.RNNBase, layer: int, inputs: PackedSequence, hidden: LayerHidden | None = None
) -> PackedSequence:
    """Return the outputs of one layer of a cell over packed captions.

    Args:
        cell: nn.GRU, nn.LSTM or nn.RNN (tanh), unidirectional.
        layer: index of the layer.
        inputs: (W, E), the longest caption first.
        hidden: (B, H) each, the state before the first tokens; None starts from zeros.

    Returns:
        (W, H) outputs, in the dtype of the weights.
    """
    input_weight, weight, input_bias, bias = cell.all_weights[layer]
    if hidden is None:
        shape = (int(inputs.batch_sizes[0]), cell.hidden_size)
        hidden = (weight.new_zeros(shape),) * (2 if cell.mode == "LSTM" else 1)
    hidden = tuple(part.to(weight.dtype) for part in hidden)
    data = pad_rows(inputs.data, round_rows(len(inputs.data)))
    input_gates = F.linear(data, input_weight, input_bias)
    outputs: Tensor = _RunLayer.apply(
        CELL_STEPS[type(cell)],
        inputs.batch_sizes.tolist(),
        input_gates,
        weight.to(input_gates.dtype),
        bias.to(input_gates.dtype),
        *hidden,
    )
    return inputs._replace(data=outputs)


class GruStep:
    """One time step of a GRU; keeps the tensors that its backward pass needs.

    Attributes:
        hidden: the hidden state after the step.
    """

    def __init__(self, input_gates: Tensor, hidden_gates: Tensor, hidden: LayerHidden) -> None:
        """Compute the step.

        Args:
            input_gates: (n, G · H), input times input weights, plus bias.
            hidden_gates: (n, G · H), hidden state times recurrent weights, plus bias.
            hidden: the hidden state before the step.
        """
        (previous,) = hidden
        size = previous.shape[1]
        gates = (input_gates[:, : 2 * size] + hidden_gates[:, : 2 * size]).sigmoid_()
        self.reset, self.update = gates.split(size, 1)
        self.hidden_candidate = hidden_gates[:, 2 * size :]
        self.candidate = torch.addcmul(
            input_gates[:, 2 * size :], self.reset, self.hidden_candidate
        ).tanh_()
        self.previous = previous
        self.hidden: LayerHidden = (torch.lerp(self.candidate, previous, self.update),)

    def backward(
        self, grads: LayerHidden, input_gates_grad: Tensor, hidden_gates_grad: Tensor
    ) -> LayerHidden:
        """Backpropagate through the step.

        Args:
            grads: gradients of `hidden`.
            input_gates_grad: (n, G · H), overwritten with the gradient of `input_gates`.
            hidden_gates_grad: (n, G · H), overwritten with the gradient of `hidden_gates`.

        Returns:
            Gradients of the hidden state before the step, except those that flow through
            `hidden_gates`.
        """
        (grad,) = grads
        size = grad.shape[1]
        reset_grad, update_grad, candidate_grad = input_gates_grad.split(size, 1)
        kept = grad * self.update
        torch.mul(grad - kept, 1 - self.candidate.square(), out=candidate_grad)
        torch.mul(kept * (1 - self.update), self.previous - self.candidate, out=update_grad)
        through_reset = candidate_grad * self.reset
        torch.mul(through_reset * (1 - self.reset), self.hidden_candidate, out=reset_grad)
        hidden_gates_grad[:, : 2 * size] = input_gates_grad[:, : 2 * size]
        hidden_gates_grad[:, 2 * size :] = through_reset
        return (kept,)


class LstmStep:
    """One time step of an LSTM; see `GruStep`."""

    def __init__(self, input_gates: Tensor, hidden_gates: Tensor, hidden: LayerHidden) -> None:
        _, self.previous_cell_state = hidden
        size = self.previous_cell_state.shape[1]
        gates = input_gates + hidden_gates
        self.input, self.forget, self.candidate, self.output = gates.split(size, 1)
        gates[:, : 2 * size].sigmoid_()
        self.candidate.tanh_()
        self.output.sigmoid_()
        cell_state = torch.addcmul(
            self.input * self.candidate, self.forget, self.previous_cell_state
        )
        self.tanh_cell_state = cell_state.tanh()
        self.hidden: LayerHidden = (self.output * self.tanh_cell_state, cell_state)

    def backward(
        self, grads: LayerHidden, input_gates_grad: Tensor, hidden_gates_grad: Tensor
    ) -> LayerHidden:
        """See `GruStep.backward`."""
        grad, cell_state_grad = grads
        size = grad.shape[1]
        input_grad, forget_grad, candidate_grad, output_grad = input_gates_grad.split(size, 1)
        through_output = grad * self.output
        tanh_grad = 1 - self.tanh_cell_state.square()
        cell_state_grad = torch.addcmul(cell_state_grad, through_output, tanh_grad)
        torch.mul(through_output * (1 - self.output), self.tanh_cell_state, out=output_grad)
        through_input, kept = cell_state_grad * self.input, cell_state_grad * self.forget
        torch.mul(through_input, 1 - self.candidate.square(), out=candidate_grad)
        torch.mul(through_input * (1 - self.input), self.candidate, out=input_grad)
        torch.mul(kept * (1 - self.forget), self.previous_cell_state, out=forget_grad)
        hidden_gates_grad.copy_(input_gates_grad)
        return torch.zeros_like(grad), kept


class RnnStep:
    """One time step of a plain tanh RNN; see `GruStep`."""

    def __init__(self, input_gates: Tensor, hidden_gates: Tensor, hidden: LayerHidden) -> None:
        self.hidden: LayerHidden = ((input_gates + hidden_gates).tanh_(),)

    def backward(
        self, grads: LayerHidden, input_gates_grad: Tensor, hidden_gates_grad: Tensor
    ) -> LayerHidden:
        """See `GruStep.backward`."""
        (grad,), (output,) = grads, self.hidden
        torch.mul(grad, 1 - output.square(), out=input_gates_grad)
        hidden_gates_grad.copy_(input_gates_grad)
        return (torch.zeros_like(grad),)


CellStep = GruStep | LstmStep | RnnStep
CELL_STEPS: dict[type[nn.RNNBase], type[CellStep]] = {
    nn.GRU: GruStep,
    nn.LSTM: LstmStep,
    nn.RNN: RnnStep,
}


class _RunLayer(torch.autograd.Function):
    """All time steps of a layer; can be differentiated only once.

    The matrix product of each step includes a few extra rows, so that products come in few sizes
    (see `padding`). The extra rows are zeros in the forward pass and rows of later steps in the
    backward pass. Their results are dropped.
    """

    @staticmethod
    def forward(
        ctx: Any,
        step_type: type[CellStep],
        batch_sizes: Sequence[int],
        input_gates: Tensor,
        weight: Tensor,
        bias: Tensor,
        *hidden: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.num_rows = len(input_gates)
        ctx.spans = [*pairwise(accumulate(batch_sizes, initial=0))]
        ctx.padded_ends = [first + round_rows(end - first) for first, end in ctx.spans]
        ctx.steps = []
        # The padded rows of the last steps extend beyond the last token.
        ctx.previous = input_gates.new_zeros(max(ctx.num_rows, *ctx.padded_ends), len(weight[0]))
        for (first, end), padded_end in zip(ctx.spans, ctx.padded_ends, strict=True):
            hidden = tuple(part[: end - first] for part in hidden)
            ctx.previous[first:end] = hidden[0]
            hidden_gates = torch.addmm(bias, ctx.previous[first:padded_end], weight.T)
            hidden_gates = hidden_gates[: end - first]
            dtype = hidden[0].dtype  # float32, because errors accumulate over the steps
            step = step_type(input_gates[first:end].to(dtype), hidden_gates.to(dtype), hidden)
            ctx.steps.append(step)
            hidden = step.hidden
        return torch.cat([step.hidden[0] for step in ctx.steps])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs_grad: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        shape = (len(ctx.previous), len(weight))
        input_gates_grad, hidden_gates_grad = (ctx.previous.new_empty(shape) for _ in range(2))
        input_gates_grad[len(outputs_grad) :] = hidden_gates_grad[len(outputs_grad) :] = 0
        later_grads: LayerHidden = tuple(part[:0] for part in ctx.steps[-1].hidden)
        spans = zip(reversed(ctx.spans), reversed(ctx.padded_ends), strict=True)
        for (first, end), padded_end in spans:
            # Captions that end at this step have no gradient from later steps.
            num_ended = end - first - len(later_grads[0])
            grads = [F.pad(part, (0, 0, 0, num_ended)) for part in later_grads]
            grads[0] += outputs_grad[first:end]
            # pop() frees the tensors of a step as soon as they have been used.
            hidden_grad, *rest = ctx.steps.pop().backward(
                tuple(grads), input_gates_grad[first:end], hidden_gates_grad[first:end]
            )
            # An initial state of zeros needs no gradient.
            if first or any(ctx.needs_input_grad[5:]):
                product = torch.mm(hidden_gates_grad[first:padded_end], weight)
                hidden_grad = hidden_grad + product[: end - first]
            later_grads = (hidden_grad, *rest)
        rows = slice(ctx.num_rows)
        weight_grad = hidden_gates_grad[rows].T @ ctx.previous[rows]
        bias_grad = hidden_gates_grad.sum(0)
        return None, None, input_gates_grad[rows], weight_grad, bias_grad, *later_grads
