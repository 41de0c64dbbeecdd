"""Decode the bytes of an image file to an upright RGB image, with Pillow.

Every image in a format of `formats.BYTES_PER_PIXEL` is used, whatever its mode, bit depth or EXIF
orientation, unless it has too many pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .broken_images import UnreadableImageError, decoding, too_many_pixels
from .formats import (
    BYTES_PER_PIXEL,
    CountedReads,
    describe_unknown,
    names_to_open,
    require_fast_decoder,
    require_small_tables,
    tile_pixels,
)
from .limits import MAX_PIXELS
from .transform import Transform

STRIP_PIXELS = 1 << 20


def decode_image(
    content: bytes, transform: Transform | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image file to an upright RGB image. Arguments and errors as in `open_image`."""
    return decode_opened(open_image(content, transform, max_pixels)[0])


def open_image(
    content: bytes, transform: Transform | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, int]:
    """Read the header of an image file.

    Args:
        content: the whole file.
        transform: the transform that follows. If given, a JPEG larger than it needs is decoded at
            a reduced size, which is faster. Default: full size.
        max_pixels: maximum number of pixels to decode. A pixel of a JPEG 2000 image counts as two,
            because decoding it takes more than twice the memory.

    Returns:
        The image to pass to `decode_opened`, and the number of bytes that decoding it takes.

    Raises:
        UnreadableImageError: not an image, a corrupt one, or one with too many pixels.
    """
    if not content:
        raise UnreadableImageError("the file is empty")
    raise_pillow_limit(max_pixels)
    with decoding(max_pixels):
        image = open_header(content)
        num_pixels = image.width * image.height
        if transform is not None:
            # The JPEG decoder scales by 1/2, 1/4 or 1/8 almost for free. The EXIF rotation can
            # swap width and height later, but the transform treats both in the same way.
            image.draft(None, transform.resized_size(*image.size))
        if "progressive" not in image.info:  # a progressive JPEG is held in memory at full size
            num_pixels = image.width * image.height
        num_pixels = max(num_pixels, tile_pixels(image))
    assert image.format is not None
    counted = 2 * num_pixels if image.format == "JPEG2000" else num_pixels
    if counted > max_pixels:
        raise UnreadableImageError(too_many_pixels(num_pixels, max_pixels, counted))
    return image, num_pixels * BYTES_PER_PIXEL[image.format]


def open_header(content: bytes) -> Image.Image:
    """Read the header of an image, without its pixels. Raises any exception of Pillow."""
    try:
        require_small_tables(content)
        image = Image.open(CountedReads(content), formats=names_to_open())
    except UnidentifiedImageError:
        raise UnreadableImageError(describe_unknown(content)) from None
    require_fast_decoder(image)
    return image


def decode_opened(image: Image.Image) -> Image.Image:
    """Decode an image from `open_image` to upright RGB.

    Raises:
        UnreadableImageError: it is corrupt.
    """
    with decoding():
        image.load()
    return to_upright_rgb(image)


def raise_pillow_limit(max_pixels: int) -> None:
    """Raise Pillow's limit to `max_pixels` in this process; never lower it.

    Pillow refuses images above twice its limit, on opening and inside some decoders.
    """
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of a loaded image (in place) and convert it to RGB.

    Raises:
        UnreadableImageError: Pillow cannot convert the image's mode.
    """
    with suppress(UnreadableImageError), decoding():  # bad EXIF data does not affect the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB; transparent pixels are blended with white.

    Raises:
        UnreadableImageError: Pillow cannot convert the mode.
    """
    with decoding():
        is_transparent = image.has_transparency_data
    if image.mode == "RGB" and not is_transparent:
        return image
    if image.mode.startswith(("I", "F")):
        return scale_to_8_bits(image)
    if is_transparent:
        return convert_in_strips(image, blend_with_white)
    with decoding():
        return image.convert("RGB")


def blend_with_white(image: Image.Image) -> Image.Image:
    """Return an RGBA image whose transparent pixels are blended with white."""
    with decoding():
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit, 32-bit or float gray to RGB; Pillow's own conversion clips at 255.

    Integers from 0 to 65535 are scaled as 16-bit values, floats from 0 to 1 as fractions. Any other
    range is stretched so that its minimum becomes black and its maximum white.
    """
    extrema = [(values.min(), values.max()) for values in map(to_floats, strips(image))]
    low, high = float(min(low for low, _ in extrema)), float(max(high for _, high in extrema))
    full_scale = 1.0 if image.mode == "F" else 65535.0
    if low >= 0 and high <= full_scale:
        low, high = 0.0, full_scale

    def scale(strip: Image.Image) -> Image.Image:
        gray = (to_floats(strip) - low) * (255.0 / max(high - low, 1e-12))
        return Image.fromarray(np.rint(gray).astype(np.uint8))

    return convert_in_strips(image, scale)


def to_floats(image: Image.Image) -> npt.NDArray[np.float64]:
    """Return a gray image as (H, W) float64; values that are not finite become 0."""
    values = np.asarray(image).astype(np.float64)
    finite: npt.NDArray[np.float64] = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    return finite


def convert_in_strips(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Convert an image to RGB strip by strip, so that temporary memory is small."""
    rgb, top = Image.new("RGB", image.size), 0
    for strip in strips(image):
        rgb.paste(convert(strip).convert("RGB"), (0, top))
        top += strip.height
    return rgb


def strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yield horizontal strips of an image from top to bottom, each at least one row high."""
    height = max(1, STRIP_PIXELS // max(image.width, 1))
    for top in range(0, image.height, height):
        yield image.crop((0, top, image.width, min(top + height, image.height)))
