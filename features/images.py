"""Reads pictures in batches, decoded ahead of the network that wants them."""

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from ..pipeline.errors import ShowTellError
from ..pipeline.imagefiles import ImageFiles
from .pictures import Decoded, PictureDecoder, decode_here, set_up_worker
from .transform import Transform

# Batches that are decoded ahead of the network; more would only cost memory.
LOOK_AHEAD = 4


@dataclass(frozen=True)
class ImageBatch:
    """Pictures that go through the network together.

    Attributes:
        image_ids: (B,) int64, of the pictures in `pixels`.
        pixels: (B·V, 3, H, W) uint8, RGB, in channels_last memory; the V views of a picture follow
            each other; B may be 0.
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
    num_workers = num_workers or count_cores()
    longest = max((stop - start for start, stop in spans), default=1)
    pool, num_together = start_pool(decode, num_workers, longest, for_gpu)

    def start(span: tuple[int, int]) -> "PendingBatch":
        starts = range(*span, num_together)
        ends = [*starts[1:], span[1]]
        names = [file_names[first:end] for first, end in zip(starts, ends, strict=True)]
        jobs = [
            pool.submit(decode_here, some) if for_gpu else pool.submit(decode, some)
            for some in names
        ]
        return PendingBatch(image_ids[slice(*span)], jobs)

    waiting = iter(spans)
    try:
        pending = deque(start(span) for span in islice(waiting, LOOK_AHEAD))
        while pending:
            batch = pending.popleft().finish(pin_memory=for_gpu and torch.cuda.is_available())
            pending.extend(start(span) for span in islice(waiting, 1))
            yield batch
    except BrokenProcessPool:
        raise ShowTellError(
            f"one of {num_workers} decoding processes was killed, most likely for want of memory. "
            f"Run the stage again, which goes on where it was, with a smaller --num-workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class PendingBatch:
    """A batch that is being decoded.

    Attributes:
        image_ids: (B,) int64.
        jobs: what `PictureDecoder` gives for some of the pictures each, in their order.
    """

    image_ids: npt.NDArray[np.int64]
    jobs: list[Future[Decoded]]

    def finish(self, pin_memory: bool) -> ImageBatch:
        """Wait for the workers and leave out unreadable pictures."""
        parts = [job.result() for job in self.jobs]
        reasons = [reason for _, of_part in parts for reason in of_part]
        readable = np.array([reason is None for reason in reasons], bool)
        skipped = tuple(
            (int(image_id), reason)
            for image_id, reason in zip(self.image_ids, reasons, strict=True)
            if reason is not None
        )
        shape = (int(readable.sum()), *parts[0][0].shape[1:])
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
        kept = [
            row
            for rows, of_part in parts
            for row, reason in zip(rows, of_part, strict=True)
            if reason is None
        ]
        for place, row in zip(pixels.numpy(), kept, strict=True):
            place[:] = row
        pixels = pixels.flatten(0, 1).permute(0, 3, 1, 2)
        return ImageBatch(self.image_ids[readable], pixels, skipped)


def start_pool(
    decode: PictureDecoder, num_workers: int, batch_size: int, for_gpu: bool
) -> tuple[Executor, int]:
    """Start the workers.

    Returns:
        The pool of threads or processes.
        How many pictures to give to a worker at a time: to a process several, for each errand costs
        a tenth of a millisecond, but no more than keeps all busy.
    """
    if not for_gpu:
        return ThreadPoolExecutor(num_workers, thread_name_prefix="decode"), 1
    pool = ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("spawn"),  # a fork of a process that uses a GPU may hang
        initializer=set_up_worker,
        initargs=(decode,),
    )
    return pool, max(1, min(8, LOOK_AHEAD * batch_size // (2 * num_workers)))
