"""Sweeps of tiny decoders on drawn scenes, in this process and in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from showtell import cli
from showtell.model.config import TrainConfig
from showtell.model.sweeps import worker
from showtell.model.sweeps.worker import Workers
from showtell.model.training import trainer as train_module
from showtell.model.training.memory import size_of_images
from showtell.pipeline.stage.errors import ShowTellError
from showtell.pipeline.stage.manifest import Manifest

pytest.importorskip("optuna")

Run = Callable[..., tuple[int, str]]
RunJson = Callable[..., tuple[int, Any]]
TINY = """
[train]
dataset = "scenes"
hidden-size = 8
embed-size = 8
batch-size = 64
"""


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Train in this process, without curves; returns the commands."""
    commands: list[str] = []

    def run(self: Workers, words: Sequence[str]) -> str | None:
        commands.append(" ".join(words))
        try:
            cli.app([*words, "--data", str(self.plan.data), "--quiet"], standalone_mode=False)
        except ShowTellError as error:
            return str(error)
        return None

    monkeypatch.setattr(Workers, "_run", run)
    monkeypatch.setattr(train_module, "try_to_draw_curves", lambda *_: None)
    return commands


def write_sweep(data: Path, content: str, train: str = TINY + "epochs = 1\n") -> Path:
    path = data / "tiny.toml"
    path.write_text(train + content, "utf-8")
    return path


def score_of(data: Path, run: str) -> float:
    manifest = Manifest.read(data / "runs" / run)
    assert manifest is not None
    return float(manifest.details["CIDEr"])


def test_sweep_ranks_settings_by_their_mean_over_seeds(
    scenes, trained, showtell_json: RunJson, showtell: Run
) -> None:
    path = write_sweep(scenes, '[grid]\ncell = ["gru", "rnn"]\nseed = [0, 1]\n')
    status, document = showtell_json("sweep", path, "--data", scenes)
    assert status == 0
    assert [len(setting["runs"]) for setting in document["settings"]] == [2, 2]
    means = [setting["mean"] for setting in document["settings"]]
    assert means == sorted(means, reverse=True)
    for setting in document["settings"]:
        cell = setting["options"]["cell"]
        one, other = (score_of(scenes, f"tiny-cell={cell}-seed={seed}") for seed in (0, 1))
        assert setting["mean"] == pytest.approx((one + other) / 2)
        assert setting["std"] == pytest.approx(abs(one - other) / 2**0.5)
    # Values that are added train only the new runs; finished ones are not touched.
    before = {path: path.stat().st_mtime_ns for path in scenes.glob("runs/*/*.safetensors")}
    assert len(trained) == 4
    write_sweep(scenes, '[grid]\ncell = ["gru", "rnn", "lstm"]\nseed = [0, 1]\n')
    status, output = showtell("sweep", path, "--data", scenes)
    assert status == 0
    assert [command.split()[2] for command in trained[4:]] == [
        "tiny-cell=lstm-seed=0",
        "tiny-cell=lstm-seed=1",
    ]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "±" in output
    assert "--cell lstm" in output
    # They are runs like all others.
    _, rows = showtell_json("runs", "tiny-cell=gru*", "--data", scenes)
    assert [row["run"] for row in rows] == ["tiny-cell=gru-seed=0", "tiny-cell=gru-seed=1"]
    assert all(row["state"] == "done" for row in rows)
    # Other fixed options belong to another sweep.
    path.write_text(path.read_text().replace("epochs = 1", "epochs = 2"))
    status, output = showtell("sweep", path, "--data", scenes)
    assert status == 1
    assert "was trained with --epochs 1, got 2. Rename" in output


def test_failed_run_is_listed_and_trained_again_by_the_same_command(
    scenes, trained, showtell_json: RunJson, showtell: Run, monkeypatch
) -> None:
    train = train_module.Trainer._train_epoch

    def fail(self: train_module.Trainer, log: Any) -> None:
        if self.config.seed == 1:
            raise ShowTellError("the disk is full.")
        train(self, log)

    path = write_sweep(scenes, "[grid]\nseed = [0, 1, 2]\n")
    with monkeypatch.context() as patch:
        patch.setattr(train_module.Trainer, "_train_epoch", fail)
        status, output = showtell("sweep", path, "--data", scenes)
    assert status == 1
    assert "2 of 3" in output
    assert "failed: tiny-seed=1: the disk is full." in output
    status, document = showtell_json("sweep", path, "--data", scenes)
    assert status == 0
    assert len(document["settings"][0]["runs"]) == 3
    assert [command.split()[2] for command in trained] == [f"tiny-seed={n}" for n in (0, 1, 2, 1)]


