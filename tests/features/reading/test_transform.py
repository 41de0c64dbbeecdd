import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode

from showtell.features.config import MAX_VIEWS
from showtell.features.reading.transform import VIEWS, Transform, caffe_transform, from_torchvision
from showtell.pipeline.stage.errors import ConfigError

PRESETS = [
    ImageClassification(crop_size=224, resize_size=256),
    ImageClassification(crop_size=224, resize_size=232),
    ImageClassification(crop_size=60, resize_size=67, interpolation=InterpolationMode.BICUBIC),
    ImageClassification(crop_size=96, resize_size=96, mean=(0.5, 0.4, 0.3), std=(0.2, 0.1, 0.3)),
]
SIZES = [(1, 1), (3, 7), (101, 57), (224, 224), (256, 256), (333, 500), (640, 427), (31, 300)]


def random_image(size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def normalise(pixels, transform):
    mean, std = (torch.tensor(v)[:, None, None] for v in (transform.mean, transform.std))
    return (torch.tensor(pixels).float() / 255 - mean) / std


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset.crop_size[0]}")
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_transform_equals_torchvisions_preset(preset, size):
    image = random_image(size)
    transform = from_torchvision(preset)
    pixels = transform(image)
    resized = functional.resize(image, preset.resize_size, preset.interpolation)
    cropped = functional.center_crop(resized, preset.crop_size)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, functional.pil_to_tensor(cropped).numpy())
    torch.testing.assert_close(normalise(pixels, transform), preset(image))


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2, 2001)])
def test_transform_of_a_thin_line_makes_only_what_it_crops(size, monkeypatch):
    preset = ImageClassification(crop_size=32, resize_size=36)
    image = random_image(size)
    expected = preset(image)
    made = []
    resize = Image.Image.resize

    def spy(self, size, *args, **options):
        made.append(size)
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    transform = from_torchvision(preset)
    pixels = transform(image)
    assert made == [(32, 32)]
    one_level = 1.01 / 255 / min(preset.std)
    torch.testing.assert_close(normalise(pixels, transform), expected, rtol=0, atol=one_level)


def test_transform_with_another_image_size_keeps_the_proportion():
    transform = from_torchvision(PRESETS[0], image_size=448)
    assert (transform.crop_size, transform.resize_size) == (448, 512)
    larger = ImageClassification(crop_size=448, resize_size=512)
    image = random_image((501, 400))
    torch.testing.assert_close(normalise(transform(image), transform), larger(image))
    assert from_torchvision(PRESETS[0], image_size=224) == from_torchvision(PRESETS[0])


def test_caffe_transform_squashes_the_whole_picture():
    image = Image.new("RGB", (300, 150), (255, 0, 0))
    image.paste((0, 0, 255), (150, 0, 300, 150))
    pixels = caffe_transform()(image)
    assert pixels.shape == (3, 224, 224)
    assert np.array_equal(pixels[:, :, :110], np.tile([[[255]], [[0]], [[0]]], (1, 224, 110)))
    assert np.array_equal(pixels[:, :, 114:], np.tile([[[0]], [[0]], [[255]]], (1, 224, 110)))


def test_caffe_transform_leaves_a_picture_of_its_size_alone():
    image = random_image((224, 224))
    assert np.array_equal(caffe_transform()(image), np.asarray(image).transpose(2, 0, 1))


def test_caffe_normalisation_is_kerass():
    transform = caffe_transform(image_size=32)
    pixels = transform(random_image((32, 32)))
    bgr = torch.tensor(pixels).float().flip(0)
    expected = bgr - torch.tensor([103.939, 116.779, 123.68])[:, None, None]
    torch.testing.assert_close(normalise(pixels, transform).flip(0), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (5000, 3000), (1, 5000), (90, 90)])
@pytest.mark.parametrize(
    "transform", [caffe_transform(), from_torchvision(PRESETS[0])], ids=["squash", "crop"]
)
def test_decode_size_is_never_below_the_resized_picture(transform, size):
    wanted = transform.decode_size(*size)
    assert wanted == transform.resized(*size)
    assert min(wanted) >= transform.crop_size


def test_decode_size_lets_the_jpeg_decoder_halve_a_large_picture(tmp_path):
    random_image((1200, 960)).save(tmp_path / "large.jpg")
    for transform, decoded in [
        (caffe_transform(), (300, 240)),  # 224×224 fits into a quarter
        (from_torchvision(PRESETS[0]), (600, 480)),  # 320×256 does not
    ]:
        with Image.open(tmp_path / "large.jpg") as image:
            image.draft("RGB", transform.decode_size(*image.size))
            assert image.size == decoded


def test_transform_roundtrips_through_json():
    for transform in (caffe_transform(), from_torchvision(PRESETS[2], image_size=90)):
        described = json.loads(json.dumps(transform.describe()))
        assert described == transform.describe()
        rebuilt = Transform(**described)
        assert rebuilt == transform
        assert hash(rebuilt) == hash(transform)


@pytest.mark.parametrize(("crop", "resize"), [(0, None), (0, 4), (9, 8)])
def test_transform_refuses_a_crop_that_cannot_be(crop, resize):
    with pytest.raises(ConfigError, match=f"crop_size={crop}, resize_size={resize}"):
        Transform(crop, resize, "bilinear", (0, 0, 0), (1, 1, 1))


# Picture of 80×40 → left, top, right, bottom in its pixels, and whether mirrored, of each view.
EXPECTED_VIEWS = [
    ((0, 0, 80, 40), False),
    ((0, 0, 80, 40), True),
    ((0, 0, 70, 35), False),
    ((10, 5, 80, 40), True),
    ((10, 0, 80, 35), False),
    ((0, 5, 70, 40), True),
]


@pytest.mark.parametrize(
    "transform", [caffe_transform(32), from_torchvision(PRESETS[3], 32)], ids=["squash", "crop"]
)
def test_views_are_the_pictures_parts(transform):
    image = random_image((80, 40))
    assert len(VIEWS) == MAX_VIEWS
    for view, (box, mirrored) in zip(VIEWS, EXPECTED_VIEWS, strict=True):
        part = np.asarray(transform(image.crop(box))).astype(int)
        expected = part[:, :, ::-1] if mirrored else part
        # Resizing within a box looks a little beyond the part's edge, a crop does not.
        inner = slice(2, -2)
        seen = transform(image, view).astype(int)
        assert np.array_equal(seen[:, inner, inner], expected[:, inner, inner])


def test_box_of_a_squashed_view_need_not_be_whole_pixels():
    image = random_image((83, 45))
    box = (83 / 8, 45 / 8, 83, 45)
    cut = image.resize((32, 32), Image.Resampling.BILINEAR, box=box)
    expected = np.asarray(cut)[:, ::-1].transpose(2, 0, 1)
    assert np.array_equal(caffe_transform(32)(image, VIEWS[3]), expected)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_mirrored_view_is_that_of_the_mirrored_picture(size):
    image = random_image(size)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    transform = caffe_transform(64)
    assert np.array_equal(transform(image, VIEWS[1]), transform(mirrored))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_view_of_any_picture_has_the_networks_size(size):
    for transform in (caffe_transform(32), from_torchvision(PRESETS[0], 32)):
        assert {transform(random_image(size), view).shape for view in VIEWS} == {(3, 32, 32)}
