import numpy as np
import pytest
from PIL import Image

from showtell.features.reading.transform import Transform
from showtell.features.reading.views import VIEWS

SQUASH = Transform(32, None, "bilinear", (0.5,) * 3, (0.5,) * 3)
CROP = Transform(32, 34, "bilinear", (0.5,) * 3, (0.5,) * 3)
SIZES = [(1, 1), (3, 7), (101, 57), (224, 224), (333, 500), (31, 300)]


def random_image(size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# For an image of 80×40: (left, top, right, bottom) in pixels and whether mirrored, of each view.
EXPECTED_VIEWS = [
    ((0, 0, 80, 40), False),
    ((0, 0, 80, 40), True),
    ((0, 0, 70, 35), False),
    ((10, 5, 80, 40), True),
    ((10, 0, 80, 35), False),
    ((0, 5, 70, 40), True),
]


@pytest.mark.parametrize("transform", [SQUASH, CROP], ids=["squash", "crop"])
def test_views_are_parts_of_the_image(transform):
    image = random_image((80, 40))
    for view, (box, mirrored) in zip(VIEWS, EXPECTED_VIEWS, strict=True):
        part = np.asarray(transform(image.crop(box))).astype(int)
        expected = part[:, :, ::-1] if mirrored else part
        # Resizing a box blends in pixels just outside it, resizing a crop does not.
        inner = slice(2, -2)
        pixels = transform(image, view).astype(int)
        assert np.array_equal(pixels[:, inner, inner], expected[:, inner, inner])


def test_box_of_a_squashed_view_may_have_fractional_pixels():
    image = random_image((83, 45))
    box = (83 / 8, 45 / 8, 83, 45)
    cut = image.resize((32, 32), Image.Resampling.BILINEAR, box=box)
    expected = np.asarray(cut)[:, ::-1].transpose(2, 0, 1)
    assert np.array_equal(SQUASH(image, VIEWS[3]), expected)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_mirrored_view_equals_the_view_of_the_mirrored_image(size):
    image = random_image(size)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(SQUASH(image, VIEWS[1]), SQUASH(mirrored))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_view_of_any_image_has_the_crop_size(size):
    for transform in (SQUASH, CROP):
        assert {transform(random_image(size), view).shape for view in VIEWS} == {(3, 32, 32)}
