"""Speed of the hardware: matrix products and sequential reads."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ..model.kernels.padding import empty_rows

# (rows, inner, columns) of a matrix product.
Shape = tuple[int, int, int]

READ_SIZE = 1 << 20  # bytes per read


def mean_seconds(work: Callable[[], None], seconds: float) -> float:
    """Return the mean time of a call in seconds, repeating it for `seconds` after one warm-up."""
    work()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        count += 1
    return (time.perf_counter() - started) / count


def time_products(
    shapes: Iterable[Shape], device: torch.device, dtype: torch.dtype, seconds: float = 2.0
) -> float:
    """Return the time of these matrix products, one after the other, in seconds.

    Args:
        shapes: of the products; their results go into aligned rows, which are the fastest.
        device: where to compute.
        dtype: of the operands.
        seconds: how long to repeat all products.
    """
    operands = []
    for rows, inner, columns in shapes:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(inner, columns, device=device).to(dtype)
        operands.append((left, right, empty_rows(left, rows, columns)))

    def multiply_all() -> None:
        for left, right, result in operands:
            torch.mm(left, right, out=result)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return mean_seconds(multiply_all, seconds)


def count_flops(shapes: Iterable[Shape]) -> int:
    """Return the number of floating-point operations: one multiplication and one addition each."""
    return sum(2 * rows * inner * columns for rows, inner, columns in shapes)


def time_reading(paths: Iterable[Path]) -> float:
    """Return the time of reading these files in sequence, in seconds, once they are cached."""
    paths = list(paths)

    def read_all() -> None:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.read(READ_SIZE):
                    pass

    return mean_seconds(read_all, seconds=0.5) if paths else 0.0