def test_search_continues_with_the_settings_that_it_has_chosen(
    scenes, trained, showtell_json: RunJson, showtell: Run
) -> None:
    search = "[search]\ntrials = {}\ndropout = {{ low = 0.1, high = 0.6 }}\n"
    path = write_sweep(scenes, search.format(1))
    _, first = showtell_json("sweep", path, "--data", scenes)
    _, output = showtell("sweep", path, "--data", scenes, "--dry-run", "-q")
    assert output.startswith("finished: tiny-dropout=0.")
    write_sweep(scenes, search.format(2) + "[grid]\nseed = [0]\n")  # renames the runs: all are new
    _, output = showtell("sweep", path, "--data", scenes, "--dry-run", "-q")
    assert output == "2 more runs with --dropout 0.1 to 0.6, chosen by TPE.\n"
    write_sweep(scenes, search.format(2))
    _, second = showtell_json("sweep", path, "--data", scenes)
    options = [setting["options"] for setting in second["settings"]]
    assert first["settings"][0]["options"] in options
    assert len(trained) == len(options) == 2
    assert options[0] != options[1]


def test_workers_share_the_memory_for_features(
    grid_scenes, trained, showtell: Run, monkeypatch
) -> None:
    [folder] = (grid_scenes / "scenes" / "features").iterdir()
    images, image_bytes = size_of_images(TrainConfig(data=grid_scenes, dataset="scenes"), folder)
    monkeypatch.setattr(worker, "memory_for_features", lambda: 2 * images * image_bytes)
    # Grids are larger than pooled features.
    path = write_sweep(grid_scenes, '[grid]\nattention = ["none", "soft"]\nseed = [0, 1]\n')
    assert showtell("sweep", path, "--data", grid_scenes, "--workers", 2)[0] == 0
    windows = {words.split()[2]: words.split()[-1] for words in trained}
    attention = {"none": "0", "soft": "64"}
    expected = {f"tiny-attention={a}-seed={s}": attention[a] for a in attention for s in (0, 1)}
    assert windows == expected
    assert all("--window" in words for words in trained)


def test_missing_features_are_one_line_before_anything_is_trained(
    scenes, trained, showtell: Run
) -> None:
    path = write_sweep(scenes, '[grid]\nattention = ["none", "soft"]\n')
    status, output = showtell("sweep", path, "--data", scenes)
    assert status == 1
    assert "has no grids, which --attention soft needs" in output
    path.write_text('[train]\ndataset = "other"\n[grid]\nseed = [0]\n')
    status, output = showtell("sweep", path, "--data", scenes, "--dry-run", "-q")
    assert status == 1
    assert "showtell prepare" in output
    assert trained == []


def test_ctrl_c_stops_the_trainings_with_checkpoints_and_the_same_command_continues(
    scenes, showtell_json: RunJson
) -> None:
    path = write_sweep(scenes, "[grid]\nseed = [0]\n", TINY + "epochs = 60\n")
    command = [sys.executable, "-m", "showtell", "sweep", str(path), "--data", str(scenes)]
    run_dir = scenes / "runs/tiny-seed=0"

    def start() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=start)
    deadline = time.monotonic() + 120
    while not (run_dir / "best.safetensors").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.count("\n") == 1
    assert "The sweep was stopped by SIGINT" in errors
    assert (run_dir / "last.safetensors").exists()
    assert not (run_dir / "manifest.json").exists()
    steps = len((run_dir / "metrics.jsonl").read_bytes().splitlines())
    status, document = showtell_json("sweep", path, "--data", scenes)
    assert status == 0
    assert document["settings"][0]["mean"] == score_of(scenes, "tiny-seed=0")
    records = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(records) > steps
    epochs = [record["epoch"] for record in records if "epoch" in record]
    assert epochs == list(range(1, len(epochs) + 1))
