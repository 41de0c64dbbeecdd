"""Parallel image loading: threads or processes that turn file names into pixels, ahead of use.

This file does not import torch, which would take each process seconds to load.
"""

import math
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...pipeline.images.image_files import ImageFiles
from ...pipeline.stage.errors import ShowTellError
from ...pipeline.stage.signals import signals_blocked
from .broken_images import UnreadableImageError, reading_reason
from .decode import decode_opened, open_image
from .limits import MAX_PIXELS, DecodingBudget
from .transform import Transform
from .views import VIEWS

# Number of batches decoded ahead of the network; more would only cost memory.
LOOK_AHEAD = 4
# Contents that wait for a worker, all together; one larger than this waits alone.
MAX_WAITING_BYTES = 128 << 20

T = TypeVar("T")

# What a worker loads: the name of a file, its content, or the reason why that could not be read.
Item = str | bytes | OSError
Pixels = npt.NDArray[np.uint8]  # (…, V, H, W, 3)
# The pixels of n images, and for each the reason why it is unreadable, or None if it is readable.
# The pixels of an unreadable image are undefined.
LoadedImages = tuple[Pixels, list[str | None]]


@dataclass(frozen=True)
class ImageLoader:
    """Read, decode and transform image files.

    Attributes:
        files: where the images are.
        transform: the preprocessing of the encoder.
        num_views: V, the number of views computed for each image.
        max_pixels: images with more pixels count as unreadable.
        budget: shared by all workers.
    """

    files: ImageFiles
    transform: Transform
    num_views: int = 1
    max_pixels: int = MAX_PIXELS
    budget: DecodingBudget = field(default_factory=DecodingBudget.for_threads)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(V, H, W, 3), the shape of one image's pixels."""
        size = self.transform.crop_size
        return self.num_views, size, size, 3

    def allocate(self, count: int) -> Pixels:
        """Return an uninitialized array for `count` images, (count, V, H, W, 3)."""
        return np.empty((count, *self.shape), np.uint8)

    def load(self, item: Item, pixels: Pixels) -> str | None:
        """Load one image into `pixels`, (V, H, W, 3).

        Returns:
            None, or the reason why the image is unreadable; `pixels` is undefined then.
        """
        try:
            if isinstance(item, OSError):
                return reading_reason(item)
            content = self.files.read(item) if isinstance(item, str) else item
            image, num_bytes = open_image(content, self.transform, self.max_pixels)
            with self.budget.reserve(num_bytes):
                image = decode_opened(image)
                for row, view in zip(pixels, VIEWS, strict=False):
                    row[:] = self.transform(image, view).transpose(1, 2, 0)
                del image  # before others may decode
        except (UnreadableImageError, OSError) as error:
            return reading_reason(error)
        return None


def load_in_threads(
    loader: ImageLoader, items: Iterator[Item], sizes: Sequence[int], num_workers: int
) -> Generator[LoadedImages, None, None]:
    """Yield images in batches of the given sizes, decoded in threads.

    Later batches overwrite the pixels: buffers are reused because allocating new ones fragments the
    process's memory.
    """
    largest = max(sizes, default=0)
    free = deque(loader.allocate(largest) for _ in range(LOOK_AHEAD + 1))
    waiting = WaitingBytes()
    with cancelled_on_exit(ThreadPoolExecutor(num_workers, thread_name_prefix="decode")) as pool:

        def start(size: int) -> tuple[Pixels, list[Future[str | None]]]:
            pixels = free.popleft()
            rows = zip(islice(items, size), pixels, strict=False)
            return pixels, [waiting.submit(pool, loader.load, *row) for row in rows]

        for pixels, tasks in start_ahead(start, sizes):
            yield pixels[: len(tasks)], [task.result() for task in tasks]
            free.append(pixels)


