"""Show, Attend and Tell (Xu et al. 2015): a context vector enters the cell with each word."""

import torch
from torch import Tensor, nn

from ..kernels.recurrence import Hidden, call_cell
from .attention import AttentionDecoder
from .config import DecoderConfig
from .state import DecoderState


class SoftAttention(AttentionDecoder):
    """Attends with the previous hidden state, then reads the word and the gated context.

    The context is added to the word vector instead of concatenated: the same function class for
    less work. The gate β of the paper has one value for each number of the context.

    Source: Xu et al. 2015, arXiv:1502.03044.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.context_gate = nn.Linear(config.hidden_size, config.embed_size)

    def advance(self, words: Tensor, state: DecoderState) -> tuple[Tensor, Hidden, Tensor]:
        """See `AttentionDecoder.advance`."""
        previous = state.hidden[0][-1]  # (R, H), of the top layer
        keys, values = state.memory
        context, weights = self.attention(
            state.group_rows(previous), (keys, values)
        )  # (N, K, E or P)
        context = context.flatten(0, 1)
        inputs = words + torch.sigmoid(self.context_gate(previous)) * context
        outputs, hidden = call_cell(self.cell, inputs[:, None], state.hidden)
        return outputs[:, 0] + self.context_proj(context), hidden, weights.flatten(0, 1)
