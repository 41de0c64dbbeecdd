"""A faster F.linear for decoding on the CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .padding import ALIGNMENT, empty_rows, pad_rows, round_rows


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `F.linear(inputs, weight, bias)`.

    Without gradients on the CPU, an (R, I) input is multiplied in aligned or few sizes.

    Args:
        inputs: (…, I).
        weight: (O, I).
        bias: (O,).
    """
    if torch.is_grad_enabled() or inputs.device.type != "cpu" or inputs.ndim != 2:
        return F.linear(inputs, weight, bias)
    if not torch.is_autocast_enabled("cpu"):
        return torch.addmm(bias, inputs, weight.T, out=empty_rows(inputs, len(inputs), len(weight)))
    # Below 16 rows there are few sizes anyway, and padding would double the work.
    num_rows = len(inputs) if len(inputs) < ALIGNMENT else round_rows(len(inputs))
    return F.linear(pad_rows(inputs, num_rows), weight, bias)[: len(inputs)]
