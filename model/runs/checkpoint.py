"""Save and load the weights of a run and the state of its training, without pickle.

best.safetensors
    <name>                      weights of the best epoch, float32, named as in `state_dict`
last.safetensors, what `showtell train --resume` continues from
    model.<name>                weights, float32
    average.<name>              running mean of the weights, with --ema
    optimizer.<index>.<name>    state of the optimizer for each parameter, by the parameter's index
    rng.cpu, rng.cuda           states of the random generators, uint8
    metadata "progress"         the fields of `Progress`, as JSON
    metadata "scaler"           state of the gradient scaler, as JSON
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
    """How far training has come.

    Attributes:
        epoch: finished epochs.
        batch: finished batches of the current epoch.
        step: optimizer steps so far.
        best_score: best validation score so far.
        best_epoch: the epoch of the best score, counted from 1.
        seconds: wall time so far, including that before an interruption.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0


def save_weights(path: Path, decoder: Decoder) -> None:
    """Write a decoder's weights atomically."""
    with atomic_path(path) as partial:
        save_file(_contiguous(decoder.state_dict()), partial)


def save_checkpoint(
    path: Path,
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    average: torch.nn.Module | None = None,
) -> None:
    """Write everything that is needed to continue training exactly, atomically."""
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
        save_file(_contiguous(tensors), partial, metadata)


def load_checkpoint(
    path: Path,
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: torch.nn.Module | None = None,
) -> Progress:
    """Restore the state that `save_checkpoint` wrote; the arguments are updated in place.

    Raises:
        MissingArtifactError: the checkpoint is missing, damaged or of another run.
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
    if scaler_state := json.loads(metadata["scaler"]):  # empty if the scaler is disabled
        scaler.load_state_dict(scaler_state)
    return Progress(**json.loads(metadata["progress"]))


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors, as safetensors requires."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
