"""A faster F.linear for decoding on the CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .padding import ALIGNMENT, empty_rows, pad_rows, round_rows


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `F.linear(inputs, weight, bias)`.

    Without gradients on the CPU, (R, I) inputs take a faster path: the rows of the result are
    aligned in memory, or under autocast, R is padded to one of few sizes (see `padding`).

    Args:
        inputs: (…, I).
        weight: (O, I).
        bias: (O,).
    """
    if torch.is_grad_enabled() or inputs.device.type != "cpu" or inputs.ndim != 2:
        return F.linear(inputs, weight, bias)
    if not torch.is_autocast_enabled("cpu"):
        return torch.addmm(bias, inputs, weight.T, out=empty_rows(inputs, len(inputs), len(weight)))
    # Fewer rows than ALIGNMENT are not padded: padding could double the work.
    num_rows = len(inputs) if len(inputs) < ALIGNMENT else round_rows(len(inputs))
    return F.linear(pad_rows(inputs, num_rows), weight, bias)[: len(inputs)]
