import os
from pathlib import Path

import pytest

from showtell.pipeline.stage.errors import DatasetError, StorageError
from showtell.serving.sidecar import Sidecars


@pytest.mark.parametrize(
    ("if_exists", "expected"),
    [
        ("skip", "By hand."),
        ("overwrite", "a dog\na cat\n"),
        ("append", "By hand.\na dog\na cat\n"),
    ],
)
def test_existing_text_is_treated_as_asked(tmp_path, if_exists: str, expected: str) -> None:
    image, text = str(tmp_path / "1.jpg"), tmp_path / "1.txt"
    text.write_text("By hand.")
    for _ in range(2):  # a run that was stopped is repeated
        Sidecars(".txt", if_exists).write(image, ["a dog", "a cat"])
        assert text.read_text() == expected
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("if_exists", ["skip", "overwrite", "append"])
def test_missing_and_empty_texts_are_written(tmp_path, if_exists: str) -> None:
    sidecars = Sidecars(".caption", if_exists)
    (tmp_path / "2.caption").touch()  # left by a full disk, or by a power cut
    for name in ("1.jpg", "2.jpg", "photo.v1.png", f"{'é' * 123}.jpg"):
        image = str(tmp_path / name)
        assert not sidecars.exists(image)
        sidecars.write(image, ["a dog"])
        assert sidecars.exists(image)
        assert Path(image).with_suffix(".caption").read_text() == "a dog\n"


def test_append_keeps_other_encodings_and_line_ends(tmp_path) -> None:
    text = tmp_path / "1.txt"
    text.write_bytes(b"caf\xe9\r\n\r\nlast")
    Sidecars(".txt", "append").write(str(tmp_path / "1.jpg"), ["a dog"])
    assert text.read_bytes() == b"caf\xe9\r\n\r\nlast\na dog\n"


def test_images_that_share_a_text_file_are_refused(tmp_path) -> None:
    sidecars = Sidecars(".txt", "skip")
    images = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "x/a.png")]
    sidecars.require_writable([*images, images[0], f"{tmp_path}/x/../a.jpg"])
    with pytest.raises(DatasetError, match=r"a\.jpg and .*a\.png would both have .*a\.txt"):
        sidecars.require_writable([*images, str(tmp_path / "a.png")])


def test_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path))
    (tmp_path / "locked").mkdir()
    sidecars = Sidecars(".txt", "skip")
    sidecars.require_writable([str(tmp_path / "a.jpg"), str(tmp_path / "nosuch" / "a.jpg")])
    with pytest.raises(StorageError, match=r"locked cannot be written.*--output"):
        sidecars.require_writable([str(tmp_path / "a.jpg"), str(tmp_path / "locked/a.jpg")])


def test_text_that_cannot_be_written_is_an_error(tmp_path) -> None:
    (tmp_path / "1.txt").mkdir()
    with pytest.raises(StorageError, match=r"1\.txt could not be written"):
        Sidecars(".txt", "overwrite").write(str(tmp_path / "1.jpg"), ["a dog"])
    with pytest.raises(StorageError, match=r"1\.txt cannot be read: Is a directory"):
        Sidecars(".txt", "append").write(str(tmp_path / "1.jpg"), ["a dog"])
