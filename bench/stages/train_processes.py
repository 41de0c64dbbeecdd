"""Benchmark of training with several processes: captions/s, beside as many times one process.

All processes together take batches of the same size as one process alone. Each has its own GPU, or
an equal share of the cores.

The stage starts programs: python -m showtell.bench.stages.train_processes DATA DATASET FEATURES S
"""

import json
import os
import sys
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from ...features.reading.batches import count_cores
from ...model.config import TrainConfig
from ...model.training.data import load_training_data
from ...model.training.distributed import joined_group
from ...model.training.trainer import Trainer
from ...pipeline.stage.errors import ShowTellError
from ...pipeline.stage.signals import run_program
from ..config import BenchConfig
from ..measurement import Measurement
from .train import TimedSteps

CPU_PROCESSES = 2
START_S = 300  # at most, for imports and loading the features
WARM_UP_STEPS = 5
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


def measure(config: BenchConfig) -> Measurement:
    """Train the default decoder with one process, then with one for each GPU, or two on the CPU."""
    num_processes = torch.cuda.device_count() or CPU_PROCESSES
    alone = run_steps(config, num_processes)
    together = run_steps(config, num_processes, *TORCHRUN, "--nproc-per-node", str(num_processes))
    return Measurement(
        throughput=together["captions_per_second"],
        unit="captions/s",
        limit=num_processes * alone["captions_per_second"],
        limited_by=f"{num_processes} times one process",
        shares=together["shares"],
        details={
            "num_processes": num_processes,
            "threads_per_process": together["num_threads"],
            "one_process": alone["captions_per_second"],
            "speedup": together["captions_per_second"] / alone["captions_per_second"],
        },
    )


def run_steps(config: BenchConfig, num_processes: int, *launcher: str) -> dict[str, Any]:
    """Run this file as a program, and return the figures that it prints.

    Args:
        config: data, dataset, features, and the time to measure.
        num_processes: that share the cores.
        launcher: options of Python that start several processes.
    """
    words = (str(config.data.absolute()), config.dataset, config.features or "", config.seconds)
    done = run_program(
        [sys.executable, *launcher, "-m", __spec__.name, *map(str, words)],
        START_S + 5 * config.seconds,
        env=os.environ | {"OMP_NUM_THREADS": str(max(1, count_cores() // num_processes))},
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ShowTellError(f"{' '.join(done.args)} failed: {' '.join(last)}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(data: str, dataset: str, features: str, seconds: str) -> None:
    """Train for some seconds; the first process prints the figures as one line of JSON."""
    options = TrainConfig(data=Path(data), dataset=dataset, features=features or None)
    with joined_group() as group:
        trainer = Trainer(
            options, load_training_data(options), options.data / "bench" / "run", group=group
        )
        trainer.decoder.train()
        epochs = (trainer.batches.plan_epoch(epoch) for epoch in count())
        batches = chain.from_iterable(epochs)
        warm_up = TimedSteps(trainer)
        for _ in range(WARM_UP_STEPS):
            warm_up.step(next(batches))
        steps = TimedSteps(trainer)
        while group.max(steps.seconds)[0] < float(seconds):
            steps.step(next(batches))
        if group.is_first:
            figures = {
                "captions_per_second": steps.num_captions / steps.seconds,
                "shares": {part: spent / steps.seconds for part, spent in steps.parts.items()},
                "num_threads": torch.get_num_threads(),
            }
            print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
