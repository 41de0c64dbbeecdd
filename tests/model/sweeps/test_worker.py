import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from showtell.model.sweeps import worker
from showtell.model.sweeps.plan import Plan
from showtell.model.sweeps.worker import Workers, find_reason, read_outcome, train_words
from showtell.pipeline.stage.manifest import Manifest

from .test_plan import GRID, plan_of

SLOW_PROGRAM = """
import time
from pathlib import Path
from showtell.pipeline.stage.signals import stop_when_stdin_closes
stop_when_stdin_closes()
Path("started").touch()
time.sleep(60)
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    return plan_of(tmp_path, GRID + "seed = [0, 1]\ntie-embeddings = [false]\n")


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 30
    while not Path(path).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_command_has_the_options_that_the_file_gives(plan: Plan) -> None:
    words = "train --run sweep-tie-embeddings=false-seed=0 --dataset scenes"
    expected = f"{words} --no-tie-embeddings --seed 0"
    assert train_words(plan, {"tie_embeddings": False, "seed": 0}, 0) == expected.split()


def test_stopped_run_is_continued_with_the_options_in_its_folder(tmp_path) -> None:
    plan = plan_of(tmp_path, '[train]\ndevice = "cpu"\nepochs = 3\n[grid]\nseed = [0]\n')
    run_dir = plan.run_dir({"seed": 0})
    run_dir.mkdir(parents=True)
    (run_dir / "last.safetensors").touch()
    expected = "train --run sweep-seed=0 --resume --device cpu"
    assert train_words(plan, {"seed": 0}, 0) == expected.split()


def test_score_of_one_val_image_is_bleu(plan: Plan, monkeypatch) -> None:
    manifest = Manifest(
        stage="train", version=1, config={}, inputs={}, outputs={},
        counts={"best_epoch": 2, "num_epochs": 3}, details={"Bleu_4": 0.25, "run": {}},
    )  # fmt: skip
    monkeypatch.setattr(worker, "find_finished", lambda _: manifest)
    assert read_outcome(plan, {"seed": 0}).score == 0.25


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("import os; os.kill(os.getpid(), 9)", "it was ended by SIGKILL; there may not be enough"),
        ("import os; os.abort()", "it was ended by SIGABRT"),
        ("import sys; sys.exit('warning: w\\nerror: the reason.\\nmore')", "the reason."),
        ("raise ValueError('a bug')", "ValueError: a bug"),
        ("raise SystemExit(7)", "exit status 7"),
    ],
)
def test_training_that_fails_says_why(plan: Plan, monkeypatch, program: str, problem: str) -> None:
    monkeypatch.setattr(worker, "PROGRAM", program)
    with Workers(plan, 1, []) as workers:
        outcome = workers.train({"seed": 0, "tie_embeddings": False})
    assert outcome.run == "sweep-tie-embeddings=false-seed=0"
    assert outcome.score is None
    assert (outcome.problem or "").startswith(problem)


def test_reason_is_never_empty() -> None:
    assert find_reason(3, "") == "exit status 3"


def test_workers_share_the_threads_and_the_gpus(plan: Plan, monkeypatch) -> None:
    program = "import os, sys; sys.exit(f\"error: {os.environ['OMP_NUM_THREADS']} {sys.argv}\")"
    monkeypatch.setattr(worker, "PROGRAM", program)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with Workers(plan, 3, []) as workers:
        values = {"seed": 0, "tie_embeddings": False}
        problems = [workers.train(values).problem or "" for _ in range(3)]
    assert [problem[:2] for problem in problems] == ["2 "] * 3
    assert [f"'--device', 'cuda:{n}'" in p for n, p in zip((0, 1, 0), problems, strict=True)]


def test_signal_stops_a_training_and_starts_no_other(plan: Plan, monkeypatch) -> None:
    monkeypatch.setattr(worker, "PROGRAM", "import os; os.kill(os.getppid(), 10)" + SLOW_PROGRAM)
    signals = list[signal.Signals]()
    previous = signal.signal(signal.SIGUSR1, lambda *_: signals.append(signal.SIGINT))
    try:
        with Workers(plan, 1, signals) as workers:
            started = time.monotonic()
            assert workers.train({"seed": 0, "tie_embeddings": False}).problem is None
            assert signals
            assert workers.train({"seed": 1, "tie_embeddings": False}).problem is None
        assert time.monotonic() - started < 30
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_training_ends_if_the_process_that_started_it_is_killed(tmp_path) -> None:
    reader, writer = os.pipe()
    program = subprocess.Popen([sys.executable, "-c", SLOW_PROGRAM], stdin=reader, cwd=tmp_path)
    os.close(reader)
    wait_for(str(tmp_path / "started"))
    os.close(writer)  # as the kernel does when the writer is killed
    assert program.wait(30) == -signal.SIGTERM
