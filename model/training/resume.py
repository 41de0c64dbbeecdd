"""The options of a new or resumed run, and the checks that protect existing runs."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import Signals

import torch

from ...features.device import choose_precision, precision_name
from ...pipeline.stage.checksums import checksum_of_file, checksums_of
from ...pipeline.stage.command_line import command_of, data_option
from ...pipeline.stage.console import print_note, print_warning
from ...pipeline.stage.errors import (
    DamagedFileError,
    MismatchError,
    MissingArtifactError,
    StoppedError,
)
from ...pipeline.stage.files import locked
from ...pipeline.stage.manifest import MANIFEST_NAME, Manifest
from ...pipeline.stage.options import flag
from ...pipeline.text.vocab import Vocab
from ..config import TrainConfig
from ..decoders.registry import decoder_name
from ..runs.layout import BEST_NAME, CONFIG_NAME, LAST_NAME, LOG_NAME, VOCAB_NAME
from ..runs.repair import find_config, find_manifest, find_problems, has_started, set_aside
from ..runs.run import RunConfig, require_same_backbone
from ..runs.run_log import RunLog
from .data import TrainingData
from .distributed import resume_command
from .source import inherit_options, is_given, moves_dataset


def default_run_name(config: TrainConfig) -> str:
    """Return the name of a run without `--run`.

    Such as `flickr8k-gru-soft`, or with `--init` `RUN-tuned`, `RUN-scst`, and `DATASET-tuned` on
    another dataset.
    """
    if config.init is not None:
        start = config.dataset if moves_dataset(config) else Path(config.init).name
        return f"{start}-{'scst' if config.scst else 'tuned'}"
    return f"{config.dataset}-{decoder_name(config)}"


def resolve_options(config: TrainConfig, device: torch.device) -> TrainConfig:
    """Return the options of a new run: those of `--init` are taken over, `auto` is replaced.

    A run keeps its precision when it is resumed on another machine.

    Args:
        config: the options given by the user.
        device: the device to train on.

    Raises:
        MissingArtifactError: there is no run or bundle to start from.
        MismatchError: an option given by the user contradicts it.
        ConfigError: the device does not support the precision.
    """
    if config.init is not None:
        config = inherit_options(config)
    dtype = choose_precision(config.precision, device)
    return replace(config, precision=precision_name(dtype))


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
    return replace(started, resume=True, run=run_dir.name, device=config.device)


def repair_run(run_dir: Path) -> Manifest | None:
    """Repair the damaged files of a run, except weights; for `--resume`.

    Config, manifest, log and vocabulary need neither features nor captions: a finished run is
    repaired even if its dataset has changed since.

    Returns:
        The manifest if the run is finished and undamaged, else None.

    Raises:
        MismatchError: the vocabulary is damaged, and the dataset's is another one.
    """
    if find_problems(run_dir, all_files=True):
        with locked(run_dir):
            _repair_files(run_dir)
    return find_finished(run_dir, all_files=True)


def _repair_files(run_dir: Path) -> None:
    """Restore what can be restored, and drop what is not needed. The caller holds the lock."""
    saved = find_config(run_dir)
    manifest = find_manifest(run_dir)
    if manifest is not None and manifest != Manifest.read(run_dir):
        manifest.write(run_dir)
        print_note(f"train: restored {MANIFEST_NAME} of {run_dir} from its copy.")
    problems = find_problems(run_dir, all_files=True)
    for error in problems.values():
        print_warning(str(error).partition(" Run '")[0])
    if VOCAB_NAME in problems:
        _restore_vocab(run_dir, saved)
        saved = replace(saved, vocab_checksum=checksum_of_file(run_dir / VOCAB_NAME))
    if problems.keys() & {CONFIG_NAME, VOCAB_NAME}:
        saved.write(run_dir)
        print_note(f"train: restored {CONFIG_NAME} and {VOCAB_NAME} of {run_dir}.")
    if manifest is None or BEST_NAME in problems:
        return
    if LAST_NAME in problems:
        (run_dir / LAST_NAME).unlink()
        print_note(f"train: deleted {LAST_NAME}, which a finished run does not need.")
    if LOG_NAME in problems:
        with RunLog(run_dir, manifest.counts["num_steps"]):  # drops damaged lines
            pass
    if restored := problems.keys() & {CONFIG_NAME, VOCAB_NAME, LOG_NAME}:
        sizes = {name: (run_dir / name).stat().st_size for name in restored}
        checksums = manifest.checksums | checksums_of(run_dir, restored)
        replace(manifest, outputs=manifest.outputs | sizes, checksums=checksums).write(run_dir)


def _restore_vocab(run_dir: Path, saved: RunConfig) -> None:
    """Copy the vocabulary of the dataset, if the run was trained with it."""
    path = run_dir.parents[1] / saved.dataset / "captions" / VOCAB_NAME
    vocab = Vocab.read(path)
    if vocab.sha256 != saved.vocab_sha256:
        raise MismatchError(
            f"{run_dir / VOCAB_NAME} is damaged, and {path} has other words now. "
            f"{train_again(run_dir, saved)}"
        )
    vocab.write(run_dir / VOCAB_NAME)


def train_again(run_dir: Path, saved: RunConfig) -> str:
    """Return what to do if a run cannot be continued because its dataset has changed."""
    config = replace(saved.train_config(), features=saved.features, run=run_dir.name, resume=False)
    command = f"showtell {command_of('train', config)}{data_option(run_dir.parents[1])}"
    return (
        "Run the earlier stages again with the options used before the training, or move "
        f"{run_dir} to another place and train again with '{command}'."
    )


def require_same_run(
    run_dir: Path,
    config: TrainConfig,
    data: TrainingData,
    advice: str = "Choose another name with --run.",
) -> None:
    """Check that a run that has started has these options and inputs.

    Args:
        run_dir: folder of the run.
        config: the options.
        data: the inputs.
        advice: the end of the error.

    Raises:
        MismatchError: an option or input differs.
    """
    if not has_started(run_dir) or (saved := read_config(run_dir)) is None:
        return
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
                f"The input '{name}' has changed since {run_dir} was trained. "
                f"{train_again(run_dir, saved) if config.resume else advice}"
            )
    require_same_backbone(saved, data.store)


def read_config(run_dir: Path) -> RunConfig | None:
    """Return the config of a run; None if no file holds it."""
    with suppress(DamagedFileError):
        return find_config(run_dir)
    return None


def find_finished(run_dir: Path, *, all_files: bool = False) -> Manifest | None:
    """Return the manifest of a run if it is finished and undamaged, else None."""
    manifest = Manifest.read(run_dir)
    if manifest is None or find_problems(run_dir, all_files=all_files):
        return None
    return manifest


def prepare_run(run_dir: Path, config: TrainConfig) -> bool:
    """Prepare the folder of a run for training. The caller must hold its lock.

    Weights cannot be restored: if they are damaged, the old results are set aside with `--resume`,
    and training starts from step 0. Without the config, they are of no use either.

    Returns:
        Whether to continue from the last checkpoint.

    Raises:
        MismatchError: the run was stopped, and `--resume` is not given.
        DamagedFileError: a file is damaged, and `--resume` is not given.
    """
    if not has_started(run_dir):
        return False
    problems, is_lost = find_problems(run_dir), read_config(run_dir) is None
    if not config.resume and not is_lost:
        for error in problems.values():
            raise error
        raise MismatchError(
            f"{run_dir} was stopped before it finished. Add --resume to continue it, or choose "
            f"another name with --run."
        )
    if is_lost or problems.keys() & {BEST_NAME, LAST_NAME}:
        folder = set_aside(run_dir)
        print_warning(f"{run_dir} starts from step 0. Its earlier results are in {folder}.")
        return False
    return True


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
    return StoppedError(
        f"{run_dir} was stopped by {signal.name} at step {step}. Run '{resume_command(run_dir)}' "
        "to continue.",
        signal,
    )
