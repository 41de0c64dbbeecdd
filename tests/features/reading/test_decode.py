import io

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from showtell.features.reading import decode
from showtell.features.reading.broken_images import READ_FAILED, UnreadableImageError
from showtell.features.reading.decode import decode_image, open_image, to_rgb
from showtell.features.reading.formats import BYTES_PER_PIXEL
from showtell.features.reading.transform import Transform

WHOLE = Transform(8, None, "bilinear", (0.5,) * 3, (0.5,) * 3)  # squashes to 8×8
CROPPED = Transform(8, 10, "bilinear", (0.5,) * 3, (0.5,) * 3)
RNG = np.random.default_rng(0)


def load(content: bytes, transform: Transform) -> np.ndarray:
    return transform(decode_image(content, transform))


def encode(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> Image.Image:
    blocks = RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size).convert(mode)


def color_of(content: bytes) -> list[int]:
    """Return the color of an image that has only one."""
    pixels = load(content, WHOLE)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    assert np.ptp(pixels.astype(int), axis=(1, 2)).max() <= 3
    return pixels[:, 4, 4].tolist()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_opaque_modes_are_converted_as_pillow_does(mode):
    image = noise(mode)
    expected = WHOLE(image.convert("RGB"))
    np.testing.assert_array_equal(WHOLE(to_rgb(image)), expected)


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("CMYK", "TIFF"), ("RGB", "WEBP")],
)
def test_files_of_every_mode_are_decoded(mode, format):
    options = {"lossless": True} if format == "WEBP" else {}
    image = noise(mode)
    pixels = load(encode(image, format, **options), WHOLE)
    np.testing.assert_array_equal(pixels, WHOLE(image.convert("RGB")))


def test_cmyk_jpeg_is_inverted():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan: red
    content = encode(image, "JPEG", quality=95)
    assert b"Adobe" in content  # so the samples are stored inverted
    red, green, blue = color_of(content)
    assert red > 245
    assert max(green, blue) < 10


