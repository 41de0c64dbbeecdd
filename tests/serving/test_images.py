import numpy as np
import pytest
import torch
from PIL import Image

from showtell.features.reading.transform import Transform
from showtell.pipeline.stage.errors import (
    DatasetError,
)
from showtell.serving.images import find_images, read_image


def test_find_images_sorts_a_folder_by_name(folder) -> None:
    assert list(find_images([folder])) == [
        folder / name for name in ("a/c.png", "a.png", "b.png", "d.PNG")
    ]


def test_find_images_keeps_the_order_of_arguments(folder) -> None:
    given = [folder / "d.PNG", folder / "a", folder / "notes.txt"]
    assert list(find_images(given)) == [
        folder / "d.PNG",
        folder / "a" / "c.png",
        folder / "notes.txt",  # whatever is named is tried
    ]


def test_photographs_that_cannot_be_read_are_counted(folder, capsys) -> None:
    before = list(find_images([folder]))
    for name in ("IMG_1.HEIC", "a/IMG_2.heic", "x.nef", ".y.heic"):
        (folder / name).touch()
    assert list(find_images([folder])) == before
    warnings = " ".join(capsys.readouterr().err.split())
    assert "2 .heic files left out" in warnings
    assert "1 .nef file left out" in warnings


def test_find_images_leaves_out_hidden_and_generated_files(folder) -> None:
    before = list(find_images([folder]))
    for name in (".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir", "a/.cache"):
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "x.jpg").touch()
        (folder / name / "x.png").touch()
    for name in ("Thumbs.db", "._b.png", ".DS_Store"):
        (folder / name).touch()
    assert list(find_images([folder])) == before
    hidden = folder / ".thumbnails"
    assert list(find_images([hidden])) == [hidden / "deep/x.jpg", hidden / "x.png"]


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "JPEG", "tif", "webp"])
def test_find_images_knows_the_suffix(tmp_path, suffix: str) -> None:
    (tmp_path / f"x.{suffix}").touch()
    assert list(find_images([tmp_path])) == [tmp_path / f"x.{suffix}"]


def test_find_images_follows_links_to_folders_and_their_loops_end(folder, tmp_path) -> None:
    before = list(find_images([folder]))
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.jpg").touch()
    (folder / "0-linked").symlink_to(other)
    (folder / "again").symlink_to(other)  # each folder once
    (folder / "0-same").symlink_to(folder / "a")
    (folder / "a" / "loop").symlink_to(folder)
    (other / "back").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "file.png").symlink_to(other / "x.jpg")
    found = [folder / "0-linked" / "x.jpg", *before, folder / "file.png"]
    assert list(find_images([folder])) == sorted(found)


def test_folder_without_images_is_refused(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(DatasetError) as caught:
        list(find_images([tmp_path]))
    assert str(caught.value).startswith(
        f"{tmp_path} contains no images (.avif, .bmp, .gif, .j2k, .jfif,"
    )


SQUARE = Transform(8, None, "bilinear", (0.5,) * 3, (0.5,) * 3)


def test_every_source_gives_the_same_pixels(tmp_path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image, path = Image.fromarray(values), tmp_path / "image.png"
    image.save(path)
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image, values]
    for source in [*sources, values[::-1][::-1], tensor, tensor.contiguous()]:
        assert np.array_equal(np.asarray(read_image(source, SQUARE)), values)


def test_arrays_with_one_or_four_channels_are_converted() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    expected = np.stack([grey] * 3, -1)
    opaque = np.concatenate([expected, np.full((20, 30, 1), 255, np.uint8)], -1)
    for source in (grey, grey[..., None], torch.from_numpy(grey)[None], opaque):
        assert np.array_equal(np.asarray(read_image(source, SQUARE)), expected)


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 5, 3)),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
        torch.zeros(2, 5, 3, dtype=torch.uint8),
        torch.zeros(3, 4, 5),
        None,
        7,
        object(),
    ],
    ids=lambda source: f"{type(source).__name__}{getattr(source, 'shape', '')}",
)
def test_other_values_are_refused(source: object) -> None:
    with pytest.raises(DatasetError, match=r"An image must be a path, bytes, .* got") as caught:
        read_image(source, SQUARE)
    assert "\n" not in str(caught.value)


def test_unreadable_bytes_and_images_are_named(tmp_path) -> None:
    with pytest.raises(DatasetError, match=r"The image of 3 bytes is not a readable image: "):
        read_image(b"abc", SQUARE)
    with pytest.raises(DatasetError, match="is not a readable image: the file is empty"):
        read_image(b"", SQUARE)
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        read_image(tmp_path, SQUARE)


def test_endless_and_huge_files_are_refused(tmp_path):
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(3 << 30)
    for path, reason in [("/dev/zero", "regular file"), (tmp_path / "sparse.jpg", "3,221,22")]:
        with pytest.raises(DatasetError, match=reason):
            read_image(path, Transform(8, None, "bilinear", (0.5,) * 3, (0.5,) * 3))
