"""Round and pad row counts so that matrix products come in few, aligned sizes.

Captions end one after another, so the number of active rows keeps changing. oneDNN compiles and
stores a separate bfloat16 kernel for every row count. Computing a few extra rows is cheaper.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNMENT = 16


def round_up(size: int) -> int:
    """Return the next multiple of 16."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def round_rows(count: int) -> int:
    """Round a row count up to one of few: multiples of 16, from 256 of 32, from 512 of 64, …."""
    step = max(ALIGNMENT, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


def pad_rows(values: Tensor, num_rows: int, fill: float = 0.0) -> Tensor:
    """Append rows of `fill`: (n, …) → (num_rows, …)."""
    missing = num_rows - len(values)
    if not missing:
        return values
    return F.pad(values, [0, 0] * (values.ndim - 1) + [0, missing], value=fill)


def empty_rows(like: Tensor, num_rows: int, width: int) -> Tensor:
    """Return an uninitialised (num_rows, width) whose rows start at aligned addresses.

    A vocabulary size is rarely a multiple of 16. Without aligned rows MKL writes such a matrix more
    slowly, and cuBLAS falls back to slower kernels.

    Args:
        like: gives the device and the dtype.
        num_rows: rows of the result.
        width: columns of the result, a view of wider rows.
    """
    return like.new_empty(num_rows, round_up(width))[:, :width]


def unfinished_rows(is_finished: Tensor, multiple: int) -> Tensor:
    """Choose the rows to keep: every unfinished one, filled up to a multiple with finished ones.

    Args:
        is_finished: (n,) bool.
        multiple: the number of rows kept is a multiple of it, unless that exceeds n.

    Returns:
        Indices of the kept rows, increasing int64; all n where no multiple is smaller.
    """
    num_unfinished = len(is_finished) - int(is_finished.sum())
    num_rows = -(-num_unfinished // multiple) * multiple
    if num_rows >= len(is_finished):
        return torch.arange(len(is_finished), device=is_finished.device)
    return is_finished.byte().argsort(stable=True)[:num_rows].sort().values
