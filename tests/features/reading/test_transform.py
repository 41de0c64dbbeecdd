import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode

from showtell.features.encoders.caffe import caffe_transform
from showtell.features.encoders.torchvision_models import transform_from_preset
from showtell.features.reading.decode import decode_image
from showtell.features.reading.transform import Transform
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


def normalize(pixels, transform):
    mean, std = (torch.tensor(v)[:, None, None] for v in (transform.mean, transform.std))
    return (torch.tensor(pixels).float() / 255 - mean) / std


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset.crop_size[0]}")
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_transform_equals_torchvisions_preset(preset, size):
    image = random_image(size)
    transform = transform_from_preset(preset)
    pixels = transform(image)
    resized = functional.resize(image, preset.resize_size, preset.interpolation)
    cropped = functional.center_crop(resized, preset.crop_size)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, functional.pil_to_tensor(cropped).numpy())
    torch.testing.assert_close(normalize(pixels, transform), preset(image))


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2, 2001)])
def test_transform_of_a_thin_line_resizes_only_the_crop(size, monkeypatch):
    preset = ImageClassification(crop_size=32, resize_size=36)
    image = random_image(size)
    expected = preset(image)
    made = []
    resize = Image.Image.resize

    def spy(self, size, *args, **options):
        made.append(size)
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    transform = transform_from_preset(preset)
    pixels = transform(image)
    assert made == [(32, 32)]
    one_level = 1.01 / 255 / min(preset.std)
    torch.testing.assert_close(normalize(pixels, transform), expected, rtol=0, atol=one_level)


def test_image_of_the_crop_size_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    transformed = caffe_transform()(Image.fromarray(pixels))
    np.testing.assert_array_equal(transformed, pixels.transpose(2, 0, 1))


def test_transform_with_another_crop_size_keeps_the_proportion():
    transform = transform_from_preset(PRESETS[0]).with_crop_size(448)
    assert (transform.crop_size, transform.resize_size) == (448, 512)
    larger = ImageClassification(crop_size=448, resize_size=512)
    image = random_image((501, 400))
    torch.testing.assert_close(normalize(transform(image), transform), larger(image))
    assert transform.with_crop_size(224) == transform_from_preset(PRESETS[0])


def test_large_jpeg_is_decoded_no_smaller_than_the_resized_image(tmp_path):
    random_image((1200, 960)).save(tmp_path / "large.jpg")
    content = (tmp_path / "large.jpg").read_bytes()
    for transform, decoded in [
        (caffe_transform(), (300, 240)),  # 224×224 fits into a quarter
        (transform_from_preset(PRESETS[0]), (600, 480)),  # 320×256 does not
    ]:
        assert decode_image(content, transform).size == decoded


def test_transform_roundtrips_through_json():
    for transform in (caffe_transform(), transform_from_preset(PRESETS[2]).with_crop_size(90)):
        described = json.loads(json.dumps(transform.describe()))
        assert described == transform.describe()
        rebuilt = Transform(**described)
        assert rebuilt == transform
        assert hash(rebuilt) == hash(transform)


@pytest.mark.parametrize(("crop", "resize"), [(0, None), (0, 4), (9, 8)])
def test_transform_refuses_an_invalid_crop(crop, resize):
    with pytest.raises(ConfigError, match=f"crop_size={crop}, resize_size={resize}"):
        Transform(crop, resize, "bilinear", (0, 0, 0), (1, 1, 1))
