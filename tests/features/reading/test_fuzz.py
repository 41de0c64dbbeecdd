"""Mutated images of every format: pixels or a reason, nothing else, within 2 s and 1 GB."""

import functools
import io
import os
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from showtell.features.reading.broken_images import UnreadableImageError
from showtell.features.reading.decode import decode_image
from showtell.features.reading.formats import BYTES_PER_PIXEL
from showtell.features.reading.transform import Transform

# Pillow warns of damaged metadata and of old formats.
pytestmark = pytest.mark.filterwarnings("ignore")

NUM_EXAMPLES = int(os.environ.get("SHOWTELL_FUZZ_EXAMPLES", "400"))
SQUASH = Transform(8, None, "bilinear", (0.5,) * 3, (0.5,) * 3)
MODES = ("RGB", "RGBA", "P", "L", "1", "I;16", "F", "CMYK", "LA")


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Return a small image in every supported format, in every mode that it takes."""
    Image.init()
    colors = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image, contents = Image.fromarray(colors), []
    for format in sorted(BYTES_PER_PIXEL.keys() & Image.SAVE.keys()):
        for mode in MODES:
            stream, frames = io.BytesIO(), {}
            converted = image.convert("L" if mode == "I;16" else "RGB").convert(mode)
            if format == "MPO":  # a single frame is saved as a JPEG
                frames = {"save_all": True, "append_images": [converted]}
            try:
                converted.save(stream, format, **frames)
                Image.open(io.BytesIO(stream.getvalue())).load()
            except Exception:  # a mode that the format cannot hold, or one that cannot be read back
                continue
            contents.append(stream.getvalue())
    return tuple(contents)


def read(content: bytes) -> None:
    """Decode an image as `features` does."""
    try:
        pixels = SQUASH(decode_image(content, SQUASH))
        assert pixels.shape == (3, 8, 8)
        assert pixels.dtype == np.uint8
    except UnreadableImageError as error:
        assert str(error)
        assert "\n" not in str(error)


def test_every_format_is_tried() -> None:
    formats = {Image.open(io.BytesIO(content)).format for content in seeds()}
    assert set(BYTES_PER_PIXEL) - formats <= {"AVIF", "JPEG2000", "WEBP"}  # optional in Pillow


def test_flipped_bits_of_every_format_are_harmless(within_limits) -> None:
    for content in seeds():
        for position in range(0, len(content), max(1, len(content) // 12)):
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            with within_limits():
                read(bytes(changed))


@st.composite
def mutated_images(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(seeds())))
    for _ in range(draw(st.integers(1, 6))):
        # Mostly in the header, where the sizes and offsets are.
        end = draw(st.sampled_from([64, 512, len(content)]))
        position = draw(st.integers(0, max(min(end, len(content)) - 1, 0)))
        part = draw(st.binary(max_size=4) | st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0"]))
        removed = draw(st.sampled_from([len(part), 0, len(part) + 1, len(content)]))
        content[position : position + removed] = part
    return bytes(content)


@settings(
    max_examples=NUM_EXAMPLES,
    deadline=timedelta(seconds=10),
    derandomize="SHOWTELL_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(mutated_images())
def test_mutated_images_give_pixels_or_a_reason(within_limits, content: bytes) -> None:
    with within_limits():
        read(content)
