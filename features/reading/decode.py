"""Decode the bytes of an image file to an upright RGB image, with Pillow.

Every image that Pillow can decode is used, whatever its mode, bit depth or EXIF orientation.
"""

import io
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

from .broken_images import DECODING_ERRORS, UnreadableImageError, decoding_reason
from .transform import Transform


def decode_image(content: bytes, transform: Transform | None = None) -> Image.Image:
    """Decode an image file to an upright RGB image.

    Args:
        content: the whole file.
        transform: the transform that follows. If given, a JPEG larger than it needs is decoded at
            a reduced size, which is faster. Default: full size.

    Raises:
        UnreadableImageError: not an image, or a corrupt one.
    """
    if not content:
        raise UnreadableImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(content))
        if transform is not None:
            # The JPEG decoder scales by 1/2, 1/4 or 1/8 almost for free. The EXIF rotation can
            # swap width and height later, but the transform treats both in the same way.
            image.draft(None, transform.resized_size(*image.size))
        image.load()
        return to_upright_rgb(image)
    except DECODING_ERRORS as error:
        raise UnreadableImageError(decoding_reason(error)) from error


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of a loaded image (in place) and convert it to RGB.

    Raises:
        ValueError: Pillow cannot convert the image's mode.
    """
    with suppress(*DECODING_ERRORS):  # malformed EXIF data does not affect the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB; transparent pixels are blended with white.

    Raises:
        ValueError: Pillow cannot convert the mode.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith(("I", "F")):
        return scale_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit, 32-bit or float gray to mode L; Pillow's own conversion clips at 255.

    Integers from 0 to 65535 are scaled as 16-bit values, floats from 0 to 1 as fractions. Any other
    range is stretched so that its minimum becomes black and its maximum white.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    full_scale = 1.0 if image.mode == "F" else 65535.0
    if low >= 0 and high <= full_scale:
        low, high = 0.0, full_scale
    gray = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(gray).astype(np.uint8))
