"""Read batches of images for the encoder, ahead of use, and leave out unreadable images."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
import numpy.typing as npt
import torch

from ...pipeline.images.image_files import NO_PLACE, ImageFiles, Located
from .limits import MAX_PIXELS
from .transform import Transform
from .workers import ImageLoader, Pixels, load_in_processes, load_in_threads


@dataclass(frozen=True)
class ImageBatch:
    """Images that go through the network together.

    Attributes:
        image_ids: (B,) int64, of the readable images of the batch.
        pixels: (B·V, 3, H, W) uint8, RGB, channels_last; the V views of an image are adjacent. B
            may be 0. Only valid until the next batch is read.
        skipped: (image_id, reason) of each unreadable image of the batch.
    """

    image_ids: npt.NDArray[np.int64]
    pixels: torch.Tensor
    skipped: tuple[tuple[int, str], ...]


def read_batches(
    files: ImageFiles,
    image_ids: npt.NDArray[np.int64],
    file_names: Sequence[str],
    transform: Transform,
    spans: Sequence[tuple[int, int]],
    num_workers: int | None = None,
    for_gpu: bool = False,
    num_views: int = 1,
    max_pixels: int = MAX_PIXELS,
    members: npt.NDArray[np.int64] | None = None,
) -> Generator[ImageBatch, None, None]:
    """Read images in batches, decoding a few batches ahead of the caller.

    Memory use is constant: a few batches. Closing the generator early stops its workers.

    Args:
        files: where the images are.
        image_ids: (N,) int64.
        file_names: of the same N images.
        transform: the preprocessing of the encoder.
        spans: (start, stop) of each batch, as positions in `image_ids`; see `split_into_batches`.
        num_workers: number of decoding workers; default one per core.
        for_gpu: decode in processes and pin the memory, so that a GPU is kept busy. Otherwise
            decode in threads; the GIL lets about two of them run at once, which is enough for a
            network on a CPU.
        num_views: V, the number of views of each image.
        max_pixels: images with more pixels are skipped.
        members: (N, 2) int64, offset and size of each image in its tar archive, -1 if it is in
            none; None if no image is.

    Yields:
        One batch per span.

    Raises:
        ShowTellError: a decoding process was killed.
        ConfigError: images are behind URLs, and a library for them is missing.
    """
    loader = ImageLoader(files, transform, num_views, max_pixels)
    items = files.stream(locate_images(file_names, members, spans))
    sizes = [stop - start for start, stop in spans]
    load = load_in_processes if for_gpu else load_in_threads
    pin = for_gpu and torch.cuda.is_available()
    with (
        closing(items),
        closing(load(loader, items, sizes, num_workers or count_cores())) as loaded,
    ):
        for (start, stop), (pixels, reasons) in zip(spans, loaded, strict=True):
            batch = drop_unreadable(image_ids[start:stop], pixels, reasons)
            yield replace(batch, pixels=batch.pixels.pin_memory()) if pin else batch


def locate_images(
    file_names: Sequence[str],
    members: npt.NDArray[np.int64] | None,
    spans: Iterable[tuple[int, int]],
) -> Iterator[Located]:
    """Yield what `ImageFiles.stream` needs for the images of all spans."""
    for start, stop in spans:
        places = repeat(NO_PLACE) if members is None else members[start:stop].tolist()
        for name, (offset, num_bytes) in zip(file_names[start:stop], places, strict=False):
            yield name, offset, num_bytes


def split_into_batches(start: int, stop: int, batch_size: int) -> list[tuple[int, int]]:
    """Return the (start, stop) of each batch between two positions; the last may be shorter."""
    starts = range(start, stop, batch_size)
    return [(first, min(first + batch_size, stop)) for first in starts]


def drop_unreadable(
    image_ids: npt.NDArray[np.int64], pixels: Pixels, reasons: Sequence[str | None]
) -> ImageBatch:
    """Return a batch of the readable images: those whose reason is None.

    Args:
        image_ids: (n,) int64, of all images.
        pixels: (n, V, H, W, 3) uint8, of all images.
        reasons: why an image is unreadable, for each image.
    """
    readable = np.array([reason is None for reason in reasons], bool)
    skipped = tuple(
        (int(image_id), reason)
        for image_id, reason in zip(image_ids, reasons, strict=True)
        if reason is not None
    )
    kept = torch.from_numpy(pixels[readable] if skipped else pixels)
    return ImageBatch(image_ids[readable], kept.flatten(0, 1).permute(0, 3, 1, 2), skipped)


def count_cores() -> int:
    """Return the number of cores this process may use; a container may be limited to a few."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
