"""A trained run on disk: its `RunConfig`, and how to find and load it by name."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...features.store import FeatureStore, find_features
from ...pipeline.stage.console import (
    print_aside,
)
from ...pipeline.stage.errors import ConfigError, MismatchError, MissingArtifactError
from ...pipeline.stage.files import write_json
from ...pipeline.stage.manifest import Manifest
from ...pipeline.text.vocab import Vocab
from ..config import TrainConfig
from ..decoders.base import Decoder
from ..decoders.config import DecoderConfig
from ..decoders.registry import build_decoder
from .layout import BEST_NAME, CONFIG_NAME, LAST_NAME, VOCAB_NAME
from .renamed_tensors import with_current_names


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run is.

    Attributes:
        dataset: name of the dataset it was trained on.
        features: folder name of its features, e.g. `resnet50-caffe`.
        backbone: what made them: encoder, weights, image_size, weights_sha256, transform.
        vocab_sha256: of its vocabulary's words.
        decoder: what the decoder is made of.
        train: the options of `showtell train`.
        inputs: name → sha256 of the files it was trained on.
    """

    dataset: str
    features: str
    backbone: dict[str, Any]
    vocab_sha256: str
    decoder: DecoderConfig
    train: dict[str, Any]
    inputs: dict[str, str]

    def write(self, run_dir: Path) -> None:
        """Write `config.json`."""
        write_json(run_dir / CONFIG_NAME, asdict(self))

    def train_config(self) -> TrainConfig:
        """The options of `showtell train`.

        Raises:
            MismatchError: another version of showtell had other options.
        """
        try:
            return TrainConfig(**self.train)
        except (TypeError, ConfigError) as error:
            raise MismatchError(
                f"a run of {self.dataset} was begun by another version of showtell ({error}). "
                f"Go on with that version, or train another run with --run NAME."
            ) from None

    @classmethod
    def read(cls, run_dir: Path) -> "RunConfig":
        """Read `config.json`.

        Raises:
            MissingArtifactError: there is none, or it cannot be understood.
        """
        path = run_dir / CONFIG_NAME
        try:
            values = json.loads(path.read_text("utf-8"))
            values["decoder"] = DecoderConfig(**values["decoder"])
            return cls(**values)
        except FileNotFoundError:
            raise MissingArtifactError(
                f"{path} does not exist. Run 'showtell train --run {run_dir.name}' first."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise MissingArtifactError(
                f"{path} is not the config of a run ({error}). Train the run again."
            ) from None


def run_names(data: Path, dataset: str | None = None) -> list[str]:
    """Names of the runs that have weights, of one dataset or of all; the newest last."""
    found = sorted((data / "runs").glob(f"*/{BEST_NAME}"), key=lambda path: path.stat().st_mtime)
    runs = [path.parent for path in found]
    if dataset is not None:
        runs = [run for run in runs if RunConfig.read(run).dataset == dataset]
    return [run.name for run in runs]


def choose_run(data: Path, run: str | None, dataset: str | None = None) -> Path:
    """As `find_run`; says which run was taken where none is named, and where one is unfinished."""
    run_dir = find_run(data, run, dataset)
    if run is None:
        print_aside(f"the newest run is taken, {run_dir.name}; --run names another.")
    if Manifest.read(run_dir) is None:
        print_aside(
            f"{run_dir.name} has not come to its end: this is its best epoch so far. 'showtell "
            f"train --run {run_dir.name} --resume' goes on."
        )
    return run_dir


def find_run(data: Path, run: str | None, dataset: str | None = None) -> Path:
    """Folder of a run by name, or of the newest one that has weights, of one dataset or of all.

    Raises:
        MissingArtifactError: no such run; the message names those there are.
    """
    runs = run_names(data, dataset)
    if run in runs or (run is None and runs):
        return data / "runs" / (run or runs[-1])
    run_dir = data / "runs" / (run or "")
    if (run_dir / LAST_NAME).exists() and not (run_dir / BEST_NAME).exists():
        raise MissingArtifactError(
            f"{run_dir} was stopped before its first epoch had ended: it has no "
            f"weights yet. Run 'showtell train --run {run} --resume' first."
        )
    what = "no run" if run is None else f"no run {run!r}"
    what += "" if dataset is None else f" of {dataset}"
    there = f"there are {', '.join(sorted(runs))}" if runs else "there is none"
    raise MissingArtifactError(
        f"{data / 'runs'} has {what} with weights ({there}). Run 'showtell train "
        f"--dataset {dataset or 'NAME'}' first, or name another folder with --data."
    )


def load_run(run_dir: Path, device: torch.device) -> tuple[RunConfig, Vocab, Decoder]:
    """Load what a run has learned.

    Returns:
        The run's config, its vocabulary, and its decoder in eval mode on `device`.

    Raises:
        MissingArtifactError: a file of the run is missing or damaged.
        MismatchError: the vocabulary or the weights are not those of the config.
    """
    config = RunConfig.read(run_dir)
    vocab_path = run_dir / VOCAB_NAME
    vocab = Vocab.read(vocab_path)
    if vocab.sha256 != config.vocab_sha256 or len(vocab) != config.decoder.vocab_size:
        raise MismatchError(
            f"{vocab_path} has {len(vocab):,} words and hash {vocab.sha256[:12]}, the run was "
            f"trained with {config.decoder.vocab_size:,} and {config.vocab_sha256[:12]}. "
            f"Put the run's own vocabulary back, or train again."
        )
    with torch.device("meta"):  # no weights are drawn that the run's own replace
        decoder = build_decoder(config.decoder)
    tensors, _ = read_tensors(run_dir / BEST_NAME)
    expected = {name: value.shape for name, value in decoder.state_dict().items()}
    got = {name: value.shape for name, value in tensors.items()}
    if expected != got:
        name = min(set(expected.items()) ^ set(got.items()))[0]
        raise MismatchError(
            f"{run_dir / BEST_NAME}: {name!r} is {got.get(name, 'missing')}, "
            f"expected {expected.get(name, 'nothing')} by {CONFIG_NAME}. Train the run again."
        )
    decoder.load_state_dict(tensors, assign=True)
    return config, vocab, decoder.to(device).eval()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors by name, and its metadata.

    Raises:
        MissingArtifactError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return with_current_names(load_file(path)), metadata
    except FileNotFoundError:
        raise MissingArtifactError(
            f"{path} does not exist. Run 'showtell train --run {path.parent.name}' first."
        ) from None
    except (SafetensorError, OSError) as error:
        raise MissingArtifactError(
            f"{path} cannot be read ({error}). Delete it and train the run again."
        ) from None


def load_run_features(data: Path, run: RunConfig) -> FeatureStore:
    """Load the features a run was trained on.

    Raises:
        MissingArtifactError: they are not there.
        MismatchError: they were made by another network or with another transform.
    """
    store = FeatureStore.load(find_features(data / run.dataset, run.features))
    for name in ("encoder", "weights_sha256", "transform"):
        expected = run.backbone[name]
        if store.backbone.get(name) != expected:
            raise MismatchError(
                f"{store.directory} has {name} {store.backbone.get(name)!r}, the run was trained "
                f"on {expected!r}. Run 'showtell features' with the run's options again, or train "
                f"another run."
            )
    return store
