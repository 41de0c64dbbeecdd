"""Rows of different lengths in one array: row i is values[offsets[i] : offsets[i + 1]]."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


def to_offsets(lengths: npt.ArrayLike) -> Ints:
    """Where each row begins, and the last ends: (n,) lengths → (n + 1,) int64."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ranges(first: Ints, counts: Ints) -> Ints:
    """The numbers first[i], first[i] + 1, …, counts[i] of them, for each i in turn."""
    offsets = to_offsets(counts)
    return np.repeat(first - offsets[:-1], counts) + np.arange(offsets[-1])


def select_rows(
    values: Int32Array, offsets: Ints, wanted: npt.NDArray[np.bool_]
) -> tuple[Int32Array, Ints]:
    """The rows of a (n,) mask: their values, and where each of them begins."""
    lengths = np.diff(offsets)
    return values[np.repeat(wanted, lengths)], to_offsets(lengths[wanted])
