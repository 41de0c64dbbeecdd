"""Reads pictures in batches, decoded ahead of the network that wants them."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ...pipeline.datasets.image_files import ImageFiles
from ...pipeline.stage.errors import ShowTellError
from .decode import Decoded, PictureDecoder, Pixels, decode_here, set_up_worker
from .transform import Transform

# Batches that are decoded ahead of the network; more would only cost memory.
LOOK_AHEAD = 4

T = TypeVar("T")


@dataclass(frozen=True)
class ImageBatch:
    """Pictures that go through the network together.

    Attributes:
        image_ids: (B,) int64, of the pictures in `pixels`.
        pixels: (B·V, 3, H, W) uint8, RGB, in channels_last memory; the V views of a picture follow
            each other; B may be 0. They are there until the next batch is read.
        skipped: (image_id, reason) of each picture of the batch that could not be read.
    """

    image_ids: npt.NDArray[np.int64]
    pixels: torch.Tensor
    skipped: tuple[tuple[int, str], ...]


def count_cores() -> int:
    """Cores that this process may use, which in a container are not all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_batches(
    files: ImageFiles,
    image_ids: npt.NDArray[np.int64],
    file_names: Sequence[str],
    transform: Transform,
    batch_size: int,
    num_workers: int | None = None,
    for_gpu: bool = False,
) -> Generator[ImageBatch, None, None]:
    """Read pictures in their order, decoded a few batches ahead of the caller.

    Args:
        files: where the pictures are.
        image_ids: (N,) int64.
        file_names: of the same N pictures.
        transform: of the network's weights.
        batch_size: pictures in a batch; the last one may have fewer.
        num_workers: decoders at work; default one for each core.
        for_gpu: decode in processes and put the pixels where a GPU can fetch them by itself. Else
            in threads, of which Python lets about two work at a time: enough for a CPU's network.

    Yields:
        One batch for each `batch_size` names, shorter by its skipped pictures.

    Raises:
        ShowTellError: a decoding process was killed.
    """
    starts = range(0, len(file_names), batch_size)
    spans = [(start, min(start + batch_size, len(file_names))) for start in starts]
    return read_spans(files, image_ids, file_names, transform, spans, num_workers, for_gpu)


def read_spans(
    files: ImageFiles,
    image_ids: npt.NDArray[np.int64],
    file_names: Sequence[str],
    transform: Transform,
    spans: Sequence[tuple[int, int]],
    num_workers: int | None = None,
    for_gpu: bool = False,
    num_views: int = 1,
) -> Generator[ImageBatch, None, None]:
    """Like `read_batches`, with the batches given as (start, stop) positions in the names.

    Each picture is decoded once, for its first `num_views` views.

    Memory stays flat: at most `LOOK_AHEAD` batches exist beside the one yielded. Closing the
    generator early stops its workers.
    """
    decode = PictureDecoder(files, transform, num_views)
    names = [file_names[start:stop] for start, stop in spans]
    decode_all = decode_in_processes if for_gpu else decode_in_threads
    with closing(decode_all(decode, names, num_workers or count_cores())) as decoded:
        for (start, stop), (pixels, reasons) in zip(spans, decoded, strict=True):
            yield drop_unreadable(image_ids[start:stop], pixels, reasons)


def decode_in_threads(
    decode: PictureDecoder, batches: Sequence[Sequence[str]], num_workers: int
) -> Generator[Decoded, None, None]:
    """Decode batches of names into buffers that are used again and again.

    Fresh ones would leave ever more holes in the memory of the process.
    """
    most = max(map(len, batches), default=0)
    free = deque(decode.empty(most) for _ in range(LOOK_AHEAD + 1))
    with ending(ThreadPoolExecutor(num_workers, thread_name_prefix="decode")) as pool:

        def start(names: Sequence[str]) -> tuple[Pixels, list[Future[str | None]]]:
            pixels = free.popleft()
            return pixels, [pool.submit(decode, *job) for job in zip(names, pixels, strict=False)]

        for pixels, jobs in ahead(start, batches):
            yield pixels[: len(jobs)], [job.result() for job in jobs]
            free.append(pixels)


def decode_in_processes(
    decode: PictureDecoder, batches: Sequence[Sequence[str]], num_workers: int
) -> Generator[Decoded, None, None]:
    """Decode batches of names beside Python's lock, into memory that a GPU can fetch from.

    Raises:
        ShowTellError: a process was killed.
    """
    most = max(map(len, batches), default=1)
    # Each errand costs a tenth of a millisecond, but all workers are to be busy.
    together = max(1, min(8, LOOK_AHEAD * most // (2 * num_workers)))
    pool = ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("spawn"),  # a fork of a process that uses a GPU may hang
        initializer=set_up_worker,
        initargs=(decode,),
    )
    with ending(pool):

        def start(names: Sequence[str]) -> tuple[int, list[Future[Decoded]]]:
            parts = [names[i : i + together] for i in range(0, len(names), together)]
            return len(names), [pool.submit(decode_here, part) for part in parts]

        try:
            for count, jobs in ahead(start, batches):
                parts = [job.result() for job in jobs]
                shape = (count, *decode.shape)
                pixels = torch.empty(
                    shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available()
                ).numpy()
                np.concatenate([part for part, _ in parts], out=pixels)
                yield pixels, [reason for _, reasons in parts for reason in reasons]
        except BrokenProcessPool:
            raise ShowTellError(
                f"one of {num_workers} decoding processes was killed, most likely for want of "
                f"memory. Run the stage again, which goes on where it was, with a smaller "
                f"--num-workers."
            ) from None


def ahead(start: Callable[[Sequence[str]], T], batches: Iterable[Sequence[str]]) -> Iterator[T]:
    """Yield what `start` gives for each batch, which was called for `LOOK_AHEAD` more before."""
    waiting = iter(batches)
    started = deque(map(start, islice(waiting, LOOK_AHEAD)))
    while started:
        first = started.popleft()
        started.extend(map(start, islice(waiting, 1)))
        yield first


@contextmanager
def ending(pool: Executor) -> Iterator[Executor]:
    """Drop what the workers have not begun, and wait for them to end."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def drop_unreadable(
    image_ids: npt.NDArray[np.int64], pixels: Pixels, reasons: Sequence[str | None]
) -> ImageBatch:
    """Make a batch of (B,) pictures, of which some perhaps cannot be read."""
    readable = np.array([reason is None for reason in reasons], bool)
    skipped = tuple(
        (int(image_id), reason)
        for image_id, reason in zip(image_ids, reasons, strict=True)
        if reason is not None
    )
    kept = torch.from_numpy(pixels[readable] if skipped else pixels)
    return ImageBatch(image_ids[readable], kept.flatten(0, 1).permute(0, 3, 1, 2), skipped)
