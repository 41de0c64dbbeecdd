"""Training with two processes, started with torchrun as users do."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from showtell.model.config import TrainConfig
from showtell.model.runs.tensors import read_tensors
from showtell.model.train import train
from showtell.model.training import distributed as distributed_module
from showtell.model.training import trainer as trainer_module
from showtell.model.training.distributed import Group, ProcessLostError
from showtell.model.training.trainer import Trainer
from showtell.pipeline.stage.errors import StoppedError

PROGRAM = Path(__file__).parent / "torchrun_checks.py"
SIZES = {"hidden_size": 16, "embed_size": 16, "batch_size": 24, "epochs": 2, "ema": 0.9}
STOP = 12  # in the second epoch
OPTIONS = [word for name, size in SIZES.items() for word in (f"--{name.replace('_', '-')}", size)]


def make_config(data: Path, **options: object) -> TrainConfig:
    return TrainConfig(data=data, dataset="scenes", **(SIZES | options))


def torchrun(*words: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # Tests may run in parallel, and each process needs a core at most.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, "--nproc-per-node", "2", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


def own_lines(output: str) -> list[str]:
    """Return the errors that showtell printed, without the report of torchrun."""
    return [line for line in output.splitlines() if line.startswith("error:")]


def tensors_of(data: Path, run: str, name: str) -> dict[str, torch.Tensor]:
    return load_file(data / "runs" / run / f"{name}.safetensors")


def losses_of(data: Path, run: str) -> list[float]:
    lines = (data / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@dataclass
class Launch:
    """The data folder after torchrun_checks.py, what its two ranks have found, and its output."""

    data: Path
    found: list[dict[str, Any]]
    status: int
    output: str


@pytest.fixture(scope="module")
def launch(prepared_grids, build_once) -> Launch:
    """Launch two processes, once for all tests, even if several processes run them."""
    folder = build_once("launch", lambda folder: launch_in(folder, prepared_grids))
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    status, output = json.loads((folder / "ended.json").read_text())
    return Launch(folder / "data", found, status, output)


def launch_in(folder: Path, prepared_grids: Path) -> None:
    data = Path(shutil.copytree(prepared_grids, folder / "data"))
    take_step = Trainer.step_optimizer

    def receive(trainer: Trainer) -> None:
        take_step(trainer)
        if trainer.progress.step + 1 == STOP:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "try_to_draw_curves", lambda *_: None)
        train(make_config(data, run="one", dropout=0.0))
        patch.setattr(Trainer, "step_optimizer", receive)
        with pytest.raises(StoppedError):
            train(make_config(data, run="one-stopped"))
    with torchrun(PROGRAM, data, folder) as process:
        output, errors = process.communicate(timeout=600)
    assert all((folder / f"{rank}.json").exists() for rank in (0, 1)), output + errors
    (folder / "ended.json").write_text(json.dumps([process.returncode, output + errors]))


def test_summed_gradients_are_those_of_the_whole_batch(launch) -> None:
    for found in launch.found:
        assert len(found["gradients"]) == 9
        assert max(found["gradients"].values()) < 1e-6, found["gradients"]


def test_validation_images_are_captioned_in_order(launch) -> None:
    assert [found["validation"] for found in launch.found] == [True, True]


def test_only_the_first_process_writes(launch) -> None:
    assert launch.found[0]["written"]
    assert launch.found[1]["written"] == []


def test_two_processes_train_as_one(launch) -> None:
    assert launch.found[0]["counts"] == launch.found[1]["counts"]
    two, one = (losses_of(launch.data, run) for run in ("without-dropout", "one"))
    assert two == pytest.approx(one, rel=1e-4)


def test_signal_on_one_rank_stops_all_after_the_same_step(launch) -> None:
    for found in launch.found:
        assert "was stopped by SIGTERM at step 12." in found["stopped"]
        assert "Run 'torchrun --nproc-per-node 2 -m -- showtell train --run" in found["stopped"]


def test_resumed_run_has_the_weights_of_one_that_was_not_stopped(launch) -> None:
    for name in ("best", "last"):
        whole, resumed = (tensors_of(launch.data, run, name) for run in ("whole", "stopped"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    states = tensors_of(launch.data, "whole", "last")
    assert not torch.equal(states["rng.cpu"], states["rng.cpu.1"])  # other units are dropped


def test_run_is_resumed_with_another_number_of_processes(launch) -> None:
    assert launch.found[0]["one"] == launch.found[0]["counts"]  # resumed with two processes
    assert "at step 12" in launch.found[0]["two"]
    manifest = train(make_config(launch.data, run="two", resume=True))
    assert manifest.counts == launch.found[0]["counts"]


def test_other_data_on_another_machine_is_refused(launch) -> None:
    for found in launch.found:
        assert "The training data of process 1 differ" in found["differs"]


def test_error_at_the_start_is_printed_once(launch) -> None:
    assert launch.status == 1
    (line,) = own_lines(launch.output)
    assert "does not exist" in line and "showtell prepare" in line
    assert 'model/train.py", line' not in launch.output  # the only traceback is torchrun's


def find_rank(launcher: int, rank: int) -> int:
    """Return the id of the process that torchrun has started as a rank."""
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}".encode() in (
                (folder / "environ").read_bytes().split(b"\0")
            ):
                return int(folder.name)
        except (OSError, IndexError):
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_killed_process_ends_the_training_and_resume_continues(scenes) -> None:
    checkpoint = scenes / "runs/r/last.safetensors"
    options = ("--dataset", "scenes", *OPTIONS, "--epochs", 2000, "--save-every-s", 0.1)
    with torchrun(
        "-m", "--", "showtell", "train", "--data", scenes, "--run", "r", *options
    ) as process:
        for _ in range(3000):
            if checkpoint.exists():
                break
            time.sleep(0.1)
        os.kill(find_rank(process.pid, 1), signal.SIGKILL)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    (line,) = own_lines(output + errors)
    assert "a process of the training was lost" in line
    assert re.search(r"torchrun --nproc-per-node 2 -m -- showtell train --run r --resume", line)
    step = json.loads(read_tensors(checkpoint)[1]["progress"])["step"]
    assert step > 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError) as stopped:
        patch.setattr(Trainer, "step_optimizer", lambda _: os.kill(os.getpid(), signal.SIGINT))
        train(make_config(scenes, run="r", epochs=2000, resume=True))
    assert f"at step {step + 1}." in str(stopped.value)


def set_environment(patch: pytest.MonkeyPatch, rank: int = 0, size: int = 1) -> None:
    """Set the environment variables of torchrun."""
    environment = {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    for name, value in environment.items():
        patch.setenv(name, value)


def test_process_that_cannot_join_prints_the_reason(scenes, monkeypatch, showtell) -> None:
    def fail(*_: object, **__: object) -> Iterator[None]:
        raise RuntimeError("The client socket has timed out.\nframe #0: 0x1")
        yield

    set_environment(monkeypatch, rank=1, size=2)
    monkeypatch.setattr(distributed_module, "rendezvous", fail)
    status, output = showtell("train", "--data", scenes, "--dataset", "scenes")
    assert status == 1
    (line,) = own_lines(output)
    assert "process 1 of the training cannot reach the others: The client socket" in line
    assert "frame" not in line


def test_lost_process_is_reported_with_the_error_of_the_backend() -> None:
    expected = r"was lost: .* \(NCCL error: remote\)\. Run"
    with pytest.raises(ProcessLostError, match=expected), Group()._noticing_lost_processes():
        raise RuntimeError("NCCL error: remote.\nmore")


def test_one_process_of_torchrun_trains_the_same_weights(grid_scenes, monkeypatch) -> None:
    train(make_config(grid_scenes, run="alone", attention="soft", epochs=1))
    set_environment(monkeypatch)
    train(make_config(grid_scenes, run="group", attention="soft", epochs=1))
    alone, group = (tensors_of(grid_scenes, run, "last") for run in ("alone", "group"))
    assert alone.keys() == group.keys()
    assert all(torch.equal(alone[name], group[name]) for name in alone)
