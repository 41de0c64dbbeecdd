"""What a machine can do at all, measured where and when a stage is."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ..model.kernels.padding import empty_rows

# (rows, inner, columns) of a matrix product.
Shape = tuple[int, int, int]

BLOCK = 1 << 20  # bytes of one read


def repeat_for(seconds: float, work: Callable[[], None]) -> float:
    """Seconds that one call takes, after one to warm up: the mean of calls for so long."""
    work()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        count += 1
    return (time.perf_counter() - started) / count


def time_products(
    shapes: Iterable[Shape], device: torch.device, dtype: torch.dtype, seconds: float = 2.0
) -> float:
    """Seconds that these matrix products take, one after the other, in the precision of the stage.

    Into aligned rows, which is what makes them fast.
    """
    operands = []
    for rows, inner, columns in shapes:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(inner, columns, device=device).to(dtype)
        operands.append((left, right, empty_rows(left, rows, columns)))

    def work() -> None:
        for left, right, result in operands:
            torch.mm(left, right, out=result)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return repeat_for(seconds, work)


def count_flops(shapes: Iterable[Shape]) -> int:
    """Floating-point operations of matrix products: two for each multiplication."""
    return sum(2 * rows * inner * columns for rows, inner, columns in shapes)


def time_reading(paths: Iterable[Path]) -> float:
    """Seconds that a plain sequential read of these files takes, after they were read once."""

    def work() -> None:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.read(BLOCK):
                    pass

    paths = list(paths)
    return repeat_for(0.0 if not paths else 0.5, work) if paths else 0.0
