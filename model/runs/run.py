"""Load a run: its config, vocabulary, weights and features. `find.py` finds it by name.

`config.json` holds the fields of `RunConfig` as a JSON object.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...features.store import FeatureStore, find_features
from ...pipeline.stage.errors import ConfigError, MismatchError, MissingArtifactError
from ...pipeline.stage.files import write_json
from ...pipeline.text.vocab import Vocab
from ..config import TrainConfig
from ..decoders.base import Decoder
from ..decoders.config import DecoderConfig
from ..decoders.registry import build_decoder
from .layout import BEST_NAME, CONFIG_NAME, VOCAB_NAME
from .renamed_tensors import with_current_names


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The description of a run.

    Attributes:
        dataset: name of the dataset it was trained on.
        features: folder name of the features it was trained on, such as `resnet50-caffe`.
        backbone: the network that computed them: encoder, weights, image_size, weights_sha256,
            transform.
        vocab_sha256: hash of the vocabulary's words.
        decoder: sizes and type of the decoder.
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
        """Return the options of `showtell train`.

        Raises:
            MismatchError: the run has options that this version of showtell does not have.
        """
        try:
            return TrainConfig(**self.train)
        except (TypeError, ConfigError) as error:
            raise MismatchError(
                f"This run of {self.dataset} was started by another version of showtell ({error}). "
                f"Continue it with that version, or train another run with --run NAME."
            ) from None

    @classmethod
    def read(cls, run_dir: Path) -> "RunConfig":
        """Read `config.json`.

        Raises:
            MissingArtifactError: the file is missing or damaged.
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


def load_run(run_dir: Path, device: torch.device) -> tuple[RunConfig, Vocab, Decoder]:
    """Load a run.

    Returns:
        The run's config, its vocabulary, and its decoder with the weights of the best epoch, in
        eval mode on `device`.

    Raises:
        MissingArtifactError: a file of the run is missing or damaged.
        MismatchError: the vocabulary or the weights are not those of the config.
    """
    config = RunConfig.read(run_dir)
    vocab_path = run_dir / VOCAB_NAME
    vocab = Vocab.read(vocab_path)
    if vocab.sha256 != config.vocab_sha256 or len(vocab) != config.decoder.vocab_size:
        raise MismatchError(
            f"{vocab_path} has {len(vocab):,} words and hash {vocab.sha256[:12]}, but the run was "
            f"trained with {config.decoder.vocab_size:,} and {config.vocab_sha256[:12]}. "
            f"Restore the run's own vocabulary, or train the run again."
        )
    with torch.device("meta"):  # without random weights, which would be overwritten
        decoder = build_decoder(config.decoder)
    tensors, _ = read_tensors(run_dir / BEST_NAME)
    _check_shapes(run_dir / BEST_NAME, tensors, decoder)
    decoder.load_state_dict(tensors, assign=True)
    return config, vocab, decoder.to(device).eval()


def _check_shapes(path: Path, tensors: dict[str, Tensor], decoder: Decoder) -> None:
    """Check that the tensors of a weight file are those of the decoder."""
    expected = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != got:
        name = min(set(expected.items()) ^ set(got.items()))[0]
        found = f"has shape {got[name]}" if name in got else "is missing"
        wanted = f"shape {expected[name]}" if name in expected else "no such tensor"
        raise MismatchError(
            f"{path}: {name!r} {found}, but {CONFIG_NAME} requires {wanted}. Train the run again."
        )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors by their current names, and its metadata.

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
        MissingArtifactError: the features are missing.
        MismatchError: another network computed them, or another transform.
    """
    store = FeatureStore.load(find_features(data / run.dataset, run.features))
    for name in ("encoder", "weights_sha256", "transform"):
        expected = run.backbone[name]
        if store.backbone.get(name) != expected:
            raise MismatchError(
                f"{store.directory} has {name} {store.backbone.get(name)!r}, but the run was "
                f"trained on {expected!r}. Run 'showtell features' with the run's options again, "
                f"or train another run."
            )
    return store
