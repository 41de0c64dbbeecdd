"""Read the features of a run window by window, for features that do not fit into memory."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.stage.memory import SHARE_OF_FEATURES

BLOCKS_PER_WINDOW = 64  # at least, so that a window mixes images from everywhere
BLOCK_BYTES = 4 << 20  # read in one piece, so that a disk reads at full speed
MAX_GAP = 16  # unused rows that are read rather than skipped
SLACK = 1.1  # rows of a buffer for each row of a window, because windows differ a little
ROWS_TOGETHER, GRIDS_TOGETHER = 1024, 16  # read at a time


def block_size(window: int, row_bytes: int) -> int:
    """Return how many consecutive images stay together in a block shuffle."""
    return max(1, min(window // BLOCKS_PER_WINDOW, BLOCK_BYTES // row_bytes))


@dataclass(frozen=True)
class Window:
    """The features of some images.

    Attributes:
        rows: (n,) int64, rows of the images in the feature store, increasing.
        features: (n, V, D) or (n, V, P, G) float16; V is 1 if each image has one view in an epoch.
    """

    rows: Tensor
    features: Tensor

    def gather(self, rows: Tensor, views: Tensor) -> Tensor:
        """Return the features of some of the rows (k,), each in its view (k,)."""
        index = torch.searchsorted(self.rows, rows)
        views = torch.zeros_like(views) if self.features.shape[1] == 1 else views
        device = self.features.device
        return self.features[index.to(device), views.to(device)]


# A function that reads window i into a buffer, or into a new one; it returns the buffer as well.
ReadWindow = Callable[[int, Tensor | None], tuple[Window, Tensor]]


class WindowReader:
    """The windows of an epoch in order; the next one is read by a thread.

    Two buffers hold the two windows, so that the memory stays the same in all epochs.
    """

    def __init__(self) -> None:
        self.index = -1
        self.window: Window | None = None
        self.buffer: Tensor | None = None  # of the current window
        self.spares: list[Tensor] = []
        self.pending: tuple[int, Future[tuple[Window, Tensor]]] | None = None

    def get(self, index: int, num_windows: int, read: ReadWindow) -> Window:
        """Return a window, and start to read the one after it.

        Args:
            index: of the window.
            num_windows: of the epoch.
            read: reads a window.

        Raises:
            ShowTellError: a file cannot be read, or is damaged.
        """
        if self.window is not None and index == self.index:
            return self.window
        self._release()
        if self.pending is not None and self.pending[0] != index:
            self.stop()
        if self.pending is None:
            window, self.buffer = read(index, self._take_spare())
        else:
            window, self.buffer = self.pending[1].result()
            self.pending = None
        self.index, self.window = index, window
        if index + 1 < num_windows:
            future = Future[tuple[Window, Tensor]]()
            self.pending = (index + 1, future)
            arguments = (future, read, index + 1, self._take_spare())
            # A daemon: a program that ends does not wait for it.
            threading.Thread(target=_read_into, args=arguments, daemon=True).start()
        return window

    def stop(self) -> None:
        """Forget all windows, after waiting for the thread; the buffers are kept."""
        self._release()
        if self.pending is not None:
            _, buffer = self.pending[1].result()
            self.spares.append(buffer)
            self.pending = None

    def _release(self) -> None:
        """Give up the current window and keep its buffer."""
        if self.buffer is not None:
            self.spares.append(self.buffer)
        self.window = self.buffer = None

    def _take_spare(self) -> Tensor | None:
        return self.spares.pop() if self.spares else None


def _read_into(
    future: Future[tuple[Window, Tensor]], read: ReadWindow, index: int, buffer: Tensor | None
) -> None:
    try:
        future.set_result(read(index, buffer))
    except BaseException as error:  # raised again in the training
        future.set_exception(error)


def take_buffer(buffer: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Return a float16 tensor of at least `shape[0]` rows: the buffer, if it is large enough.

    It is not pinned: torch rounds the size of pinned memory up to a power of two.
    """
    if buffer is None or len(buffer) < shape[0]:
        rows = int(SLACK * shape[0])
        buffer = torch.empty(rows, *shape[1:], dtype=torch.float16)
    return buffer


def has_room(device: torch.device, num_bytes: int) -> bool:
    """Return whether a GPU has room for features; other devices always do."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return num_bytes <= SHARE_OF_FEATURES * free


def read_pooled(store: FeatureStore, rows: Tensor, views: Tensor | None, out: Tensor) -> None:
    """Read pooled features in the order on disk.

    Args:
        store: the features.
        rows: (n,) int64, increasing.
        views: (n,) int64, the view of each to read; default all.
        out: (n, V, D), or (n, 1, D) with `views`; filled.
    """
    num_views = store.num_views if views is not None else out.shape[1]
    for start, stop in split_runs(rows):
        first = int(rows[start])
        span = store.read(first, int(rows[stop - 1]) + 1, num_views)
        index = rows[start:stop] - first
        if views is None:
            out[start:stop] = span[index]
        else:
            out[start:stop, 0] = span[index, views[start:stop]]


def read_grids(store: FeatureStore, rows: Tensor, views: Tensor | None, out: Tensor) -> None:
    """Read grid features in the order on disk: see `read_pooled`; `out` is (n, V, P, G)."""
    for view in range(out.shape[1]):
        chosen = torch.full_like(rows, view) if views is None else views
        for start in range(0, len(rows), GRIDS_TOGETHER):
            part = slice(start, start + GRIDS_TOGETHER)
            out[part, view] = store.gather_grid(rows[part], chosen[part])


def split_runs(rows: Tensor) -> list[tuple[int, int]]:
    """Split increasing rows into runs that are read in one piece: start and stop in `rows`."""
    breaks = (rows.diff() > MAX_GAP).nonzero()[:, 0] + 1
    edges = [0, *breaks.tolist(), len(rows)]
    return [
        (begin, min(begin + ROWS_TOGETHER, stop))
        for start, stop in pairwise(edges)
        for begin in range(start, stop, ROWS_TOGETHER)
    ]
