"""A faster torch.topk for a few values of many on the CPU."""

import torch
from torch import Tensor

ROWS = 16


def topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return `values.topk(count, 1)`; among equal values it may choose others.

    torch searches the values one by one. Here they are laid out in 16 rows, and one vectorised pass
    finds the largest value of each column: only the best columns can contain the best values.

    Args:
        values: (N, W), without NaN.
        count: at most W.

    Returns:
        The values and their indices, (N, count) each, best first.
    """
    width = values.shape[1] // ROWS
    if values.device.type != "cpu" or width < 8 * count:  # a GPU's search is parallel
        best = values.topk(count, 1)
        return best.values, best.indices
    main, rest = values[:, : ROWS * width].unflatten(1, (ROWS, width)), values[:, ROWS * width :]
    columns = main.amax(1).topk(count, 1).indices  # (N, count)
    candidates = main.gather(2, columns[:, None].expand(-1, ROWS, -1)).flatten(1)
    best = torch.cat([candidates, rest], 1).topk(count, 1)
    index = best.indices  # into the candidates, then the rest
    index_in_main = index // count * width + columns.gather(1, index % count)
    return best.values, index_in_main.where(index < ROWS * count, index + ROWS * (width - count))
