from pathlib import Path

import pytest

from showtell.model.scoring.images import find_images
from showtell.model.scoring.pairs import Pairs
from showtell.pipeline.stage.errors import DatasetError, MissingArtifactError


def make_pairs(*names: str | None) -> Pairs:
    ids = tuple(range(7, 7 + len(names)))
    return Pairs(ids, ("a",) * len(names), (("b",),) * len(names), names, 0)


def test_names_are_looked_up_with_and_without_folders(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    images = find_images(tmp_path, make_pairs("photos/a.jpg", "sub/b.jpg", "/x/a.jpg", "a.jpg"))
    found = [images.files.read(images.names[row]).decode() for row in range(4)]
    assert found == ["a.jpg", "sub/b.jpg", "a.jpg", "a.jpg"]


def test_missing_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DatasetError, match=r"has no file b.jpg for image 8\."):
        find_images(tmp_path, make_pairs("a.jpg", "x/b.jpg"))
    with pytest.raises(DatasetError, match="cannot find image 8, because its file name is unknown"):
        find_images(tmp_path, make_pairs("a.jpg", None))
    with pytest.raises(MissingArtifactError, match=r"--images .*a.jpg is not a folder"):
        find_images(tmp_path / "a.jpg", make_pairs("a.jpg"))