def load_in_processes(
    loader: ImageLoader, items: Iterator[Item], sizes: Sequence[int], num_workers: int
) -> Generator[LoadedImages, None, None]:
    """Yield images in batches of the given sizes, decoded in processes.

    Later batches overwrite the pixels. The workers write them into shared memory, because sending
    them through pipes would keep this process busy.

    Raises:
        ShowTellError: a worker process was killed.
    """
    largest = max(sizes, default=1)
    # A task costs about 0.1 ms of overhead, so group images while keeping every worker busy.
    group_size = max(1, min(8, LOOK_AHEAD * largest // (2 * num_workers)))
    context = multiprocessing.get_context("spawn")  # forking a process that uses a GPU may deadlock
    shape = (LOOK_AHEAD + 1, largest, *loader.shape)
    # One array for all buffers: it moves to the disk if /dev/shm is too small for it.
    memory = context.RawArray("B", math.prod(shape))
    loader = replace(loader, budget=DecodingBudget.for_processes(context))
    buffers = np.frombuffer(memory, np.uint8).reshape(shape)
    free = deque(range(len(buffers)))
    pool = ProcessPoolExecutor(
        num_workers, context, initializer=set_up_worker, initargs=(loader, memory, shape)
    )
    waiting = WaitingBytes()
    with cancelled_on_exit(pool):

        def start(size: int) -> tuple[int, list[Future[list[str | None]]]]:
            buffer, tasks = free.popleft(), []
            for first in range(0, size, group_size):
                group = list(islice(items, min(group_size, size - first)))
                with signals_blocked():  # each task may start a process
                    tasks.append(waiting.submit(pool, load_in_worker, group, buffer, first))
            return buffer, tasks

        try:
            for buffer, tasks in start_ahead(start, sizes):
                reasons = [reason for task in tasks for reason in task.result()]
                yield buffers[buffer, : len(reasons)], reasons
                free.append(buffer)
        except BrokenProcessPool:
            raise ShowTellError(
                f"One of {num_workers} decoding processes was killed, most likely because memory "
                "ran out. Run the command again with a smaller --num-workers; finished work is "
                "kept."
            ) from None


class WaitingBytes:
    """Limits the bytes of contents that wait to be decoded. Names take none."""

    def __init__(self) -> None:
        self._tasks: deque[tuple[Future[Any], int]] = deque()
        self._num_bytes = 0

    def submit(
        self, pool: Executor, load: Callable[..., T], items: Item | list[Item], *args: Any
    ) -> "Future[T]":
        """Start `load(items, *args)` once there is room for the contents in `items`."""
        listed = items if isinstance(items, list) else [items]
        num_bytes = sum(len(item) for item in listed if isinstance(item, bytes))
        while self._tasks and self._num_bytes + num_bytes > MAX_WAITING_BYTES:
            task, freed = self._tasks.popleft()
            wait([task])
            self._num_bytes -= freed
        started = pool.submit(load, items, *args)
        if num_bytes:
            self._tasks.append((started, num_bytes))
            self._num_bytes += num_bytes
        return started


def start_ahead(start: Callable[[int], T], sizes: Iterable[int]) -> Iterator[T]:
    """Yield `start(size)` for each batch, calling it for `LOOK_AHEAD` batches in advance."""
    started: deque[T] = deque()
    for size in sizes:
        started.append(start(size))
        if len(started) > LOOK_AHEAD:
            yield started.popleft()
    while started:
        yield started.popleft()


@contextmanager
def cancelled_on_exit(pool: Executor) -> Iterator[Executor]:
    """Yield the pool; on exit, cancel tasks that have not started and wait for its workers."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_worker_loader: ImageLoader | None = None
_worker_buffers: Pixels | None = None


def set_up_worker(loader: ImageLoader, memory: Any, shape: tuple[int, ...]) -> None:
    """Initialize a worker process.

    Args:
        loader: stored in the process, so that its zip archives stay open.
        memory: array of bytes that all processes share.
        shape: (buffers, batch, V, H, W, 3), the layout of `memory`.
    """
    global _worker_loader, _worker_buffers
    _worker_loader = loader
    _worker_buffers = np.frombuffer(memory, np.uint8).reshape(shape)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def load_in_worker(items: Sequence[Item], buffer: int, first: int) -> list[str | None]:
    """Load images into rows of a shared buffer, from row `first`; returns as `ImageLoader.load`."""
    assert _worker_loader is not None and _worker_buffers is not None
    rows = _worker_buffers[buffer, first:]
    return [_worker_loader.load(*pair) for pair in zip(items, rows, strict=False)]


def _exit_with_parent() -> None:
    """End this worker process when its parent has ended, for whatever reason."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
