"""A run on disk: what it is, its weights, and where its training stands. No pickle anywhere.

data/runs/<run>/config.json        `RunConfig`
data/runs/<run>/vocab.json         the vocabulary it was trained with
data/runs/<run>/best.safetensors   weights of the best epoch: name → float32 tensor
data/runs/<run>/last.safetensors   `model.*`, `average.*`, `optimizer.<index>.*`, `rng.*`
                                   tensors, and the `Progress` as JSON in the file's metadata
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...pipeline.stage.errors import MissingArtifactError
from ...pipeline.stage.files import atomic_path
from ..decoders.base import Decoder
from .run import read_tensors


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        epoch: epochs finished.
        batch: batches finished in the epoch after them.
        step: optimizer steps in all.
        best_score: best validation score so far.
        best_epoch: the epoch that reached it, counted from 1.
        seconds: wall time spent, before and after every stop.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0


def save_weights(path: Path, decoder: Decoder) -> None:
    """Write a decoder's weights, atomically."""
    with atomic_path(path) as partial:
        save_file({k: v.contiguous() for k, v in decoder.state_dict().items()}, partial)


def save_checkpoint(
    path: Path,
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    average: torch.nn.Module | None = None,
) -> None:
    """Write all that is needed to go on exactly, in one file, atomically."""
    tensors = {f"model.{name}": value for name, value in decoder.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    device = next(decoder.parameters()).device
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    with atomic_path(path) as partial:
        metadata = {
            "progress": json.dumps(asdict(progress)),
            "scaler": json.dumps(scaler.state_dict()),
        }
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata)


def load_checkpoint(
    path: Path,
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: torch.nn.Module | None = None,
) -> Progress:
    """Bring decoder, optimizer, scaler and random generators to where `save_checkpoint` left them.

    Raises:
        MissingArtifactError: there is no checkpoint, or it is damaged.
    """
    tensors, metadata = read_tensors(path)
    expected = {f"model.{name}" for name in decoder.state_dict()} | {"rng.cpu"}
    if average is not None:
        expected |= {f"average.{name}" for name in average.state_dict()}
    if not (expected <= tensors.keys() and {"progress", "scaler"} <= metadata.keys()):
        raise MissingArtifactError(
            f"{path} is not a checkpoint of this run. Delete {path.parent} and train the run again."
        )
    decoder.load_state_dict(_with_prefix(tensors, "model."))
    if average is not None:
        average.load_state_dict(_with_prefix(tensors, "average."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _with_prefix(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(tensors["rng.cpu"])
    device = next(decoder.parameters()).device
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    if scaler_state := json.loads(metadata["scaler"]):  # empty where nothing is scaled
        scaler.load_state_dict(scaler_state)
    return Progress(**json.loads(metadata["progress"]))


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
