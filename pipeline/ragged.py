"""Rows of different lengths in one array: row i is values[offsets[i] : offsets[i + 1]]."""

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def to_offsets(lengths: npt.ArrayLike) -> Ints:
    """Where each row begins, and the last ends: (n,) lengths → (n + 1,) int64."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ranges(first: Ints, counts: Ints) -> Ints:
    """The numbers first[i], first[i] + 1, …, counts[i] of them, for each i in turn."""
    offsets = to_offsets(counts)
    return np.repeat(first - offsets[:-1], counts) + np.arange(offsets[-1])


def take_rows(
    values: npt.NDArray[Any], offsets: Ints, index: npt.NDArray[np.integer[Any]]
) -> tuple[npt.NDArray[Any], Ints]:
    """Pick rows, (n,) of them in any order, some perhaps several times.

    Returns:
        The values of the rows, and (n + 1,) int64 where each row begins among them.
    """
    lengths = np.diff(offsets)[index]
    return values[ranges(offsets[index], lengths)], to_offsets(lengths)
