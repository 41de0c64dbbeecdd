"""Which run a training begins, goes on with or starts from; no run is ever overwritten."""

from dataclasses import replace
from pathlib import Path

from ...pipeline.stage.errors import MismatchError, MissingArtifactError
from ...pipeline.stage.manifest import MANIFEST_NAME, Manifest
from ..config import TrainConfig
from ..runs.layout import BEST_NAME, LAST_NAME
from ..runs.run import RunConfig, find_run
from .data import TrainingData

# Options that a run passes on to those that start from it.
BUILT_IN = (
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
    """Name of a run that is given none, e.g. `flickr8k-gru`, `flickr8k-gru-soft`, `RUN-scst`."""
    if config.init is not None:
        return f"{config.init}-{'scst' if config.scst else 'tuned'}"
    parts = [config.dataset, config.cell, config.attention]
    return "-".join(part for part in parts if part != "none")


def built_like(init: str, config: TrainConfig) -> TrainConfig:
    """The options with the dataset, features and decoder of the run to start from.

    Raises:
        MissingArtifactError: there is no such run.
        MismatchError: an option that was given says otherwise.
    """
    run_dir = find_run(config.data, init)
    saved = RunConfig.read(run_dir)
    built = saved.train_config()
    taken = {name: getattr(built, name) for name in BUILT_IN} | {"features": saved.features}
    for name, then in taken.items():
        now = getattr(config, name)
        given = name in config.given or now != getattr(TrainConfig, name)
        if given and now != then:
            raise MismatchError(
                f"--init {init} was trained with {name} {then}, got {now}. Leave it out: what "
                f"starts from a run is built like it."
            )
    return replace(config, **taken)


def started_with(run_dir: Path, config: TrainConfig) -> TrainConfig:
    """The options a run was started with; those given now may only repeat them."""
    if not (run_dir / LAST_NAME).exists():
        if any((run_dir / name).exists() for name in (BEST_NAME, MANIFEST_NAME)):
            raise MissingArtifactError(
                f"{run_dir / LAST_NAME} does not exist, without which the run cannot go on. Delete "
                f"{run_dir} to train it anew, or choose another name with --run."
            )
        raise MissingArtifactError(
            f"{run_dir / LAST_NAME} does not exist: nothing to resume. "
            f"Run 'showtell train' without --resume."
        )
    saved = RunConfig.read(run_dir)
    started = replace(saved.train_config(), data=config.data)
    for name, default in TrainConfig().result_options().items():
        now, then = getattr(config, name), getattr(started, name)
        given = name in config.given or now != default
        if given and now != then:
            raise MismatchError(
                f"{run_dir} was started with {name} {then}, got {now}. "
                f"Resume without it, or start another run with --run NAME."
            )
    return replace(
        started, resume=True, run=run_dir.name, features=saved.features, device=config.device
    )


def check_run(run_dir: Path, config: TrainConfig, data: TrainingData) -> bool:
    """Whether the run has begun; one that has anything to lose is never overwritten."""
    finished = Manifest.read(run_dir)
    if not any((run_dir / name).exists() for name in (LAST_NAME, BEST_NAME, MANIFEST_NAME)):
        return False
    saved, choose = RunConfig.read(run_dir), "Choose another name with --run."
    before = TrainConfig().as_json() | saved.train  # what did not exist then was as by default
    for name, now in config.result_options().items():
        if before[name] != now:
            raise MismatchError(
                f"{run_dir} exists and has {name} {before[name]}, got {now}. {choose}"
            )
    for name, sha256 in data.inputs.items():
        if saved.inputs.get(name) != sha256:
            raise MismatchError(
                f"{run_dir} was trained with other {name} than {config.dataset_dir} has now. "
                f"{choose}"
            )
    if finished is None and not config.resume:
        raise MismatchError(
            f"{run_dir} was stopped before its end. Add --resume to go on, or choose another name "
            f"with --run."
        )
    if finished is not None and (missing := finished.missing_outputs(run_dir)):
        raise MissingArtifactError(
            f"{run_dir / missing[0]} of a finished run is gone or changed. {choose}"
        )
    return True
