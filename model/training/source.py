"""The run or bundle that `--init` starts from, and what a new run takes over from it."""

from contextlib import suppress
from dataclasses import replace

from ...features.store import FeatureStore, find_features
from ...pipeline.stage.command_line import command_of, data_option
from ...pipeline.stage.errors import MismatchError, MissingArtifactError, ShowTellError
from ...pipeline.stage.files import hash_file
from ...pipeline.stage.options import flag
from ..config import TrainConfig
from ..runs.find import find_model, name_of_model
from ..runs.layout import weights_path
from ..runs.repair import find_config
from ..runs.run import RunConfig, require_run_features, require_same_backbone

# The weights of the source only fit a decoder with the same values.
DECODER_OPTIONS = (
    "cell",
    "attention",
    "attention_size",
    "hidden_size",
    "embed_size",
    "num_layers",
    "image_as",
    "tie_embeddings",
    "neighbours",
)


def inherit_options(config: TrainConfig) -> TrainConfig:
    """Return the options, with those of the decoder taken from the source.

    Dataset and features are taken from it too, unless they are given.

    Raises:
        MissingArtifactError: there is no such run or bundle.
        MismatchError: an option given by the user contradicts the source.
    """
    assert config.init is not None
    folder = find_model(config.data, config.init)
    saved = RunConfig.read(folder)
    inherited = {name: getattr(saved.decoder, name) for name in DECODER_OPTIONS}
    for name, then in inherited.items():
        now = getattr(config, name)
        if is_given(config, name) and now != then:
            fresh = replace(config, init=None, scst=False)
            raise MismatchError(
                f"--init {config.init} was trained with {flag(name)} {then}, got {now}. Leave out "
                f"{flag(name)}, because the weights fit no other decoder, or train from random "
                f"weights: 'showtell {command_of('train', fresh)}{data_option(config.data)}'."
            )
    if not is_given(config, "dataset"):
        inherited["dataset"] = saved.dataset
    if not is_given(config, "features"):
        inherited["features"] = saved.features
    return replace(config, init=name_of_model(config.data, folder), **inherited)


def is_given(config: TrainConfig, name: str) -> bool:
    """Return whether the user has set an option."""
    return name in config.given or config.is_set(name)


def moves_dataset(config: TrainConfig) -> bool:
    """Return whether the user has chosen another dataset than that of the source."""
    if config.init is None or not is_given(config, "dataset"):
        return False
    with suppress(ShowTellError):  # a resumed run does not need its source
        return RunConfig.read(find_model(config.data, config.init)).dataset != config.dataset
    return True


def load_source_features(config: TrainConfig, *, is_mapped: bool | None) -> FeatureStore:
    """Load the dataset's features, computed by the encoder of the source.

    Args:
        config: the options; `init` names the source.
        is_mapped: see `FeatureStore.load`.

    Raises:
        MissingArtifactError: there are none; the message names the command that computes them.
        MismatchError: another encoder computed them.
    """
    assert config.init is not None
    saved = RunConfig.read(find_model(config.data, config.init))
    try:
        directory = find_features(config.dataset_dir, config.features)
        store = FeatureStore.load(directory, is_mapped=is_mapped)
    except MissingArtifactError:
        folder = config.dataset_dir / "features" / saved.features
        require_run_features(saved, folder, config.views or saved.train.get("views") or 1)
        raise
    require_same_backbone(saved, store)
    return store


def source_checksum(config: TrainConfig) -> str:
    """Return the sha256 of the source's weights.

    A resumed run does not need its source any more: its config holds the sha256.
    """
    assert config.init is not None
    if config.resume:
        assert config.run is not None
        return find_config(config.data / "runs" / config.run).inputs["init"]
    return hash_file(weights_path(find_model(config.data, config.init)))
