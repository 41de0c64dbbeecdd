"""Train one run of a sweep with `showtell train`, in a process of its own."""

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from ...features.store import find_features
from ...pipeline.stage.command_line import command_line, words_of
from ...pipeline.stage.errors import ShowTellError
from ...pipeline.stage.files import is_locked
from ...pipeline.stage.memory import memory_for_features
from ...pipeline.stage.signals import start_program
from ..config import TrainConfig
from ..runs.repair import has_started
from ..training.memory import fit_window, size_of_images
from ..training.resume import find_finished
from ..training.source import inherit_options
from .plan import OPTIONS, Plan, Values

POLL_S = 0.1
# Ctrl-C must reach only the sweep, so a training has a session of its own. If the sweep is killed,
# stdin closes, and the training stops with a checkpoint.
PROGRAM = (
    "from showtell.pipeline.stage.signals import stop_when_stdin_closes\n"
    "stop_when_stdin_closes()\n"
    "from showtell.__main__ import main\n"
    "main()\n"
)


@dataclass(frozen=True)
class Outcome:
    """The state of a run.

    Attributes:
        run: its name.
        values: its options in the grid and the search.
        score: best validation score of the monitored metric; None if the run is not finished.
        best_epoch: the epoch of that score.
        num_epochs: epochs trained.
        seconds: training time.
        problem: why it is not finished, if the sweep has tried.
    """

    run: str
    values: Values
    score: float | None = None
    best_epoch: int | None = None
    num_epochs: int | None = None
    seconds: float | None = None
    problem: str | None = None


def read_outcome(plan: Plan, values: Values, problem: str | None = None) -> Outcome:
    """Return the state of a run, from its manifest if it is finished."""
    run_dir = plan.run_dir(values)
    manifest = find_finished(run_dir)
    if manifest is None:
        return Outcome(run_dir.name, values, problem=problem)
    counts = manifest.counts
    # With one val image, the monitored score is BLEU-4 instead of CIDEr.
    (score,) = (score for name, score in manifest.details.items() if name != "run")
    return Outcome(
        run_dir.name,
        values,
        score,
        counts["best_epoch"],
        counts["num_epochs"],
        manifest.seconds,
    )


def train_words(plan: Plan, values: Values, memory: int) -> list[str]:
    """Return the command that trains a run or continues it, without `showtell` and `--data`.

    Args:
        plan: the sweep.
        values: options of the run in the grid and the search.
        memory: bytes that the features of a run may use.
    """
    run_dir = plan.run_dir(values)
    options = plan.fixed | values
    words = ["train", "--run", run_dir.name]
    if has_started(run_dir):  # the folder holds the options
        words.append("--resume")
        options = {name: value for name, value in options.items() if name == "device"}
    elif "window" not in options:
        options |= choose_shared_window(plan.train_config(values), memory)
    return words + [word for name in options for word in words_of(OPTIONS[name], options[name])]


def choose_shared_window(config: TrainConfig, memory: int) -> Values:
    """Return the option `window`, which all runs over the same features share.

    A run by itself would choose by the memory that the other runs have left.
    """
    with suppress(ShowTellError):  # the training raises it again
        if config.init is not None:
            config = inherit_options(config)
        directory = find_features(config.dataset_dir, config.features, is_quiet=True)
        return {"window": fit_window(*size_of_images(config, directory), memory) or 0}
    return {}


class Workers:
    """The processes of a sweep, and the cores, memory and GPUs that they share.

    Args:
        plan: what to train.
        num_workers: processes at the same time.
        signals: signals received; once there is one, all trainings stop with a checkpoint.
    """

    def __init__(self, plan: Plan, num_workers: int, signals: Sequence[signal.Signals]) -> None:
        self.plan, self.signals = plan, signals
        self.memory = memory_for_features() // num_workers
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)
        }
        if num_workers > 1:
            threads = max(1, torch.get_num_threads() // num_workers)
            self.environment["OMP_NUM_THREADS"] = str(threads)
        num_gpus = torch.cuda.device_count() if "device" not in plan.fixed | plan.grid else 0
        self.devices = queue.SimpleQueue[list[str]]()
        for worker in range(num_workers):
            self.devices.put(["--device", f"cuda:{worker % num_gpus}"] if num_gpus > 1 else [])

    def __enter__(self) -> Self:
        self.stdin, self.parent = os.pipe()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.parent)
        os.close(self.stdin)

    def train(self, values: Values) -> Outcome:
        """Train a run unless it is finished, and return its state.

        A run that another process trains is waited for.
        """
        run_dir = self.plan.run_dir(values)
        device = self.devices.get()
        try:
            while is_locked(run_dir) and not self.signals:
                time.sleep(POLL_S)
            if self.signals or find_finished(run_dir) is not None:
                return read_outcome(self.plan, values)
            problem = self._run([*train_words(self.plan, values, self.memory), *device])
        except OSError as error:  # for example, not enough memory to start a process
            problem = f"it could not be started: {error.strerror}"
        finally:
            self.devices.put(device)
        return read_outcome(self.plan, values, problem)

    def _run(self, words: Sequence[str]) -> str | None:
        """Run a command; return why it failed, or None."""
        data = ("--data", str(self.plan.data), "--quiet")
        program = start_program(
            [sys.executable, "-P", "-c", PROGRAM, *words, *data],
            stdin=self.stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self.environment,
            start_new_session=True,
        )
        is_stopping = False
        while True:
            try:
                _, output = program.communicate(timeout=POLL_S)
                break
            except subprocess.TimeoutExpired:
                if self.signals and not is_stopping:
                    program.terminate()
                    is_stopping = True
        if not program.returncode or is_stopping:
            return None
        return find_reason(program.returncode, output.decode(errors="replace"))


def find_reason(status: int, output: str) -> str:
    """Return why a training failed, from its exit status and what it wrote to stderr."""
    if status < 0:
        name = signal.Signals(-status).name
        hint = "; there may not be enough memory" if name == "SIGKILL" else ""
        return f"it was ended by {name}{hint}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return [f"exit status {status}", *lines, *errors][-1]


def describe_run(plan: Plan, values: Values, memory: int) -> dict[str, str | None]:
    """Return the name of a run, its state, and the command that the sweep would run for it.

    Args:
        plan: the sweep.
        values: options of the run in the grid and the search.
        memory: bytes that the features of a run may use.
    """
    run_dir = plan.run_dir(values)
    state = "continue" if has_started(run_dir) else "train"
    if find_finished(run_dir) is not None:
        state = "finished"
    if is_locked(run_dir):
        state = "running"
    command = command_line(plan.data, *train_words(plan, values, memory))
    return {
        "run": run_dir.name,
        "state": state,
        "command": command if state in ("train", "continue") else None,
    }
