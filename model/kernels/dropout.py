"""Faster dropout on the CPU, which draws one random byte per value."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 256  # values of a random byte


def dropout(input: Tensor, p: float, training: bool) -> Tensor:
    """Zero values with probability `p` and scale the others, like `F.dropout`.

    On the CPU, `p` is rounded to the nearest 1/256. The remaining values are scaled accordingly, so
    that the expected value stays the same.

    Args:
        input: any shape, any float dtype.
        p: probability that a value is zeroed.
        training: return `input` unchanged if false.
    """
    num_kept = round(LEVELS * (1 - p))
    if input.device.type != "cpu" or not training or num_kept in (0, LEVELS):
        return F.dropout(input, p, training)
    random_words = torch.empty(-(-input.numel() // 8), dtype=torch.int64)
    random_words.random_(-(2**63), None)  # the whole int64 range: 8 random bytes each
    is_kept = random_words.view(torch.uint8)[: input.numel()].view(input.shape) < num_kept
    return input * (is_kept * (LEVELS / num_kept)).to(input.dtype)


class Dropout(nn.Dropout):
    """`nn.Dropout` that calls `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply `dropout` to a tensor of any shape."""
        return dropout(input, self.p, self.training)
