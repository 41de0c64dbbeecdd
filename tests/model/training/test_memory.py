"""The choice between all features in memory and windows of them."""

import json

import pytest

from showtell.features.pooled_files import PooledFiles
from showtell.model.config import TrainConfig
from showtell.model.train import train
from showtell.model.training import memory as memory_module
from showtell.model.training.data import load_features
from showtell.model.training.memory import choose_window, size_of_images

SMALL = {"hidden_size": 8, "embed_size": 8, "batch_size": 8, "epochs": 1}


def make_config(data, **options: object) -> TrainConfig:
    return TrainConfig(data=data, dataset="scenes", run="r", **(SMALL | options))


def limit(monkeypatch, num_bytes: int) -> None:
    monkeypatch.setattr(memory_module, "memory_for_features", lambda _: num_bytes)


def features_bytes(data) -> tuple[int, int]:
    [directory] = (data / "scenes" / "features").iterdir()
    return size_of_images(make_config(data), directory)


def test_features_that_fit_are_shuffled_together(scenes, capsys) -> None:
    config = choose_window(make_config(scenes), scenes / "runs" / "r")
    assert config.window is None
    assert "all captions are shuffled together" in capsys.readouterr().out


@pytest.mark.parametrize("num_processes", [1, 2])
def test_windows_take_half_of_the_memory_of_a_process(
    scenes, capsys, monkeypatch, num_processes: int
) -> None:
    monkeypatch.setattr(memory_module, "MIN_WINDOW", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))
    num_images, image_bytes = features_bytes(scenes)
    limit(monkeypatch, num_images * image_bytes - 1)
    config = choose_window(make_config(scenes), scenes / "runs" / "r")
    assert 0.9 * num_images / 2 / num_processes - 1 < config.window < num_images / 2 / num_processes
    assert f"windows of {config.window} of the {num_images} images" in capsys.readouterr().out


def test_run_keeps_its_window_when_the_memory_changes(scenes, capsys, monkeypatch) -> None:
    monkeypatch.setattr(memory_module, "MIN_WINDOW", 5)
    limit(monkeypatch, 1)
    manifest = train(make_config(scenes))
    saved = json.loads((scenes / "runs" / "r" / "config.json").read_text())
    assert saved["train"]["window"] == manifest.config["window"] == 5
    limit(monkeypatch, 1 << 40)
    assert train(make_config(scenes)) == manifest
    assert train(make_config(scenes, resume=True)) == manifest
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(("window", "is_mapped"), [(None, False), (0, False), (7, True)])
def test_features_stay_in_their_files_if_windows_take_the_memory(
    scenes, window: int | None, is_mapped: bool
) -> None:
    store = load_features(make_config(scenes, window=window))
    assert isinstance(store.pooled, PooledFiles) == is_mapped


def test_machine_with_the_least_memory_decides(grid_scenes, capsys) -> None:
    config = make_config(grid_scenes, attention="soft")
    assert choose_window(config, grid_scenes / "runs" / "r", available=1 << 20).window == 64
    assert "1.0 MB available: captions are shuffled in windows" in capsys.readouterr().out


def test_given_window_is_kept(scenes) -> None:
    for window in (0, 7):
        config = make_config(scenes, window=window)
        assert choose_window(config, scenes / "runs" / "r") == config
