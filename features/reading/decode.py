"""Reads one picture: bytes → PIL → RGB → the pixels a network wants (PIL and numpy, no torch).

Every picture that PIL can decode is used, whatever its colours, depth or orientation; of one that
it cannot, the reason is told.
"""

import io
import multiprocessing
import os
import signal
import struct
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ...pipeline.datasets.image_files import ImageFiles
from ...pipeline.stage.errors import DatasetError
from .transform import VIEWS, Transform

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


Pixels = npt.NDArray[np.uint8]  # (…, V, H, W, 3), the V views of each picture
# Of n pictures: their pixels, undefined where one cannot be read, and n reasons why, or None.
Decoded = tuple[Pixels, list[str | None]]


class UnreadableImageError(DatasetError):
    """A file that is no picture, or a broken one; the message is a one-line reason."""


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


@dataclass(frozen=True)
class PictureDecoder:
    """File names → pixels.

    Attributes:
        files: where the pictures are.
        transform: of the network's weights.
        num_views: V, the first views of each picture.
    """

    files: ImageFiles
    transform: Transform
    num_views: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(V, H, W, 3) of a picture."""
        size = self.transform.crop_size
        return self.num_views, size, size, 3

    def empty(self, count: int) -> Pixels:
        """Room for so many pictures, (count, V, H, W, 3)."""
        return np.empty((count, *self.shape), np.uint8)

    def __call__(self, file_name: str, pixels: Pixels) -> str | None:
        """Decode one file into (V, H, W, 3); returns why where it cannot be read."""
        try:
            picture = open_picture(self.files.read(file_name), self.transform)
            for row, view in zip(pixels, VIEWS, strict=False):
                row[:] = self.transform(picture, view).transpose(1, 2, 0)
        except UnreadableImageError as error:
            return str(error)
        except FileNotFoundError:
            return MISSING
        except OSError as error:
            # Without a number it is no word of the system's: the file itself is damaged.
            return one_line(error) if error.errno is None else f"{UNREAD}: {one_line(error)}"
        return None


_decode: PictureDecoder | None = None  # of a worker process


def set_up_worker(decode: PictureDecoder) -> None:
    """Make this process a worker: it keeps the decoder, with the zips that it has opened."""
    global _decode
    _decode = decode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def decode_here(file_names: Sequence[str]) -> Decoded:
    """Decode some files by the decoder that this worker keeps."""
    assert _decode is not None
    pixels = _decode.empty(len(file_names))
    return pixels, [_decode(name, rows) for name, rows in zip(file_names, pixels, strict=True)]


def _end_with_parent() -> None:
    """End this worker when its parent is gone, however that came."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
