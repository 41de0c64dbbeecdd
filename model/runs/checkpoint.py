"""Save and load the weights of a run and the state of its training, without pickle.

best.safetensors
    <name>                      weights of the best epoch, float32, named as in `state_dict`
    metadata "run"              a copy of config.json: whose weights they are
last.safetensors, what `showtell train --resume` continues from
    model.<name>                weights, float32
    average.<name>              running mean of the weights, with --ema
    optimizer.<index>.<name>    state of the optimizer for each parameter, by the parameter's index
    rng.cpu, rng.cuda           states of the random generators, uint8
    rng.cpu.<rank>, …           the same of the other processes of a training by torchrun
    metadata "progress"         the fields of `Progress`, as JSON
    metadata "scaler"           state of the gradient scaler, as JSON
    metadata "run"              a copy of config.json, from which `--resume` can restore it

Both have a metadata entry "checksum", see `tensors.py`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...pipeline.stage.artifacts import reading
from ..decoders.base import Decoder
from .run import RunConfig
from .tensors import read_tensors, write_tensors


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
        log_bytes: size of `metrics.jsonl` when the checkpoint was written.
        log_checksum: checksum of those bytes; empty in checkpoints of earlier versions.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    log_bytes: int = 0
    log_checksum: str = ""


def save_weights(path: Path, decoder: Decoder, run: RunConfig | None = None) -> None:
    """Write a decoder's weights, and the config of its run, atomically."""
    metadata = {} if run is None else {"run": json.dumps(asdict(run))}
    write_tensors(path, decoder.state_dict(), metadata)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the random generators that training uses, by their names."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def save_checkpoint(
    path: Path,
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    average: torch.nn.Module | None = None,
    run: RunConfig | None = None,
    random_states: Sequence[Mapping[str, Tensor]] | None = None,
) -> None:
    """Write everything that is needed to continue training exactly, atomically.

    `random_states` are those of all processes; default of this one, which trains alone.
    """
    tensors = {f"model.{name}": value for name, value in decoder.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    states = random_states or [random_state(next(decoder.parameters()).device)]
    for rank, named in enumerate(states):
        tensors |= {f"rng.{name}{_suffix(rank)}": state for name, state in named.items()}
    metadata = {
        "progress": json.dumps(asdict(progress)),
        "scaler": json.dumps(scaler.state_dict()),
    }
    if run is not None:
        metadata["run"] = json.dumps(asdict(run))
    write_tensors(path, tensors, metadata)


def read_progress(path: Path) -> tuple[Progress, RunConfig | None]:
    """Read and verify a checkpoint; return its progress, and the config of its run.

    The config is None in checkpoints of earlier versions.

    Raises:
        MissingArtifactError: the checkpoint does not exist.
        DamagedFileError: it is damaged.
    """
    _, metadata = read_tensors(path)
    with reading(path):
        run = RunConfig.from_json(json.loads(metadata["run"])) if "run" in metadata else None
        return Progress(**json.loads(metadata["progress"])), run


def load_checkpoint(
    path: Path,
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: torch.nn.Module | None = None,
    rank: int = 0,
) -> Progress:
    """Restore the state that `save_checkpoint` wrote; the arguments are updated in place.

    The random generators are set to those of the process `rank`. They keep their state if the
    checkpoint is of fewer processes.

    Raises:
        MissingArtifactError: the checkpoint does not exist.
        DamagedFileError: it is damaged, or of another run.
    """
    tensors, metadata = read_tensors(path)
    expected = {f"model.{name}" for name in decoder.state_dict()} | {"rng.cpu"}
    if average is not None:
        expected |= {f"average.{name}" for name in average.state_dict()}
    with reading(path, RuntimeError):  # torch's error for tensors of another shape
        if not expected <= tensors.keys():
            raise ValueError("it is not a checkpoint of this run")
        progress = Progress(**json.loads(metadata["progress"]))
        decoder.load_state_dict(_with_prefix(tensors, "model."))
        if average is not None:
            average.load_state_dict(_with_prefix(tensors, "average."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _with_prefix(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        if (cpu_state := tensors.get(f"rng.cpu{_suffix(rank)}")) is not None:
            torch.set_rng_state(cpu_state)
        device = next(decoder.parameters()).device
        cuda_state = tensors.get(f"rng.cuda{_suffix(rank)}")
        if device.type == "cuda" and cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, device)
        if scaler_state := json.loads(metadata["scaler"]):  # empty if the scaler is disabled
            scaler.load_state_dict(scaler_state)
    return progress


def _suffix(rank: int) -> str:
    """Return what the names of a process's random states end with: nothing for the first."""
    return f".{rank}" if rank else ""


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
