"""Commands in processes of their own, stopped by signals at several moments."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIMIT_S = 5.0  # the limit is 2 s, but tests run in parallel; `tests/chaos/stops.py` checks it

SLOW_COMMAND = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from showtell.pipeline.stage import signals

class Interrupted:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)  # what is raised in a destructor is lost

def work():
    kind = sys.argv[1]
    if kind == "java":
        signals.start_program(["sleep", "60"])
        with ThreadPoolExecutor(1) as pool:  # its exit waits for the program to end
            done = pool.submit(signals.run_program, ["sleep", "60"], 60.0)
            print("ready", flush=True)
            done.result()
    if kind == "destructor":
        Interrupted()
    if kind == "unwinding":
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            time.sleep(60)
    return 0

signals.run_stoppable(work)
"""


def start(*command: object) -> "subprocess.Popen[str]":
    """Start a command in a session of its own, in which Ctrl-C is not ignored."""

    def handle_signals() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=handle_signals,
    )


def session_of(process: "subprocess.Popen[str]") -> list[str]:
    """Return the names of the processes that a command has left behind."""
    names = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, session = rest.split()[0], int(rest.split()[3])
        if session == process.pid and state != "Z":
            names.append(name)
    return names


def stop(process: "subprocess.Popen[str]", number: int, *, group: bool = False) -> str:
    """Send a signal; check exit status, time and children, and return the only line of stderr."""
    before = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - before < LIMIT_S
    assert process.returncode == 128 + number, errors
    lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), errors
    assert signal.Signals(number).name in lines[0]
    before = time.monotonic()
    while session_of(process) and time.monotonic() - before < 1:
        time.sleep(0.02)
    assert session_of(process) == []
    return lines[0]


@pytest.mark.parametrize("kind", ["java", "destructor", "unwinding"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signal_ends_whatever_hangs_with_its_children(kind: str, number: int) -> None:
    with start("-c", SLOW_COMMAND, kind) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        line = stop(process, number, group=kind == "java")
    assert line.endswith("Run the same command again: finished work is kept.")


def test_signal_ends_the_imports(tmp_path: Path) -> None:
    for number in SIGNALS:
        with start("-X", "importtime", "-m", "showtell", "status", "--data", tmp_path) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.endswith("pipeline.stage.signals\n"):
                    break
            time.sleep(0.05)
            os.kill(process.pid, number)
            errors = [line for line in process.stderr if not line.startswith("import time:")]
            assert process.wait() == 128 + number
        assert len(errors) == 1 and signal.Signals(number).name in errors[0]


@pytest.fixture
def commands(scenes: Path, random_weights: Path) -> Callable[[str], list[object]]:
    """Return the arguments of a command that takes long enough to be stopped."""
    arguments: dict[str, list[object]] = {
        "download": ["download", "--dataset", "scenes", "--data", scenes / "new"],
        "features": [
            *("features", "--dataset", "scenes", "--encoder", "resnet18", "--image-size", 512),
            *("--weights", random_weights, "--views", 6, "--num-workers", 2),
        ],
        "train": ["train", "--dataset", "scenes", "--run", "r", "--epochs", 1000],
    }

    def find(name: str) -> list[object]:
        found = arguments[name]
        return ["-m", "showtell", *found, *([] if "--data" in found else ["--data", scenes])]

    return find


def wait_for(process: "subprocess.Popen[str]", folder: Path, pattern: str) -> None:
    """Wait until a command has written a file."""
    before = time.monotonic()
    while not any(folder.glob(pattern)):
        assert process.poll() is None and time.monotonic() - before < 60
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "number", "written"),
    [
        ("download", signal.SIGINT, "new/scenes/raw/images/*"),
        ("features", signal.SIGTERM, "scenes/features/*-512/.lock"),
        ("train", signal.SIGTERM, "runs/r/best.safetensors"),
    ],
)
def test_signal_ends_a_stage_at_work(commands, scenes, name: str, number: int, written) -> None:
    with start(*commands(name)) as process:
        wait_for(process, scenes, written)
        line = stop(process, number, group=True)
    if name == "train":
        assert "--resume" in line and (scenes / "runs/r/last.safetensors").exists()
