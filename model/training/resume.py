"""Start, resume or fine-tune a run without ever overwriting one."""

from dataclasses import replace
from pathlib import Path

from ...pipeline.stage.errors import MismatchError, MissingArtifactError
from ...pipeline.stage.manifest import MANIFEST_NAME, Manifest
from ...pipeline.stage.options import flag
from ..config import TrainConfig
from ..runs.layout import BEST_NAME, LAST_NAME
from ..runs.run import RunConfig, find_run
from .data import TrainingData

# Options that a run started with --init takes from the run it starts from.
INHERITED_OPTIONS = (
    "dataset",
    "cell",
    "attention",
    "attention_size",
    "hidden_size",
    "embed_size",
    "num_layers",
    "image_as",
    "tie_embeddings",
)


def default_run_name(config: TrainConfig) -> str:
    """Return the name without `--run`: `flickr8k-gru`, `flickr8k-gru-soft`, `RUN-scst`, …."""
    if config.init is not None:
        return f"{config.init}-{'scst' if config.scst else 'tuned'}"
    parts = [config.dataset, config.cell, config.attention]
    return "-".join(part for part in parts if part != "none")


def built_like(init: str, config: TrainConfig) -> TrainConfig:
    """Return the options with the dataset, features and decoder of the run to start from.

    Args:
        init: name of that run.
        config: the options given.

    Raises:
        MissingArtifactError: there is no such run.
        MismatchError: an option that was given contradicts the run.
    """
    run_dir = find_run(config.data, init)
    saved = RunConfig.read(run_dir)
    trained = saved.train_config()
    inherited = {name: getattr(trained, name) for name in INHERITED_OPTIONS}
    inherited["features"] = saved.features
    for name, then in inherited.items():
        now = getattr(config, name)
        is_given = name in config.given or config.is_set(name)
        if is_given and now != then:
            raise MismatchError(
                f"--init {init} was trained with {flag(name)} {then}, got {now}. Leave out "
                f"{flag(name)}: a run takes it from the run it starts from."
            )
    return replace(config, **inherited)


def started_with(run_dir: Path, config: TrainConfig) -> TrainConfig:
    """Return the options that a run was started with, for `--resume`.

    Raises:
        MissingArtifactError: there is no checkpoint to resume from.
        MismatchError: an option that was given contradicts them.
    """
    if not (run_dir / LAST_NAME).exists():
        if any((run_dir / name).exists() for name in (BEST_NAME, MANIFEST_NAME)):
            raise MissingArtifactError(
                f"{run_dir / LAST_NAME} does not exist, so the run cannot be resumed. Delete "
                f"{run_dir} to train it from scratch, or choose another name with --run."
            )
        raise MissingArtifactError(
            f"{run_dir / LAST_NAME} does not exist: there is nothing to resume. Run 'showtell "
            f"train' without --resume."
        )
    saved = RunConfig.read(run_dir)
    started = replace(saved.train_config(), data=config.data)
    for name in TrainConfig().result_options():
        now, then = getattr(config, name), getattr(started, name)
        is_given = name in config.given or config.is_set(name)
        if is_given and now != then:
            raise MismatchError(
                f"{run_dir} was started with {flag(name)} {then}, got {now}. Leave out "
                f"{flag(name)} to resume, or start another run with --run NAME."
            )
    return replace(
        started, resume=True, run=run_dir.name, features=saved.features, device=config.device
    )


def check_run(run_dir: Path, config: TrainConfig, data: TrainingData) -> bool:
    """Return whether the run has already started; refuse to overwrite it.

    Raises:
        MismatchError: the run exists with other options or inputs, or was stopped and `--resume`
            is missing.
        MissingArtifactError: an output of the finished run is missing or changed.
    """
    finished = Manifest.read(run_dir)
    if not any((run_dir / name).exists() for name in (LAST_NAME, BEST_NAME, MANIFEST_NAME)):
        return False
    saved, advice = RunConfig.read(run_dir), "Choose another name with --run."
    # Options that did not exist yet when the run was trained have their defaults.
    trained = TrainConfig().as_json() | saved.train
    for name, now in config.result_options().items():
        if trained[name] != now:
            raise MismatchError(
                f"{run_dir} exists and was trained with {flag(name)} {trained[name]}, got {now}. "
                f"{advice}"
            )
    for name, sha256 in data.inputs.items():
        if saved.inputs.get(name) != sha256:
            raise MismatchError(
                f"{run_dir} was trained with another {name} than the one in {config.dataset_dir} "
                f"now. {advice}"
            )
    if finished is None and not config.resume:
        raise MismatchError(
            f"{run_dir} was stopped before it finished. Add --resume to continue it, or choose "
            f"another name with --run."
        )
    if finished is not None and (missing := finished.missing_outputs(run_dir)):
        raise MissingArtifactError(
            f"{run_dir / missing[0]} is missing or has changed since the run finished. {advice}"
        )
    return True
