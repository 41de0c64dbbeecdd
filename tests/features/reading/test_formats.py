import gzip
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from showtell.bench.measurement import forget_peak_memory, peak_memory
from showtell.features.reading import formats
from showtell.features.reading.broken_images import UnreadableImageError
from showtell.features.reading.decode import decode_image, open_image
from showtell.features.reading.formats import BYTES_PER_PIXEL

STRIP_BYTES = 32 << 20  # a strip of an image, as float64, and temporary copies


def encode(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def reason(content: bytes, **options) -> str:
    """Return why an image is refused before it is decoded."""
    with pytest.raises(UnreadableImageError) as caught:
        open_image(content, **options)
    return str(caught.value)


def fits() -> bytes:
    """Return an image whose pixels Pillow decompresses with a loop in Python."""

    def block(*cards: str) -> bytes:
        return "".join(card.ljust(80) for card in (*cards, "END")).encode().ljust(2880)

    sizes = ("ZNAXIS  =        2", "ZNAXIS1 =        9", "ZNAXIS2 =        9")
    extension = ("ZIMAGE  =        T", "ZBITPIX =        8", *sizes, "ZCMPTYPE= 'GZIP_1  '")
    table = ("XTENSION= 'BINTABLE'", "BITPIX  =        8", "NAXIS   =        0", *extension)
    return block("SIMPLE  =        T", "NAXIS   =        0") + block(*table) + gzip.compress(b"0")


def tiff(tags: dict[int, list[int]], data: bytes = b"") -> bytes:
    """Return a gray TIFF of 10×10 pixels with these tags as well; 324 is the offset of `data`."""
    tags = {256: [10], 257: [10], 258: [8], 259: [8], 262: [1], 277: [1], **tags}
    size = 8 + 2 + 12 * len(tags) + 4
    entries, tail = b"", data
    for tag, values in sorted(tags.items()):
        value = size if tag == 324 else values[0]
        if len(values) > 1:
            value, tail = size + len(tail), tail + struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHII", tag, 4, len(values), value)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tail


@pytest.mark.parametrize("format", ["EPS", "DDS", "ICO", "PPM", "SGI", "PCX", "FITS", "HEIC"])
def test_other_formats_are_named_and_never_opened(monkeypatch, format):
    contents = {"FITS": fits, "HEIC": lambda: b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"}
    image = Image.new("RGB", (16, 16))
    content = contents.get(format, lambda: encode(image, format))()
    if format in Image.OPEN:
        monkeypatch.setitem(Image.OPEN, format, (None, Image.OPEN[format][1]))
    assert reason(content) == (
        f"has the format {format}, which is not supported: convert it to JPEG or PNG"
    )


def test_file_with_a_damaged_header_is_not_called_unsupported():
    content = encode(Image.new("RGB", (16, 16)), "PNG")
    assert reason(content[:8] + bytes(99)).startswith("not an image, although it begins like a PNG")


def test_run_length_encoded_bitmap_is_refused_because_python_decodes_it():
    content = bytearray(encode(Image.new("P", (16, 16)), "BMP"))
    content[30:34] = struct.pack("<I", 1)
    assert reason(bytes(content)).startswith("has the format BMP with bmp_rle compression")


def test_tile_of_a_tiff_counts_with_its_own_size():
    tile = zlib.compress(bytes(320 * 320))
    content = tiff({322: [320], 323: [320], 324: [0], 325: [len(tile)]}, tile)
    assert open_image(content)[1] == 320 * 320 * BYTES_PER_PIXEL["TIFF"]
    assert decode_image(content).size == (10, 10)
    assert reason(content, max_pixels=320 * 320 - 1).startswith("has 102,400 pixels, more than")


def test_tiff_with_many_numbers_in_a_tag_is_refused(monkeypatch):
    content = tiff({259: [1], 273: [8] * 999, 278: [1], 279: [10] * 999})
    assert open_image(content)[0].size == (10, 10)
    monkeypatch.setattr(formats, "MAX_TABLE_BYTES", 999 * 4 - 1)
    assert "tag 273 has 3,996 bytes of numbers" in reason(content)


def test_png_of_many_empty_chunks_is_refused():
    content = encode(Image.new("RGB", (16, 16)), "PNG")
    chunk = struct.pack(">I4sI", 0, b"teSt", zlib.crc32(b"teSt"))
    assert decode_image(content[:33] + chunk * 1000 + content[33:]).size == (16, 16)
    assert "too many small parts" in reason(content[:33] + chunk * 9999 + content[33:])


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("JPEG", "CMYK", {"progressive": True}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("PNG", "RGBA", {}),
        ("PNG", "I;16", {}),
        ("WEBP", "RGBA", {"lossless": True, "method": 0}),
        ("AVIF", "RGBA", {"speed": 10, "subsampling": "4:4:4"}),
        ("GIF", "P", {"transparency": 0}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGBA", {"compression": "tiff_deflate"}),
        ("JPEG2000", "RGBA", {}),
    ],
)
def test_decoding_takes_no_more_memory_than_counted(format, mode, options):
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"Pillow was built without {format}")
    side = 2500
    content = encode(Image.new(mode, (side, side)), format, **options)
    decode_image(encode(Image.new(mode, (16, 16)), format, **options))  # loads the library
    forget_peak_memory()
    before = peak_memory()
    num_bytes = open_image(content)[1]
    decode_image(content)
    assert num_bytes == side * side * BYTES_PER_PIXEL[format]
    assert peak_memory() - before < num_bytes + STRIP_BYTES


def test_jpeg_2000_pixels_count_twice():
    content = encode(Image.new("RGB", (20, 10)), "JPEG2000")
    assert open_image(content, max_pixels=400)[0].size == (20, 10)
    expected = "has 200 pixels, counted as 400, more than --max-pixels 399"
    assert reason(content, max_pixels=399) == expected


def test_every_supported_format_is_read_back():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for format in BYTES_PER_PIXEL.keys() & Image.SAVE.keys():
        content = encode(Image.fromarray(pixels), format)
        assert decode_image(content).size == (12, 12)
