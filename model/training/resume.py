"""The options of a new or resumed run, and the checks that protect existing runs."""

from dataclasses import replace
from pathlib import Path
from signal import Signals

from ...pipeline.stage.checksums import checksum_of_file, checksums_of
from ...pipeline.stage.command_line import command_line, command_of, data_option
from ...pipeline.stage.console import print_note, print_warning
from ...pipeline.stage.errors import MismatchError, MissingArtifactError, StoppedError
from ...pipeline.stage.manifest import Manifest
from ...pipeline.stage.options import flag
from ..config import TrainConfig
from ..runs.layout import BEST_NAME, CONFIG_NAME, LAST_NAME, LOG_NAME, VOCAB_NAME
from ..runs.repair import find_config, find_problems, has_started, set_aside
from ..runs.run import require_same_backbone
from ..runs.run_log import RunLog
from .data import TrainingData
from .source import is_given, moves_dataset


def default_run_name(config: TrainConfig) -> str:
    """Return the name of a run without `--run`.

    Such as `flickr8k-gru-soft`, or with `--init` `RUN-tuned`, `RUN-scst`, and `DATASET-tuned` on
    another dataset.
    """
    if config.init is not None:
        start = config.dataset if moves_dataset(config) else Path(config.init).name
        return f"{start}-{'scst' if config.scst else 'tuned'}"
    parts = [config.dataset, config.cell, config.attention]
    return "-".join(part for part in parts if part != "none")


def restore_options(run_dir: Path, config: TrainConfig) -> TrainConfig:
    """Return the options that a run was started with, for `--resume`.

    Args:
        run_dir: folder of the run.
        config: the options given by the user.

    Raises:
        MissingArtifactError: there is no run to resume.
        DamagedFileError: no file contains its options.
        MismatchError: an option given by the user contradicts those of the run.
    """
    saved = find_config(run_dir)
    started = replace(saved.train_config(), data=config.data)
    for name in TrainConfig().result_options():
        now, then = getattr(config, name), getattr(started, name)
        if is_given(config, name) and now != then:
            raise MismatchError(
                f"{run_dir} was started with {flag(name)} {then}, got {now}. Leave out "
                f"{flag(name)} to resume, or start another run with --run NAME."
            )
    return replace(
        started, resume=True, run=run_dir.name, features=saved.features, device=config.device
    )


def require_same_run(run_dir: Path, config: TrainConfig, data: TrainingData) -> None:
    """Check that a run that has started has these options and inputs.

    Raises:
        MismatchError: an option or input differs.
        DamagedFileError: no file contains its options.
    """
    if not has_started(run_dir):
        return
    saved, advice = find_config(run_dir), "Choose another name with --run."
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
    require_same_backbone(saved, data.store)


def find_finished(run_dir: Path, config: TrainConfig) -> Manifest | None:
    """Return the manifest of a run if it is finished and undamaged, else None."""
    manifest = Manifest.read(run_dir)
    if manifest is None or find_problems(run_dir, all_files=config.resume):
        return None
    return manifest


def prepare_run(run_dir: Path, config: TrainConfig, data: TrainingData) -> bool:
    """Prepare the folder of a run for training. The caller must hold its lock.

    With `--resume`, `config.json` and `vocab.json` are restored, and damaged lines of the log
    are dropped. Weights cannot be restored: if they are damaged, the old results are set
    aside, and training starts from step 0.

    Returns:
        Whether to continue from the last checkpoint.

    Raises:
        MismatchError: the run was stopped, and `--resume` is not given.
        DamagedFileError: a file is damaged, and `--resume` is not given.
    """
    if not has_started(run_dir):
        return False
    problems = find_problems(run_dir, all_files=config.resume)
    if not config.resume:
        for error in problems.values():
            raise error
        raise MismatchError(
            f"{run_dir} was stopped before it finished. Add --resume to continue it, or choose "
            f"another name with --run."
        )
    for error in problems.values():
        print_warning(str(error).partition(" Run '")[0])
    if problems.keys() & {CONFIG_NAME, VOCAB_NAME}:
        saved = find_config(run_dir)
        data.vocab.write(run_dir / VOCAB_NAME)
        vocab_checksum = checksum_of_file(run_dir / VOCAB_NAME)
        replace(saved, vocab_checksum=vocab_checksum).write(run_dir)
        print_note(f"train: restored {CONFIG_NAME} and {VOCAB_NAME} of {run_dir}.")
    manifest = Manifest.read(run_dir)
    if BEST_NAME in problems or (LAST_NAME in problems and manifest is None):
        folder = set_aside(run_dir)
        print_warning(f"{run_dir} starts from step 0. Its earlier results are in {folder}.")
        return False
    if manifest is not None:
        if LAST_NAME in problems:
            (run_dir / LAST_NAME).unlink()
            print_note(f"train: deleted {LAST_NAME}, which a finished run does not need.")
        _list_again(run_dir, manifest)
    return True


def _list_again(run_dir: Path, manifest: Manifest) -> None:
    """Drop the damaged lines of a finished run's log, and update its manifest."""
    with RunLog(run_dir, manifest.counts["num_steps"]):
        pass
    restored = [CONFIG_NAME, VOCAB_NAME, LOG_NAME]
    sizes = {name: (run_dir / name).stat().st_size for name in restored}
    checksums = manifest.checksums | checksums_of(run_dir, restored)
    replace(manifest, outputs=manifest.outputs | sizes, checksums=checksums).write(run_dir)


def require_folder(run_dir: Path, config: TrainConfig) -> None:
    """Check that the run's folder still exists; writing would create an incomplete one.

    Raises:
        MissingArtifactError: it was moved or deleted.
    """
    if not (run_dir / CONFIG_NAME).exists():
        command = command_of("train", replace(config, run=run_dir.name))
        raise MissingArtifactError(
            f"{run_dir} was moved or deleted during the training. Run 'showtell {command}"
            f"{data_option(config.data)}' to start again."
        )


def stopped_by(signal: Signals, run_dir: Path, step: int) -> StoppedError:
    """Return the error that ends a training once its checkpoint is saved."""
    command = command_line(run_dir.parents[1], "train", "--run", run_dir.name, "--resume")
    return StoppedError(
        f"{run_dir} was stopped by {signal.name} at step {step}. Run '{command}' to continue.",
        signal,
    )
