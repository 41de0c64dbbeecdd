import os
from pathlib import Path

import pytest

from showtell.model.runs import find
from showtell.model.runs.find import choose_run, find_model, find_run, name_of_model
from showtell.model.runs.layout import BEST_NAME
from showtell.pipeline.stage.errors import DamagedFileError, MissingArtifactError
from showtell.pipeline.stage.manifest import Manifest


def make_runs(data: Path, *names: str) -> None:
    """Make empty weight files of runs, each newer than the one before."""
    for age, name in enumerate(names):
        path = data / "runs" / name / BEST_NAME
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(path, (1_700_000_000 + age, 1_700_000_000 + age))


def test_newest_run_is_that_with_the_newest_weights(tmp_path) -> None:
    make_runs(tmp_path, "b", "c", "a")
    (tmp_path / "runs" / "without-weights").mkdir()
    assert find_run(tmp_path, None) == tmp_path / "runs" / "a"


def test_run_is_found_by_name(tmp_path) -> None:
    make_runs(tmp_path, "b", "c", "a")
    assert find_run(tmp_path, "b") == tmp_path / "runs" / "b"


def test_unknown_run_is_an_error_that_lists_the_runs(tmp_path) -> None:
    make_runs(tmp_path, "b", "a")
    (tmp_path / "runs" / "c").mkdir()
    for name in ("c", "d"):
        with pytest.raises(MissingArtifactError) as caught:
            find_run(tmp_path, name)
        assert str(caught.value) == (
            f"{tmp_path / 'runs'} has no run '{name}' with weights (found: a, b). "
            f"Run 'showtell train --dataset NAME --data {tmp_path}' first, or name another "
            "folder with --data."
        )


def test_run_stopped_in_its_first_epoch_is_an_error_with_the_command(tmp_path) -> None:
    make_runs(tmp_path, "b")
    (tmp_path / "runs/c").mkdir()
    (tmp_path / "runs/c/last.safetensors").touch()
    with pytest.raises(
        MissingArtifactError, match=r"no weights yet .*train --run c --resume --data .*' first"
    ):
        find_run(tmp_path, "c")


def test_missing_runs_are_an_error_with_the_command(tmp_path) -> None:
    for name, what in ((None, "no run"), ("r", "no run 'r'")):
        with pytest.raises(MissingArtifactError) as caught:
            find_run(tmp_path / "nowhere", name)
        assert f"has {what} with weights (found none)" in str(caught.value)
        assert str(caught.value).endswith(
            f"'showtell train --dataset NAME --data {tmp_path}/nowhere' first, or name another "
            "folder with --data."
        )


def test_model_is_found_by_name_or_folder(tmp_path, monkeypatch) -> None:
    data, bundle, built_in = tmp_path / "data", tmp_path / "my bundle", tmp_path / "models"
    make_runs(data, "b", "a")
    for folder in (bundle, built_in / "flickr8k", built_in / "b"):
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    monkeypatch.setattr(find, "BUILT_IN", built_in)
    monkeypatch.chdir(tmp_path)
    for model, folder, name in (
        ("b", data / "runs/b", "b"),
        (data / "runs/b", data / "runs/b", "b"),
        ("data/runs/b/", data / "runs/b", "b"),
        ("my bundle", bundle, str(bundle)),
        ("flickr8k", built_in / "flickr8k", "flickr8k"),
        (None, data / "runs/a", "a"),
    ):
        assert find_model(data, model) == folder
        assert name_of_model(data, folder) == name
    assert find_model(tmp_path / "empty", None) == built_in / "flickr8k"
    for model in ("c", data, data / "runs/c"):
        with pytest.raises(MissingArtifactError, match=r"with weights \(found: a, b\)"):
            find_model(data, model)


def test_damaged_manifest_is_not_called_unfinished(tmp_path, capsys) -> None:
    make_runs(tmp_path, "r")
    choose_run(tmp_path, "r")
    assert "r is not finished" in " ".join(capsys.readouterr().err.split())
    Manifest("train", 1, {"dataset": "scenes"}, {}, {}).write(tmp_path / "runs/r")
    choose_run(tmp_path, "r")
    assert capsys.readouterr().err == ""
    (tmp_path / "runs/r/manifest.json").write_bytes(bytes(99))
    with pytest.raises(DamagedFileError, match=r"is damaged.* Run 'showtell train --run r --res"):
        choose_run(tmp_path, "r")


def test_broken_run_does_not_hide_others(tmp_path) -> None:
    make_runs(tmp_path, "r", "q")  # neither has a config
    assert find_run(tmp_path, "r", dataset="scenes") == tmp_path / "runs/r"
