"""The image formats that are decoded, the memory that each takes, and limits on their headers.

Pillow knows many more formats. Some of its decoders are loops in Python, which take minutes for a
small file, and for EPS it starts Ghostscript.
"""

import functools
import io

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from .broken_images import UnreadableImageError

# Pillow's name of each format → the bytes that it takes to decode a pixel and convert it to RGB.
BYTES_PER_PIXEL = {
    "JPEG": 16,  # if progressive and CMYK; 4 otherwise
    "MPO": 16,
    "PNG": 9,
    "WEBP": 17,
    "AVIF": 18,
    "GIF": 9,
    "BMP": 9,
    "TIFF": 16,  # twice for the buffer of a tile
    "JPEG2000": 25,
}
READABLE = "JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF or JPEG 2000"
HEIC_BRANDS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis")
UNSUPPORTED = "which is not supported: convert it to JPEG or PNG"

MAX_TABLE_BYTES = 4 << 20  # of a tag of a TIFF; enough for the offsets of a million strips
NOT_TABLES = (1, 2, 7)  # types of tags that hold bytes or text, such as color profiles


class CountedReads(io.BytesIO):
    """The content of an image file; reading it in too many small parts raises an error.

    Pillow reads headers in Python, a chunk or tag at a time. A file of ten million empty chunks
    would keep it busy for a minute.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads_left = 10_000 + len(content) // 64

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as `io.BytesIO` does.

        Raises:
            UnreadableImageError: the file consists of too many small parts.
        """
        self.reads_left -= 1
        if self.reads_left < 0:
            raise UnreadableImageError("it consists of too many small parts")
        return super().read(size)


@functools.cache
def names_to_open() -> tuple[str, ...]:
    """Return the formats to try in `Image.open`, as far as Pillow was built with them."""
    Image.init()
    return tuple(name for name in BYTES_PER_PIXEL if name in Image.OPEN)  # MPO is opened as JPEG


def require_small_tables(content: bytes) -> None:
    """Refuse a TIFF with too many numbers in a tag. Pillow keeps each as a Python object.

    Raises:
        UnreadableImageError: a tag has more than `MAX_TABLE_BYTES`.
        Exception: any exception of Pillow, for a damaged TIFF.
    """
    if not content.startswith((b"II", b"MM")):
        return
    header_size = 16 if content[2:3] == b"+" else 8  # BigTIFF or TIFF
    tags, file = ImageFileDirectory_v2(content[:header_size]), CountedReads(content)
    file.seek(tags.next)
    tags.load(file)
    for tag, data in tags._tagdata.items():
        if len(data) > MAX_TABLE_BYTES and tags.tagtype[tag] not in NOT_TABLES:
            raise UnreadableImageError(
                f"its TIFF tag {tag} has {len(data):,} bytes of numbers, expected at most "
                f"{MAX_TABLE_BYTES:,}"
            )


def require_fast_decoder(image: Image.Image) -> None:
    """Refuse an image whose decoder is written in Python, such as a run-length encoded BMP.

    Raises:
        UnreadableImageError: it is such an image.
    """
    for tile in getattr(image, "tile", ()):
        if tile[0] in Image.DECODERS:
            raise UnreadableImageError(
                f"has the format {image.format} with {tile[0]} compression, {UNSUPPORTED}"
            )


def tile_pixels(image: Image.Image) -> int:
    """Return the pixels of one tile of a TIFF, which is decoded as a whole; 0 without tiles."""
    if not isinstance(image, TiffImageFile):
        return 0
    width, length = (image.tag_v2.get(tag, 0) for tag in (322, 323))
    return int(width * length)


def describe_unknown(content: bytes) -> str:
    """Return why Pillow identifies no supported format in a file."""
    name = _format_of(content)
    if name in BYTES_PER_PIXEL:
        return f"not an image, although it begins like a {name} file: the header is damaged"
    if name:
        return f"has the format {name}, {UNSUPPORTED}"
    return f"not an image in a format that can be read ({READABLE})"


def _format_of(content: bytes) -> str | None:
    """Return the name of the format whose first bytes a file has, or None."""
    if content[4:12] in HEIC_BRANDS:
        return "HEIC"
    for name, (_, accept) in Image.OPEN.items():
        if accept and accept(content[:16]) is True:
            return name
    return None
