"""Images that cannot be read: which errors count as such, and the reason reported for each.

The reason of a skipped image is stored in its shard and in the manifest. `features/extract.py`
prints how many were skipped; `serving/captioner.py` puts the reason into an error.
"""

import struct
import zlib

from PIL import Image, UnidentifiedImageError

from ...pipeline.stage.errors import DatasetError

# Everything that Pillow's decoders raise for a corrupt file. MemoryError is not in the list, and
# neither are the errors of our own bugs (AttributeError, NameError, AssertionError).
DECODING_ERRORS = (
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

# Reasons for a file that could not be read, as opposed to a corrupt image. Such a file is tried
# again in the next run: a disk may be back by then, but a corrupt image stays corrupt.
MISSING = "does not exist"
READ_FAILED = "cannot be read"


class UnreadableImageError(DatasetError):
    """A file is not an image, or is a corrupt one; the message is the reason, on one line."""


def decoding_reason(error: Exception) -> str:
    """Return why Pillow could not decode an image."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that PIL knows"
    return one_line(error)


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
