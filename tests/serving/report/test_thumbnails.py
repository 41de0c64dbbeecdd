import io

import numpy as np
import pytest
from PIL import Image

from showtell.features.reading.transform import Transform
from showtell.pipeline.images.image_files import ImageFiles
from showtell.serving.report.thumbnails import encoded_box, make_thumbnails

MEAN = STD = (0.5, 0.5, 0.5)


def test_thumbnails_keep_the_shape_and_are_never_enlarged(tmp_path) -> None:
    Image.new("RGB", (640, 480), "red").save(tmp_path / "wide.jpg")
    Image.new("L", (50, 100)).save(tmp_path / "small.png")
    Image.new("RGBA", (1, 3000)).save(tmp_path / "line.png")
    names = ["wide.jpg", "small.png", "line.png"]
    wide, small, line = make_thumbnails(ImageFiles(tmp_path), names, size=320)
    assert (wide.width, wide.height) == (320, 240)
    assert (small.width, small.height) == (50, 100)
    assert (line.width, line.height) == (1, 320)
    with Image.open(io.BytesIO(wide.webp)) as image:
        assert image.format == "WEBP" and image.size == (320, 240)


def test_unreadable_images_cost_their_thumbnail_and_one_warning(tmp_path, capsys) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"not an image")
    a, b, c = make_thumbnails(ImageFiles(tmp_path), ["a.png", "b.jpg", "c.jpg"], size=320)
    assert a is not None and b is None and c is None
    errors = capsys.readouterr().err
    assert errors.count("warning:") == 1
    assert "2 of 3 images are not shown" in errors and "b.jpg: not an image" in errors


@pytest.mark.parametrize("resize_size", [64, 73, None])
@pytest.mark.parametrize("size", [(200, 100), (100, 300), (64, 64)])
def test_encoded_box_is_the_part_that_the_transform_cuts_out(size, resize_size) -> None:
    width, height = size
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([columns, rows, rows], 2).astype(np.uint8))
    transform = Transform(64, resize_size, "bilinear", MEAN, STD)
    red, green, _ = transform(image).astype(float) / 255
    expected = red[:, 0].mean(), green[0].mean(), red[:, -1].mean(), green[-1].mean()
    # The first pixel lies half a pixel inside the box.
    assert encoded_box(transform, width, height) == pytest.approx(expected, abs=0.02)
