import threading

import pytest
import torch

from showtell.features.store import FeatureStore
from showtell.model.training.windows import (
    ROWS_TOGETHER,
    Window,
    WindowReader,
    block_size,
    read_pooled,
    split_runs,
    take_buffer,
)
from showtell.pipeline.stage.errors import BadShardError
from showtell.pipeline.stage.manifest import Manifest

NUM_WINDOWS = 5


class Reads:
    """Reads windows of growing size, and counts what is done."""

    def __init__(self) -> None:
        self.indices, self.buffers, self.threads = [], [], set()

    def __call__(self, index: int, buffer: torch.Tensor | None) -> tuple[Window, torch.Tensor]:
        buffer = take_buffer(buffer, (20 + index % 2, 1, 3))
        self.indices.append(index)
        if not any(buffer is other for other in self.buffers):
            self.buffers.append(buffer)
        self.threads.add(threading.get_ident())
        rows = torch.arange(20 + index % 2)
        features = buffer[: len(rows)]
        features[:] = index
        return Window(rows, features), buffer


def test_windows_are_read_ahead_once_into_two_buffers() -> None:
    reader, reads = WindowReader(), Reads()
    for _ in range(2):  # epochs
        for index in range(NUM_WINDOWS):
            for _ in range(3):  # batches
                window = reader.get(index, NUM_WINDOWS, reads)
                rows = torch.tensor([19, 0, 5])
                assert (window.gather(rows, torch.tensor([0, 2, 1])) == index).all()
        reader.stop()
    assert reads.indices == [*range(NUM_WINDOWS)] * 2
    assert len(reads.buffers) == 2
    assert len(reads.threads) > 1


def test_epoch_can_start_anywhere() -> None:
    reader, reads = WindowReader(), Reads()
    assert (reader.get(3, NUM_WINDOWS, reads).features == 3).all()
    assert (reader.get(1, NUM_WINDOWS, reads).features == 1).all()
    reader.stop()
    assert reads.indices == [3, 4, 1, 2]


def test_errors_of_the_thread_are_raised_in_the_training() -> None:
    def read(index: int, buffer: torch.Tensor | None) -> tuple[Window, torch.Tensor]:
        if index == 1:
            raise BadShardError("part-00001.h5 is damaged")
        return Reads()(index, buffer)

    reader = WindowReader()
    reader.get(0, NUM_WINDOWS, read)
    with pytest.raises(BadShardError, match="part-00001"):
        reader.get(1, NUM_WINDOWS, read)


def test_runs_skip_wide_gaps_and_are_short() -> None:
    rows = torch.cat([torch.arange(0, 20, 2), torch.arange(500, 503 + ROWS_TOGETHER)])
    runs = split_runs(rows)
    middle = 10 + ROWS_TOGETHER
    assert runs == [(0, 10), (10, middle), (middle, middle + 3)]


@pytest.mark.parametrize("has_views", [False, True])
def test_pooled_rows_are_read_in_all_views_or_one(tmp_path, has_views: bool) -> None:
    values = torch.arange(3000.0).half().view(500, 3, 2)
    manifest = Manifest(stage="features", version=1, config={}, inputs={}, outputs={})
    store = FeatureStore(torch.arange(500), values, {}, manifest, tmp_path)
    rows = torch.tensor([1, 2, 7, 100, 499])
    views = torch.tensor([2, 0, 1, 1, 2])
    out = torch.empty(5, 1 if has_views else 3, 2).half()
    read_pooled(store, rows, views if has_views else None, out)
    assert torch.equal(out, values[rows, views][:, None] if has_views else values[rows])


def test_blocks_are_smaller_than_windows_and_large_on_disk() -> None:
    assert block_size(64 * 100, 4096) == 100
    assert block_size(10**6, 4096) == 1024  # 4 MiB
    assert block_size(10, 10**9) == 1
