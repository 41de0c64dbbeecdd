"""Count the pixels of the image inside an ICO or ICNS file, whose header may state another size."""

import io

from PIL.BmpImagePlugin import DibImageFile
from PIL.IcnsImagePlugin import IcnsFile
from PIL.IcoImagePlugin import IcoFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PngImagePlugin import PngImageFile

PNG_START = b"\x89PNG\r\n\x1a\n"


def icon_pixels(content: bytes) -> int:
    """Return how many pixels Pillow decodes for an ICO or ICNS file.

    Pillow decodes the former as soon as it opens it.

    Returns:
        0 for other formats, and for corrupt files, which Pillow cannot open either.
    """
    try:
        if content.startswith(b"\0\0\1\0"):
            return _ico_pixels(content)
        return _icns_pixels(content) if content.startswith(b"icns") else 0
    except Exception:  # Pillow raises anything for a corrupt file
        return 0


def _ico_pixels(content: bytes) -> int:
    inside = content[IcoFile(io.BytesIO(content)).entry[0].offset :]
    num_pixels = _header_pixels(inside, DibImageFile)
    # The header of a bitmap counts the rows of its mask, too.
    return num_pixels if inside.startswith(PNG_START) else num_pixels // 2


def _icns_pixels(content: bytes) -> int:
    icons = IcnsFile(io.BytesIO(content))
    width, height, scale = size = icons.bestsize()
    counts = [width * height * scale**2]
    for code, _ in icons.SIZES[size]:
        if code in icons.dct and code.startswith(b"ic"):  # other codes hold raw pixels
            start, length = icons.dct[code]
            counts.append(_header_pixels(content[start : start + length], Jpeg2KImageFile))
    return max(counts)


def _header_pixels(inside: bytes, other: type[ImageFile]) -> int:
    """Return the pixels that the header of a PNG, or of the `other` format, claims."""
    kind = PngImageFile if inside.startswith(PNG_START) else other
    image = kind(io.BytesIO(inside))
    return image.width * image.height