def test_cmyk_tiff_is_not_inverted():
    assert color_of(encode(Image.new("CMYK", (9, 9), (255, 0, 0, 0)), "TIFF")) == [0, 255, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
def test_transparent_pixels_become_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert to_rgb(image).getpixel((1, 1)) == (255, 255, 255)


def test_palette_with_alpha_is_blended_with_white():
    image = Image.new("PA", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([(1, 0), (1, 255)])
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]


def test_half_transparent_black_becomes_gray():
    content = encode(Image.new("RGBA", (9, 9), (0, 0, 0, 128)), "PNG")
    assert color_of(content) == [127, 127, 127]


def test_transparent_palette_becomes_white():
    image = Image.new("P", (9, 9), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert color_of(encode(image, "PNG")) == [200, 100, 50]
    assert color_of(encode(image, "PNG", transparency=1)) == [255, 255, 255]
    assert color_of(encode(image, "PNG", transparency=b"\xff\x00")) == [255, 255, 255]
    assert color_of(encode(image, "GIF", transparency=1)) == [255, 255, 255]


def test_transparent_key_color_becomes_white():
    image = Image.new("RGB", (9, 9), (1, 2, 3))
    assert color_of(encode(image, "PNG", transparency=(1, 2, 3))) == [255, 255, 255]
    assert color_of(encode(Image.new("L", (9, 9), 5), "PNG", transparency=5)) == [255, 255, 255]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_16_bit_gray_is_scaled_not_clipped(format, value, expected):
    image = Image.fromarray(np.full((9, 9), value, np.uint16))
    assert color_of(encode(image, format)) == [expected] * 3


def test_32_bit_gray_of_16_bit_range_is_scaled_like_16_bit():
    values = np.linspace(0, 65535, 81).reshape(9, 9)
    deep = to_rgb(Image.fromarray(values.astype(np.int32)))
    assert deep.tobytes() == to_rgb(Image.fromarray(values.astype(np.uint16))).tobytes()


@pytest.mark.parametrize(("low", "high"), [(-5.0, 20.0), (0.0, 1e6), (0.0, 1.0)])
def test_float_tiff_spans_black_to_white(low, high):
    ramp = np.tile(np.linspace(low, high, 8, dtype=np.float32), (8, 1))
    pixels = load(encode(Image.fromarray(ramp), "TIFF"), WHOLE)
    expected = np.rint(np.linspace(0, 255, 8))
    np.testing.assert_allclose(pixels[0, 0], expected, atol=1)


def test_float_tiff_that_is_constant_or_not_finite_is_decoded():
    values = np.array([[np.nan, np.inf], [0.5, 0.5]], np.float32)
    assert load(encode(Image.fromarray(values), "TIFF"), WHOLE).max() == 128
    flat = Image.fromarray(np.full((4, 4), -7.0, np.float32))
    assert color_of(encode(flat, "TIFF")) == [0, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
    content = encode(noise(), format, exif=exif, **options)
    expected = CROPPED(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    np.testing.assert_array_equal(load(content, CROPPED), expected)


def test_exif_rotation_of_a_large_jpeg_agrees_with_rotated_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = noise(size=(160, 96))
    rotated = encode(image.transpose(Image.Transpose.ROTATE_270), "JPEG", quality=95)
    tagged = encode(image, "JPEG", quality=95, exif=exif)
    left, right = (load(c, CROPPED).astype(int) for c in (rotated, tagged))
    assert left.shape == (3, 8, 8)
    assert np.abs(left - right).mean() < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"II*\0\xff\xff\xff\xffgarbage", b"garbage!garbage!", b"II*\0"])
def test_malformed_exif_does_not_affect_the_pixels(exif):
    image = noise()
    content = encode(image, "JPEG", exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(load(content, WHOLE), load(encode(image, "JPEG"), WHOLE))


def test_large_jpeg_is_decoded_at_a_reduced_size_with_similar_pixels():
    image = noise(size=(640, 480))
    content = encode(image, "JPEG", quality=95)
    opened = decode_image(content, CROPPED)
    assert opened.size == (80, 60)  # 1/8, and not smaller than the resize to 10 pixels
    assert decode_image(content).size == (640, 480)
    whole = CROPPED(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert np.abs(load(content, CROPPED).astype(int) - whole).mean() < 3


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame(format):
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if format == "WEBP" else {}
    content = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert color_of(content) == [255, 0, 0]


@pytest.mark.parametrize("transform", [WHOLE, CROPPED])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_extreme_sizes_are_decoded(size, format, transform):
    content = encode(Image.new("RGB", size, (200, 200, 200)), format)
    np.testing.assert_allclose(load(content, transform), 200, atol=2)


def test_decoded_pixels_equal_a_plain_reading():
    image = noise(size=(20, 16))
    content = encode(image, "PNG")
    np.testing.assert_array_equal(load(content, CROPPED), CROPPED(image))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_truncated_files_are_unreadable(format):
    values = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encode(Image.fromarray(values), format)
    with pytest.raises(UnreadableImageError) as caught:
        load(content[: len(content) // 2], WHOLE)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, world", "not an image"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "."),
        (bytes(1000), "not an image"),
    ],
)
def test_content_that_is_not_an_image_is_unreadable(content, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        load(content, WHOLE)


def test_reasons_are_the_same_every_time():
    def reason() -> str:
        with pytest.raises(UnreadableImageError) as caught:
            load(b"not an image", WHOLE)
        return str(caught.value)

    assert reason() == reason()
    assert " at 0x" not in reason()


@pytest.mark.parametrize("pillow_limit", [None, 1000, 159, 1])
def test_image_with_too_many_pixels_is_unreadable(monkeypatch, pillow_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    content = encode(noise(size=(20, 16)), "PNG")
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(content, WHOLE, max_pixels=159)
    assert str(caught.value) == "has 320 pixels, more than --max-pixels 159"
    assert decode_image(content, WHOLE, max_pixels=320).size == (20, 16)


@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_of_a_jpeg_are_counted_at_the_size_in_memory(progressive):
    content = encode(noise(size=(640, 480)), "JPEG", progressive=progressive)
    num_pixels = 640 * 480 if progressive else 80 * 60
    assert open_image(content, CROPPED)[1] == num_pixels * BYTES_PER_PIXEL["JPEG"]
    decode_image(content, CROPPED, max_pixels=num_pixels)
    with pytest.raises(UnreadableImageError, match=f"has {num_pixels:,} pixels, more than"):
        decode_image(content, CROPPED, max_pixels=num_pixels - 1)


def float_image() -> Image.Image:
    return Image.fromarray(RNG.normal(size=(16, 20)).astype(np.float32))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RNG.integers(0, 2**16, (16, 20), dtype=np.uint16)),
        Image.fromarray(RNG.integers(-(2**31), 2**31, (16, 20)).astype(np.int32)),
        float_image(),
        Image.fromarray(RNG.integers(0, 256, (16, 20, 4), dtype=np.uint8)),
        Image.fromarray(RNG.integers(0, 256, (16, 20, 2), dtype=np.uint8)),
    ],
    ids=lambda image: image.mode,
)
def test_strips_do_not_change_the_pixels(image, monkeypatch):
    whole = to_rgb(image)
    monkeypatch.setattr(decode, "STRIP_PIXELS", 47)  # 2 rows
    assert to_rgb(image).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    "error", [RuntimeError("bad data"), AssertionError(), AttributeError("x"), RecursionError("r")]
)
def test_whatever_a_decoder_raises_makes_the_image_unreadable(error, monkeypatch):
    def fail(self) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(UnreadableImageError, match=str(error) or type(error).__name__):
        load(encode(noise(), "PNG"), WHOLE)


def test_image_for_which_memory_is_short_is_tried_again(monkeypatch):
    def fail(self) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(UnreadableImageError, match=f"^{READ_FAILED}: not enough memory"):
        load(encode(noise(), "PNG"), WHOLE)


def test_bug_in_the_conversion_is_not_hidden(monkeypatch):
    def fail(image: Image.Image) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(decode, "blend_with_white", fail)
    with pytest.raises(AssertionError, match="a bug"):
        load(encode(noise("RGBA"), "PNG"), WHOLE)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_truncated_anywhere_is_unreadable(share, options):
    values = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encode(Image.fromarray(values), "JPEG", **options)
    with pytest.raises(UnreadableImageError, match="truncated"):
        load(content[: int(len(content) * share)], WHOLE)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "MPO"])
def test_damaged_bytes_give_an_image_or_a_reason(format):
    for seed in range(50):
        rng = np.random.default_rng(seed)
        content = bytearray(encode(noise(), format))
        content[: rng.integers(5)] = b""
        for at in rng.integers(0, len(content), rng.integers(1, 20)):
            content[at] = rng.integers(0, 256)
        try:
            assert load(bytes(content), WHOLE).shape == (3, 8, 8)
        except UnreadableImageError as error:
            assert str(error)


def test_bug_in_the_transform_is_not_hidden(tmp_path):
    class Broken(Transform):
        def __call__(self, image):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        load(encode(noise(), "PNG"), Broken(8, None, "bilinear", (0.5,) * 3, (0.5,) * 3))
