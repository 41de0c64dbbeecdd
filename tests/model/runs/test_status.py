import errno
import io
import os
from pathlib import Path

import pytest

from showtell.model.runs.status import find_stages, show_status
from showtell.pipeline import status
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.stage import manifest
from showtell.pipeline.stage.checksums import checksum_of_file, checksums_of
from showtell.pipeline.stage.files import locked
from showtell.pipeline.stage.manifest import Manifest


@pytest.fixture(autouse=True)
def forget_hashes() -> None:
    """Clear the cached hashes, because these tests change files between commands."""
    status.hash_if_present.cache_clear()


def states_of(data: Path) -> dict[str, str]:
    status.hash_if_present.cache_clear()
    return {stage.stage: stage.state for stage in find_stages(data)}


def test_status_of_an_empty_folder_suggests_the_first_command(tmp_path, capsys) -> None:
    show_status(tmp_path)
    assert "is empty" in capsys.readouterr().out


def test_stages_are_done_or_missing(scenes, capsys) -> None:
    assert states_of(scenes) == {"download": "missing", "prepare": "done", "features": "done"}
    show_status(scenes)
    shown = capsys.readouterr().out
    assert "60 images" in shown and "512 feature dim" in shown


def test_changed_source_makes_prepare_stale(scenes) -> None:
    table = scenes / "scenes/raw/captions.csv"
    table.write_text(table.read_text() + "images/000001.jpg,one more caption,train\n")
    # Prepare the copy again first: its manifest still names the table of the original.
    from showtell.pipeline.prepare import prepare

    prepare(PrepareConfig(data=scenes, dataset="scenes", min_count=1))
    assert states_of(scenes)["prepare"] == "done"
    table.write_text(table.read_text() + "images/000002.jpg,and another,train\n")
    assert states_of(scenes)["prepare"] == "stale: captions.csv changed"


def test_changed_images_make_features_stale(scenes) -> None:
    from showtell.pipeline.prepare import prepare

    table = scenes / "scenes/raw/captions.csv"
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join(row for row in rows if "000001" not in row))
    prepare(PrepareConfig(data=scenes, dataset="scenes", min_count=1))
    assert states_of(scenes)["features"] == "stale: images.parquet changed"


def test_deleted_shard_makes_features_stale(scenes) -> None:
    next(scenes.glob("scenes/features/*/part-00000.h5")).unlink()
    assert states_of(scenes)["features"] == "stale: part-00000.h5 is missing"


def test_unfinished_run_is_stopped_or_running(scenes) -> None:
    run = scenes / "runs" / "half"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    assert states_of(scenes)["train"] == "missing"
    (run / "last.safetensors").write_bytes(b"")
    assert states_of(scenes)["train"].startswith("stopped")
    with locked(run):
        assert states_of(scenes)["train"] == "running"
    assert states_of(scenes)["train"].startswith("stopped")


def test_folders_that_hold_only_a_lock_are_not_listed(scenes) -> None:
    (scenes / "runs/half").mkdir(parents=True)
    (scenes / "runs/half/config.json").write_text("{}")
    folders = (
        "scenes/features/resnet50-IMAGENET1K_V1",
        "coco2014/raw",
        "runs/half/eval/test-beam7",
        "ensembles/a+b/eval/test-beam7",
    )
    for folder in folders:
        (scenes / folder).mkdir(parents=True)
        (scenes / folder / ".lock").touch()
    paths = {stage.path for stage in find_stages(scenes)}
    assert scenes / "runs/half" in paths
    assert not paths & {scenes / folder for folder in folders}


@pytest.mark.parametrize(
    ("stage", "path"),
    [
        ("prepare", "scenes/captions/manifest.json"),
        ("prepare", "scenes/captions/vocab.json"),
        ("features", "scenes/features/resnet18-random-64/manifest.json"),
        ("train", "runs/r/manifest.json"),
        ("train", "runs/r/best.safetensors"),
        ("train", "runs/r/config.json"),
        ("eval", "runs/r/eval/val-beam3/manifest.json"),
        ("eval", "runs/r/eval/val-beam3/captions.json"),
    ],
)
def test_damaged_and_unreadable_files_show_in_the_line_of_their_stage(
    scenes, monkeypatch, stage: str, path: str
) -> None:
    for name_of_stage, folder in (("train", "runs/r"), ("eval", "runs/r/eval/val-beam3")):
        (scenes / folder).mkdir(parents=True, exist_ok=True)
        names = ("config.json", "best.safetensors", "captions.json")
        for name in names:
            (scenes / folder / name).write_text("something")
        outputs = dict.fromkeys(names, 9)
        Manifest(
            name_of_stage,
            1,
            {"dataset": "scenes"},
            {},
            outputs,
            checksums=checksums_of(scenes / folder, names),
        ).write(scenes / folder)
    file = scenes / path
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert states_of(scenes)[stage] == f"damaged: {file.name}"
    real_open = io.open

    def fail(name: object, *args: object, **options: object) -> object:
        if str(name) == str(file):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(name))
        return real_open(name, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", fail)
    assert states_of(scenes)[stage] == f"unreadable: {file.name}: Input/output error"


def test_shard_of_another_size_shows_in_the_line_of_the_features(scenes) -> None:
    path = scenes / "scenes/features/resnet18-random-64/part-00001.h5"
    path.write_bytes(path.read_bytes()[:-1])
    assert states_of(scenes)["features"] == "damaged: part-00001.h5"


def test_status_reads_no_shard(scenes, monkeypatch) -> None:
    read = []

    def checksum(path: Path) -> str:
        read.append(path)
        return checksum_of_file(path)

    monkeypatch.setattr(manifest, "checksum_of_file", checksum)
    assert states_of(scenes)["features"] == "done"
    assert read and not any(path.name.startswith("part-") for path in read)
