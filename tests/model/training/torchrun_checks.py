"""What test_distributed.py starts with torchrun: checks on two processes, in one launch.

Usage: torchrun --nproc-per-node 2 torchrun_checks.py DATA OUT

Each rank writes what it finds to OUT/<rank>.json, and test_distributed.py compares. At the end,
`showtell train` fails on rank 0.
"""

import copy
import json
import os
import signal
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from showtell.cli import run as run_command_line
from showtell.model.config import TrainConfig
from showtell.model.train import train
from showtell.model.training.data import load_training_data
from showtell.model.training.distributed import Group, joined_group
from showtell.model.training.loss import whole
from showtell.model.training.trainer import Trainer
from showtell.pipeline.stage.errors import ShowTellError, StoppedError

LOSSES = {
    "cross-entropy": {"label_smoothing": 0.1},
    "soft attention": {"attention": "soft"},
    "self-critical": {
        "scst": True, "init": "one", "scst_baseline": "greedy", "xe_weight": 0.3,
    },
}  # fmt: skip


STOP = 12  # in the second epoch


def make_config(data: Path, **options: object) -> TrainConfig:
    sizes = {"hidden_size": 16, "embed_size": 16, "batch_size": 24, "epochs": 2, "ema": 0.9}
    return TrainConfig(data=data, dataset="scenes", **(sizes | options))


def gradients(trainer: Trainer, group: Group, positions: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradients and the reward of a batch that the group's ranks share."""
    decoder = trainer.decoder
    decoder.zero_grad()
    views = trainer.batches.draw_views(0)
    batch, share = group.gather_part(trainer.batches, positions, views)
    trainer.loss_of(decoder, batch, share if group.size > 1 else whole).backward()
    group.sum_gradients(decoder.parameters())
    grads = [parameter.grad.clone() for parameter in decoder.parameters()]
    if trainer.config.scst:
        grads.append(torch.tensor(group.sum(trainer.loss_of.take_reward()), dtype=torch.float64))
    return grads


def compare_gradients(data: Path) -> dict[str, float]:
    """Return the largest relative error of the summed gradients, by loss and size of the batch."""

    def choose(probs: torch.Tensor, count: int) -> torch.Tensor:
        """Draw the same words in batches of any size."""
        return (1e4 * probs).sin().argmax(1, keepdim=True)

    errors = {}
    for name, options in LOSSES.items():
        config = make_config(data, run="unused", dropout=0.0, **options)
        with joined_group() as group, patch.object(torch, "multinomial", choose):
            trainer = Trainer(config, load_training_data(config), data / "unused", group=group)
            trainer.decoder.double().train()
            plan = trainer.batches.plan_epoch(0)
            # A batch of one image, or one caption, leaves a rank without work.
            for positions in (plan[0], plan[1][:7], plan[2][:1]):
                found = gradients(trainer, group, positions)
                expected = gradients(trainer, Group(), positions)
                pairs = zip(found, expected, strict=True)
                error = max(float((a - b).norm() / (b.norm() + 1e-30)) for a, b in pairs)
                errors[f"{name} {len(positions)}"] = error
                assert all(float(b.norm()) > 0 for b in expected[:2]), name
    return errors


def compare_validation(data: Path) -> bool:
    """Return whether the ranks together write the captions that one process writes."""
    config = make_config(data, run="unused", val_images=5)
    with joined_group() as group:
        trainer = Trainer(config, load_training_data(config), data / "unused", group=group)
        torch.nn.init.normal_(trainer.decoder.image_proj.weight)
        group.copy_from_first(trainer.decoder)
        found = [*chain.from_iterable(group.gather(trainer.decode_validation()))]
        trainer.group = Group()
        return found == trainer.decode_validation() and len(found) == 5


def stop_at_step(config: TrainConfig, step: int, rank: int) -> str:
    """Train until a rank receives SIGTERM; return the error."""
    take_step = Trainer.step_optimizer

    def receive(trainer: Trainer) -> None:
        take_step(trainer)
        if trainer.progress.step + 1 == step and trainer.group.rank == rank:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ignored after an earlier stop
    with patch.object(Trainer, "step_optimizer", receive):
        try:
            train(config)
        except StoppedError as error:
            return str(error)
    return "not stopped"


def fail_on_one_rank(data: Path) -> str:
    """Let the features of rank 1 differ; return the error."""
    config = make_config(data, run="differs")
    loaded = load_training_data(config)
    other = replace(loaded, inputs=loaded.inputs | {"features": os.environ["RANK"]})
    with patch("showtell.model.train.load_training_data", return_value=other):
        try:
            train(config)
        except ShowTellError as error:
            dist.destroy_process_group()  # otherwise the end of the process does it
            return str(error)
    return "not noticed"


def watch_writes(data: Path) -> list[str]:
    """Record the files below a folder that this process opens for writing, moves or makes."""
    written: list[str] = []

    def record(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            is_write = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        else:
            path, is_write = arguments[0] if arguments else "", event in ("os.mkdir", "os.rename")
        if is_write and str(path).startswith(str(data)):
            written.append(f"{event} {path}")

    sys.addaudithook(record)
    return written


def main(data: Path, out: Path) -> None:
    """Run all checks."""
    rank = int(os.environ["RANK"])
    written = watch_writes(data)
    found: dict[str, object] = {"gradients": compare_gradients(data)}
    found["validation"] = compare_validation(data)
    found["counts"] = train(make_config(data, run="whole")).counts
    found["stopped"] = stop_at_step(make_config(data, run="stopped"), step=STOP, rank=1)
    train(make_config(data, run="stopped", resume=True))
    train(make_config(data, run="without-dropout", dropout=0.0))
    found["one"] = train(make_config(data, run="one-stopped", resume=True)).counts
    found["two"] = stop_at_step(make_config(data, run="two"), step=STOP, rank=0)
    found["written"] = copy.copy(written)
    found["differs"] = fail_on_one_rank(data)
    (out / f"{rank}.json").write_text(json.dumps(found))
    sys.argv = ["showtell", "train", "--data", str(out), "--run", "nothing"]
    sys.exit(run_command_line())


if __name__ == "__main__":
    # Matplotlib takes as long as the trainings.
    with patch("showtell.model.training.trainer.try_to_draw_curves", return_value=None):
        main(Path(sys.argv[1]), Path(sys.argv[2]))
