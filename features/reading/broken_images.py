"""Images that cannot be read: which errors count as such, and the reason reported for each.

The reason of a skipped image is stored in its shard and in the manifest. `features/extract.py`
prints how many were skipped; `serving/captioner.py` puts the reason into an error.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from ...pipeline.stage.errors import DatasetError

# Reasons for a file that could not be read, as opposed to a corrupt image. Such a file is tried
# again in the next run: a disk may be back by then, but a corrupt image stays corrupt.
MISSING = "does not exist"
READ_FAILED = "cannot be read"

PIXEL_LIMIT = re.compile(r"more than --max-pixels ([\d,]+)$")


class UnreadableImageError(DatasetError):
    """A file cannot be decoded to an image; the message is the reason, on one line."""


@contextmanager
def decoding(max_pixels: int | None = None) -> Iterator[None]:
    """Turn any exception of Pillow into `UnreadableImageError`. Call only Pillow inside.

    Its decoders may raise any exception for a corrupt file, even AssertionError or AttributeError.

    Args:
        max_pixels: the limit to name in the error if Pillow refuses an image as too large.
    """
    try:
        yield
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        if found is None or max_pixels is None:
            raise UnreadableImageError(one_line(error)) from error
        raise UnreadableImageError(too_many_pixels(int(found[1]), max_pixels)) from error
    except MemoryError as error:
        # The file may be corrupt, or memory may be low for the moment: the next run tries again.
        raise UnreadableImageError(f"{READ_FAILED}: not enough memory to decode it") from error
    except Exception as error:
        raise UnreadableImageError(one_line(error)) from error


def too_many_pixels(num_pixels: int, max_pixels: int, counted: int | None = None) -> str:
    """Return the reason for an image above the limit, which counts as `counted` pixels."""
    note = "" if counted in (None, num_pixels) else f", counted as {counted:,},"
    return f"has {num_pixels:,} pixels{note or ','} more than --max-pixels {max_pixels:,}"


def is_above_lower_limit(reason: str, max_pixels: int) -> bool:
    """Return whether an image was skipped because of a limit lower than `max_pixels`."""
    limit = PIXEL_LIMIT.search(reason)
    return limit is not None and int(limit[1].replace(",", "")) < max_pixels


def reading_reason(error: Exception) -> str:
    """Return why an image file could not be read or decoded, as stored in the shard."""
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, OSError) and error.errno is not None:
        return f"{READ_FAILED}: {one_line(error)}"
    # An OSError without errno comes from Pillow or from a zip archive: the file is corrupt.
    return one_line(error)


def one_line(error: Exception) -> str:
    """Return an error's message on one line, or its type if the message is empty."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
