"""Load a run: its config, vocabulary, weights and features. `find.py` finds it by name.

`config.json` holds the fields of `RunConfig` as a JSON object, and `checksum`. The manifest of a
finished run and the last checkpoint of an unfinished one have a copy.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...features.store import FeatureStore, features_command
from ...pipeline.stage.artifacts import damaged, read_output, reading, repair_command
from ...pipeline.stage.checksums import checksum_of_file, seal, unseal
from ...pipeline.stage.errors import ConfigError, MismatchError, MissingArtifactError
from ...pipeline.stage.files import write_json
from ...pipeline.stage.manifest import CHANGED, MANIFEST_NAME
from ...pipeline.stage.options import options_of, validate
from ...pipeline.text.vocab import Vocab
from ..config import TrainConfig
from ..decoders.base import Decoder
from ..decoders.config import DecoderConfig
from ..decoders.registry import (
    CELL_DECODERS,
    DECODERS,
    build_decoder,
    check_hidden_size,
    decoder_class,
)
from .layout import CONFIG_NAME, VOCAB_NAME, weights_path
from .tensors import read_tensors


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
        vocab_checksum: checksum of the run's `vocab.json`; empty in runs of earlier versions.
    """

    dataset: str
    features: str
    backbone: dict[str, Any]
    vocab_sha256: str
    decoder: DecoderConfig
    train: dict[str, Any]
    inputs: dict[str, str]
    vocab_checksum: str = ""

    def write(self, run_dir: Path) -> None:
        """Write `config.json`."""
        write_json(run_dir / CONFIG_NAME, seal(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Return the config with these fields.

        Raises:
            ValueError, TypeError, KeyError: the fields are not those of a run.
        """
        decoder = DecoderConfig(**values["decoder"])
        if decoder.attention not in DECODERS:
            raise ValueError(f"attention is {decoder.attention!r}")
        if decoder.cell in CELL_DECODERS and decoder.attention != "none":
            raise ValueError(f"attention is {decoder.attention!r} with cell {decoder.cell!r}")
        for declared in options_of(TrainConfig):  # most sizes are options of `showtell train`
            if declared.name != "attention" and hasattr(decoder, declared.name):
                try:
                    validate(declared, getattr(decoder, declared.name))
                except ConfigError as error:
                    raise ValueError(str(error)) from None
        for name in ("feature_dim", "vocab_size"):
            if not isinstance(size := getattr(decoder, name), int) or size < 1:
                raise ValueError(f"{name} is {size!r}")
        if rule := check_hidden_size(decoder.cell, decoder.hidden_size):
            raise ValueError(f"hidden_size is {decoder.hidden_size}, but must {rule}")
        return cls(**{**values, "decoder": decoder})

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
    def read(cls, run_dir: Path, *, alone: bool = False) -> "RunConfig":
        """Read `config.json`.

        Args:
            run_dir: folder of the run.
            alone: whether to verify it only by the checksum that it contains, not by the manifest.

        Raises:
            MissingArtifactError: the file does not exist.
            DamagedFileError: it has changed since it was written.
        """
        path = run_dir / CONFIG_NAME
        with reading(path):
            content = path.read_bytes() if alone else read_output(path)
            return cls.from_json(unseal(json.loads(content)))


def load_run(run_dir: Path, device: torch.device) -> tuple[RunConfig, Vocab, Decoder]:
    """Load a run or a bundle.

    Returns:
        The run's config, its vocabulary, and its decoder with the weights of the best epoch, in
        eval mode on `device`.

    Raises:
        MissingArtifactError: a file of the run is missing.
        DamagedFileError: a file of the run is damaged.
        MismatchError: the vocabulary or the weights are not those of the config.
    """
    config = RunConfig.read(run_dir)
    return config, read_vocab(run_dir, config), read_decoder(run_dir, config).to(device).eval()


def read_vocab(run_dir: Path, config: RunConfig) -> Vocab:
    """Read the vocabulary of a run.

    Raises:
        MissingArtifactError: the file does not exist.
        DamagedFileError: the file is damaged.
        MismatchError: it is not the vocabulary of the config.
    """
    path = run_dir / VOCAB_NAME
    vocab = Vocab.read(path)
    if vocab.sha256 != config.vocab_sha256 or len(vocab) != config.decoder.vocab_size:
        raise MismatchError(
            f"{path} has {len(vocab):,} words and hash {vocab.sha256[:12]}, but the run was "
            f"trained with {config.decoder.vocab_size:,} and {config.vocab_sha256[:12]}. "
            f"Run '{repair_command(path)}'."
        )
    if config.vocab_checksum and checksum_of_file(path) != config.vocab_checksum:
        raise damaged(path, CHANGED)
    return vocab


def read_decoder(run_dir: Path, config: RunConfig) -> Decoder:
    """Read the decoder with the weights of the best epoch, in float32 on the CPU.

    Raises:
        MissingArtifactError: the file does not exist.
        DamagedFileError: the file is damaged.
        MismatchError: its tensors are not those of the config.
    """
    path = weights_path(run_dir)
    with torch.device("meta"):  # without random weights, which would be overwritten
        decoder = build_decoder(config.decoder)
    tensors, metadata = read_tensors(path)
    if (run := _run_of(path, metadata)) is not None:
        require_same_config(path, run, config)
    _check_shapes(path, tensors, decoder)
    decoder.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return decoder


def read_run(path: Path) -> RunConfig | None:
    """Return the config of the run that weights or a checkpoint are of; earlier versions lack it.

    Raises:
        MissingArtifactError: the file does not exist.
        DamagedFileError: the file is damaged.
    """
    return _run_of(path, read_tensors(path)[1])


def _run_of(path: Path, metadata: Mapping[str, str]) -> RunConfig | None:
    with reading(path):
        return RunConfig.from_json(json.loads(metadata["run"])) if "run" in metadata else None


def require_same_config(path: Path, run: RunConfig, config: RunConfig) -> None:
    """Check that a file is of the run with this config.

    Args:
        path: of the file.
        run: the config in the file.
        config: of the run.

    Raises:
        DamagedFileError: it is of another run.
    """
    if replace(run, vocab_checksum=config.vocab_checksum) != config:
        raise damaged(path, "it belongs to another run")


def _check_shapes(path: Path, tensors: dict[str, Tensor], decoder: Decoder) -> None:
    """Check that the tensors of a weight file are those of the decoder."""
    expected = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != got:
        name = min(set(expected.items()) ^ set(got.items()))[0]
        found = f"has shape {got[name]}" if name in got else "is missing"
        wanted = f"shape {expected[name]}" if name in expected else "no such tensor"
        raise MismatchError(
            f"{path}: {name!r} {found}, but {CONFIG_NAME} requires {wanted}. Run "
            f"'{repair_command(path)}'."
        )


def load_run_features(data: Path, run: RunConfig, *, is_mapped: bool | None = None) -> FeatureStore:
    """Load the features a run was trained on.

    Args:
        data: root of all files.
        run: its config.
        is_mapped: see `FeatureStore.load`.

    Raises:
        MissingArtifactError: the features are missing.
        MismatchError: another network computed them, or another transform.
    """
    directory = data / run.dataset / "features" / run.features
    require_run_features(run, directory, run.train.get("views") or 1)
    store = FeatureStore.load(directory, is_mapped=is_mapped)
    require_same_backbone(run, store)
    return store


def require_run_features(run: RunConfig, directory: Path, num_views: int) -> None:
    """Check that features exist.

    Args:
        run: its encoder computes them.
        directory: the features folder.
        num_views: views of each image that the features must have.

    Raises:
        MissingArtifactError: they do not; with the command that computes them.
    """
    if not (directory / MANIFEST_NAME).exists():
        raise MissingArtifactError(
            f"{directory} has no finished features. Run "
            f"'{run_features_command(run, directory, num_views)}' first."
        )


def require_same_backbone(run: RunConfig, store: FeatureStore) -> None:
    """Check that the encoder and the transform of a run computed these features.

    Raises:
        MismatchError: another network computed them, or another transform.
    """
    for name in ("encoder", "weights_sha256", "transform"):
        expected = run.backbone[name]
        if store.backbone.get(name) != expected:
            raise MismatchError(
                f"{store.directory} has {name} {store.backbone.get(name)!r}, but the run was "
                f"trained on {expected!r}. Run '{run_features_command(run, store.directory)}', or "
                "train another run."
            )


def run_features_command(run: RunConfig, directory: Path, num_views: int = 1) -> str:
    """Return the command that computes the features that a run needs, for any dataset.

    Args:
        run: its encoder computes the features.
        directory: the features folder of the dataset.
        num_views: views of each image.
    """
    return features_command(
        directory,
        encoder=run.backbone["encoder"],
        weights=run.backbone["weights"],
        image_size=run.backbone["image_size"],
        views=num_views,
        grid=decoder_class(run.decoder).uses_grid,
    )
