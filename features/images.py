"""Reads pictures: bytes → PIL → RGB → the pixels a network wants, in batches and ahead of it.

Every picture that PIL can decode is used, whatever its colours, depth or orientation; one that it
cannot becomes a `skipped` entry of its batch.
"""

import io
import os
import struct
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..pipeline.errors import DatasetError
from ..pipeline.imagefiles import ImageFiles
from .transform import VIEWS, Transform

# Batches that are decoded ahead of the network; more would only cost memory.
LOOK_AHEAD = 4

# What PIL's decoders raise for broken files. MemoryError and bugs of ours are not among them.
BROKEN_PICTURE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Begin the reasons where the file failed and not the picture in it: it may be back, or readable,
# at the next run, where a broken picture stays broken.
MISSING, UNREAD = "does not exist", "cannot be read"


class UnreadableImageError(DatasetError):
    """A file that is no picture, or a broken one; the message is a one-line reason."""


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


def open_picture(content: bytes, transform: Transform) -> Image.Image:
    """Decode to an upright RGB picture, no smaller than `transform` needs.

    Raises:
        UnreadableImageError: not a picture, or a broken one.
    """
    if not content:
        raise UnreadableImageError("the file is empty")
    try:
        return open_rgb(content, transform)
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image in a format that PIL knows") from None
    except BROKEN_PICTURE as error:
        raise UnreadableImageError(one_line(error)) from error


def open_rgb(content: bytes, transform: Transform) -> Image.Image:
    """Decode as PIL does, with whatever errors it has."""
    image = Image.open(io.BytesIO(content))
    # A large JPEG is decoded at 1/2, 1/4 or 1/8, almost for free. The size is that before the
    # EXIF rotation, which does not matter: the transform treats both sides alike.
    image.draft(None, transform.decode_size(*image.size))
    image.load()
    return to_rgb(upright(image))


def upright(image: Image.Image) -> Image.Image:
    """Rotate and mirror a loaded picture as its EXIF orientation says."""
    with suppress(*BROKEN_PICTURE):  # a malformed EXIF block spoils no pixel
        ImageOps.exif_transpose(image, in_place=True)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode of PIL's to RGB; what is transparent lies on white.

    Raises:
        ValueError: a mode that PIL cannot convert.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith(("I", "F")):
        return scale_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey to mode L; PIL itself would clip at 255.

    Whole numbers up to 65535 count as 16 bits and fractions within 0 to 1 as fully scaled; any
    other range is stretched from its own smallest to its largest value.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    most = 1.0 if image.mode == "F" else 65535.0
    if low >= 0 and high <= most:
        low, high = 0.0, most
    grey = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(grey).astype(np.uint8))


def one_line(error: BaseException) -> str:
    """What an exception says, or else its type, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


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
    pin_memory: bool = False,
) -> Generator[ImageBatch, None, None]:
    """Read pictures in their order, decoded by threads a few batches ahead of the caller.

    Args:
        files: where the pictures are.
        image_ids: (N,) int64.
        file_names: of the same N pictures.
        transform: of the network's weights.
        batch_size: pictures in a batch; the last one may have fewer.
        num_workers: threads; default one for each core.
        pin_memory: put the pixels where a GPU can fetch them by itself.

    Yields:
        One batch for each `batch_size` names, shorter by its skipped pictures.
    """
    starts = range(0, len(file_names), batch_size)
    spans = [(start, min(start + batch_size, len(file_names))) for start in starts]
    return read_spans(files, image_ids, file_names, transform, spans, num_workers, pin_memory)


def read_spans(
    files: ImageFiles,
    image_ids: npt.NDArray[np.int64],
    file_names: Sequence[str],
    transform: Transform,
    spans: Iterable[tuple[int, int]],
    num_workers: int | None = None,
    pin_memory: bool = False,
    num_views: int = 1,
) -> Generator[ImageBatch, None, None]:
    """Like `read_batches`, with the batches given as (start, stop) positions in the names.

    Each picture is decoded once, for its first `num_views` views.

    Memory stays flat: at most `LOOK_AHEAD` batches exist beside the one yielded. Closing the
    generator early stops its threads.
    """
    pool = ThreadPoolExecutor(num_workers or count_cores(), thread_name_prefix="decode")
    shape = (num_views, transform.crop_size, transform.crop_size, 3)

    def start(span: tuple[int, int]) -> "PendingBatch":
        names = file_names[span[0] : span[1]]
        pixels = torch.empty((len(names), *shape), dtype=torch.uint8, pin_memory=pin_memory)
        rows = pixels.numpy()
        jobs = [
            pool.submit(decode_into, rows[row], files, name, transform)
            for row, name in enumerate(names)
        ]
        return PendingBatch(image_ids[span[0] : span[1]], pixels, jobs)

    waiting = iter(spans)
    pending = deque(start(span) for span in islice(waiting, LOOK_AHEAD))
    try:
        while pending:
            batch = pending.popleft().finish()
            pending.extend(start(span) for span in islice(waiting, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class PendingBatch:
    """A batch that threads are decoding.

    Attributes:
        image_ids: (B,) int64.
        pixels: (B, V, H, W, 3) uint8, being filled.
        jobs: B futures of the reason why the picture cannot be read, or None.
    """

    image_ids: npt.NDArray[np.int64]
    pixels: torch.Tensor
    jobs: list[Future[str | None]]

    def finish(self) -> ImageBatch:
        """Wait for the threads and drop the rows of unreadable pictures."""
        reasons = [job.result() for job in self.jobs]
        kept = [row for row, reason in enumerate(reasons) if reason is None]
        skipped = tuple(
            (int(image_id), reason)
            for image_id, reason in zip(self.image_ids, reasons, strict=True)
            if reason is not None
        )
        pixels = self.pixels[kept] if skipped else self.pixels
        return ImageBatch(self.image_ids[kept], pixels.flatten(0, 1).permute(0, 3, 1, 2), skipped)


def decode_into(
    rows: npt.NDArray[np.uint8], files: ImageFiles, file_name: str, transform: Transform
) -> str | None:
    """Decode one file into `rows`, (V, H, W, 3) uint8; returns why where it cannot be read."""
    try:
        picture = open_picture(files.read(file_name), transform)
        for row, view in zip(rows, VIEWS, strict=False):
            row[:] = transform(picture, view).transpose(1, 2, 0)
    except UnreadableImageError as error:
        return str(error)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        # Without a number it is no word of the system's: the file itself is damaged.
        return one_line(error) if error.errno is None else f"{UNREAD}: {one_line(error)}"
    return None
