"""The options of a new, resumed or fine-tuned run, and the checks that protect existing runs."""

from dataclasses import replace
from pathlib import Path

from ...pipeline.stage.command_line import command_line
from ...pipeline.stage.errors import MismatchError, MissingArtifactError
from ...pipeline.stage.manifest import MANIFEST_NAME, Manifest
from ...pipeline.stage.options import flag
from ..config import TrainConfig
from ..runs.find import find_run
from ..runs.layout import BEST_NAME, LAST_NAME
from ..runs.run import RunConfig
from .data import TrainingData

# Options that `--init` takes over from the earlier run.
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
    """Return the name of a run without `--run`, such as `flickr8k-gru-soft` or `RUN-scst`."""
    if config.init is not None:
        return f"{config.init}-{'scst' if config.scst else 'tuned'}"
    parts = [config.dataset, config.cell, config.attention]
    return "-".join(part for part in parts if part != "none")


def inherit_options(init: str, config: TrainConfig) -> TrainConfig:
    """Return the options, with those about dataset, features and decoder taken from a run.

    Args:
        init: name of the run to start from, given by `--init`.
        config: the options given by the user.

    Raises:
        MissingArtifactError: there is no such run.
        MismatchError: an option given by the user contradicts the run.
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
                f"{flag(name)}: it is taken from the run given by --init."
            )
    return replace(config, **inherited)


def restore_options(run_dir: Path, config: TrainConfig) -> TrainConfig:
    """Return the options that a run was started with, for `--resume`.

    Args:
        run_dir: folder of the run.
        config: the options given by the user.

    Raises:
        MissingArtifactError: there is no checkpoint to resume from.
        MismatchError: an option given by the user contradicts those of the run.
    """
    if not (run_dir / LAST_NAME).exists():
        if any((run_dir / name).exists() for name in (BEST_NAME, MANIFEST_NAME)):
            raise MissingArtifactError(
                f"{run_dir / LAST_NAME} does not exist, so the run cannot be resumed. Delete "
                f"{run_dir} to train it from scratch, or choose another name with --run."
            )
        raise MissingArtifactError(
            f"{run_dir / LAST_NAME} does not exist: there is nothing to resume. Run "
            f"'{command_line(config.data, 'train', '--run', run_dir.name)}' without --resume."
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
    """Return whether the run has already started; raise if training would overwrite it.

    Raises:
        MismatchError: the run exists and has other options or inputs, or it was stopped and
            `--resume` is not given.
        MissingArtifactError: an output of the finished run is missing or has changed.
    """
    finished = Manifest.read(run_dir)
    if not any((run_dir / name).exists() for name in (LAST_NAME, BEST_NAME, MANIFEST_NAME)):
        return False
    saved, advice = RunConfig.read(run_dir), "Choose another name with --run."
    # Runs of an earlier version lack some options, which then have their defaults.
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
                f"The input '{name}' has changed since {run_dir} was trained. {advice}"
            )
    if finished is None and not config.resume:
        raise MismatchError(
            f"{run_dir} was stopped before it finished. Add --resume to continue it, or choose "
            f"another name with --run."
        )
    if finished is not None and (problems := finished.find_problems(run_dir)):
        raise MissingArtifactError(
            f"{run_dir / problems[0][0]} is damaged: {problems[0][1]}. {advice}"
        )
    return True
