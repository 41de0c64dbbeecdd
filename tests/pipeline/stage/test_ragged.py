"""Compares ragged arrays with lists of lists."""

from itertools import pairwise

import numpy as np

from showtell.pipeline.stage.ragged import ranges, select_rows, to_offsets

ROWS = [[5, 6], [], [7], [], [1, 2, 3]]
VALUES, OFFSETS = (
    np.concatenate([np.array(row, np.int32) for row in ROWS]),
    to_offsets([2, 0, 1, 0, 3]),
)


def test_offsets_delimit_the_rows() -> None:
    assert [VALUES[a:b].tolist() for a, b in pairwise(OFFSETS)] == ROWS
    assert to_offsets([]).tolist() == [0] and OFFSETS.dtype == np.int64


def test_ranges_are_concatenated() -> None:
    assert ranges(np.array([7, 3, 0]), np.array([2, 0, 3])).tolist() == [7, 8, 0, 1, 2]
    assert ranges(np.array([], np.int64), np.array([], np.int64)).tolist() == []


def test_select_rows_matches_python_lists() -> None:
    for wanted in ([1, 0, 1, 1, 0], [0, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]):
        values, offsets = select_rows(VALUES, OFFSETS, np.array(wanted, bool))
        expected = [row for row, kept in zip(ROWS, wanted, strict=True) if kept]
        assert [values[a:b].tolist() for a, b in pairwise(offsets)] == expected
