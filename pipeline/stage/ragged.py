"""Ragged arrays: rows of different lengths, stored as one flat array and the offsets of rows.

Row i is values[offsets[i] : offsets[i + 1]].
"""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


def to_offsets(lengths: npt.ArrayLike) -> Ints:
    """Return the offsets of n rows from their lengths: (n,) → (n + 1,) int64."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ranges(first: Ints, counts: Ints) -> Ints:
    """Return n integer ranges, concatenated: (sum of counts,) int64.

    Args:
        first: (n,) int64, the first value of each range.
        counts: (n,) int64, the length of each range.
    """
    offsets = to_offsets(counts)
    return np.repeat(first - offsets[:-1], counts) + np.arange(offsets[-1])


def select_rows(
    values: Int32Array, offsets: Ints, mask: npt.NDArray[np.bool_]
) -> tuple[Int32Array, Ints]:
    """Return the values and the offsets of the rows that an (n,) mask selects."""
    lengths = np.diff(offsets)
    return values[np.repeat(mask, lengths)], to_offsets(lengths[mask])
