import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from showtell.serving.outputs import Outputs
from showtell.serving.results import Caption
from showtell.serving.sidecar import Sidecars
from showtell.serving.stream import CaptionedImage


@pytest.fixture
def images(tmp_path) -> list[str]:
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg", "sub/c.jpg")]
    (tmp_path / "sub").mkdir()
    for path in paths:
        path.write_bytes(b"pixels")
    return list(map(str, paths))


def opened(
    table: Path | None, suffix: str | None = None, if_exists: str = "skip"
) -> AbstractContextManager[Outputs]:
    sidecars = Sidecars(suffix, if_exists) if suffix else None
    return Outputs.open(table, sidecars, "gru@1234", "beam3")


def run(outputs: AbstractContextManager[Outputs], images: list[str], text: str) -> list[str]:
    """Caption the missing images, as the command does, and return them."""
    with outputs as opened_outputs:
        missing = opened_outputs.find_missing(images)
        if missing:
            opened_outputs.start()
            captions = (Caption(text, -1, -1),)
            opened_outputs.write([CaptionedImage(image, captions) for image in missing])
        opened_outputs.finish()
        return missing


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_table_continues_with_missing_and_changed_images(tmp_path, images, suffix: str) -> None:
    table = tmp_path / f"captions.{suffix}"
    assert run(opened(table), images[:1], "x") == images[:1]
    assert run(opened(table), images, "x") == images[1:]
    assert run(opened(table), images, "x") == []
    os.utime(images[1], ns=(1, 1))
    assert run(opened(table), images, "x") == [images[1]]
    Path(images[0]).unlink()  # its row stays
    assert run(opened(table), images[1:], "x") == []


def test_text_files_that_exist_are_skipped(tmp_path, images) -> None:
    (tmp_path / "b.txt").write_text("By hand.\n")
    assert run(opened(None, ".txt"), images, "x") == [images[0], images[2]]
    assert run(opened(None, ".txt"), images, "x") == []
    assert (tmp_path / "b.txt").read_text() == "By hand.\n"


@pytest.mark.parametrize("if_exists", ["overwrite", "append"])
def test_text_files_are_written_again_unless_a_table_has_the_image(
    tmp_path, images, if_exists: str
) -> None:
    table = tmp_path / "captions.csv"
    assert run(opened(None, ".txt", if_exists), images, "x") == images
    assert run(opened(None, ".txt", if_exists), images, "y") == images
    assert run(opened(table, ".txt", if_exists), images[:2], "z") == images[:2]
    assert run(opened(table, ".txt", if_exists), images, "z") == [images[2]]
    text = (tmp_path / "a.txt").read_text()
    assert text == ("z\n" if if_exists == "overwrite" else "x\ny\nz\n")


def test_table_gives_its_captions_to_missing_text_files(tmp_path, images) -> None:
    table = tmp_path / "captions.parquet"
    run(opened(table), images, "from the table")
    (tmp_path / "b.txt").write_text("By hand.\n")
    assert run(opened(table, ".txt"), images, "another") == []
    texts = [Path(image).with_suffix(".txt").read_text() for image in images]
    assert texts == ["from the table\n", "By hand.\n", "from the table\n"]


def test_kill_between_text_file_and_row_loses_nothing(tmp_path, images) -> None:
    (tmp_path / "a.txt").write_text("x\n")  # written, but not in the table yet
    table = tmp_path / "captions.csv"
    for if_exists in ("skip", "append"):
        table.unlink(missing_ok=True)
        assert run(opened(table, ".txt", if_exists), images, "x") == images
        assert (tmp_path / "a.txt").read_text() == "x\n"


def test_image_given_twice_is_captioned_once(tmp_path, images, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["b.jpg", *images, "./a.jpg"]
    for outputs in (opened(tmp_path / "captions.csv"), opened(None, ".txt")):
        assert run(outputs, given, "x") == ["b.jpg", images[0], images[2]]


def test_unreadable_images_are_tried_again(tmp_path, images) -> None:
    table = tmp_path / "captions.jsonl"
    with opened(table, ".txt") as outputs:
        outputs.find_missing(images)
        outputs.start()
        outputs.write([CaptionedImage(images[0], error="broken")])
    assert not (tmp_path / "a.txt").exists()
    assert run(opened(table, ".txt"), images, "x") == images
