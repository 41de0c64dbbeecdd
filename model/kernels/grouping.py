"""Rearrange the non-padding tokens of a batch so that each image's tokens stand side by side."""

import torch
from torch import Tensor

GROUP_MULTIPLE = 4  # group sizes are rounded up to it: few sizes of products, see `padding`


def nonpad_positions(shape: torch.Size, lengths: Tensor | None) -> Tensor:
    """Return the flat indices of non-padding tokens in a (B, T) batch: (R,) int64 on the CPU.

    Args:
        shape: (B, T).
        lengths: (B,) int64 on the CPU; None if nothing is padding.
    """
    if lengths is None:
        return torch.arange(shape.numel())
    return (torch.arange(shape[1]) < lengths[:, None]).flatten().nonzero()[:, 0]


def group_slots(
    groups: Tensor, num_groups: int, multiple: int = GROUP_MULTIPLE
) -> tuple[Tensor, torch.Size]:
    """Give each row a slot in a padded (N, Q) array with one line per group.

    Args:
        groups: (R,) int64, the group of each row.
        num_groups: N.
        multiple: the width Q is rounded up to a multiple of it.

    Returns:
        slots: (R,) int64, indices into the flattened (N, Q).
        size: (N, Q), Q at least the largest group. A GPU has to wait for it.
    """
    counts = groups.bincount(minlength=num_groups)
    order = groups.argsort(stable=True)
    width = -(-int(counts.max()) // multiple) * multiple
    rows_before = (counts.cumsum(0) - counts)[groups]  # of all groups before this one
    slots = torch.empty_like(groups)
    slots[order] = torch.arange(len(groups), device=groups.device)
    return groups * width + slots - rows_before, torch.Size((num_groups, width))


def scatter_rows(rows: Tensor, slots: Tensor, size: torch.Size) -> Tensor:
    """Put (R, X) rows into their slots: (N, Q, X), zeros where a slot is free."""
    flat = rows.new_zeros(size.numel(), rows.shape[1]).index_copy(0, slots, rows)
    return flat.view(*size, -1)
