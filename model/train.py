"""The train stage: cached features and encoded captions → a run.

Writes data/runs/<run>/ (see `runs.layout`), with a manifest once training has finished. The
training loop is in training/trainer.py.
"""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ..pipeline.stage.console import print_note
from ..pipeline.stage.files import locked
from ..pipeline.stage.manifest import Manifest
from ..pipeline.stage.memory import available_memory
from .config import TrainConfig
from .training.data import TrainingData, load_training_data
from .training.distributed import Group, joined_group
from .training.memory import choose_window
from .training.resume import (
    default_run_name,
    find_finished,
    prepare_run,
    repair_run,
    require_same_run,
    resolve_options,
    restore_options,
)
from .training.trainer import Trainer


def train(config: TrainConfig) -> Manifest:
    """Train a decoder on cached features, validate it after every epoch, and keep the best epoch.

    On a CPU, a run that was stopped at any moment and resumed ends with the same weights, bit for
    bit, as a run that was never stopped. Ctrl-C and SIGTERM stop it after the current step, with a
    checkpoint. Processes that torchrun has started train one run together.

    Raises:
        MissingArtifactError: an earlier stage has not run, or there is nothing to resume.
        MismatchError: the run exists with other options or inputs.
        DamagedFileError: a file of the run is damaged, and `--resume` is not given.
        StoppedError: the run was stopped by a signal.
        ProcessLostError: another process of the training has ended.
    """
    with joined_group() as group, ExitStack() as stack:
        available = min(group.gather(available_memory()))  # of the machine with the least
        find_run = partial(_find_run, config, group, available)
        config, run_dir, manifest = group.first(find_run)
        group.run_dir = run_dir
        if manifest is not None:
            print_note(f"train: {run_dir} is finished.")
            return manifest
        data = load_training_data(config)
        group.require_equal("The training data", data.inputs)
        manifest, resume = group.first(partial(_open_run, config, data, run_dir, stack))
        if manifest is None:
            return Trainer(config, data, run_dir, resume=resume, group=group).run()
    print_note(f"train: {run_dir} is up to date.")
    return manifest


def _find_run(
    config: TrainConfig, group: Group, available: int
) -> tuple[TrainConfig, Path, Manifest | None]:
    """Return the resolved options, the run's folder, and the manifest of a run to resume."""
    run_dir = config.data / "runs" / (config.run or default_run_name(config))
    if config.resume:
        return restore_options(run_dir, config), run_dir, repair_run(run_dir)
    config = resolve_options(config, group.choose_device(config.device))
    return choose_window(config, run_dir, available), run_dir, None


def _open_run(
    config: TrainConfig, data: TrainingData, run_dir: Path, stack: ExitStack
) -> tuple[Manifest | None, bool]:
    """Lock and prepare the folder of a run until the stack is closed.

    Returns:
        The manifest if the run is finished, and whether to continue from the last checkpoint.
    """
    require_same_run(run_dir, config, data)
    manifest = find_finished(run_dir)
    if manifest is not None:  # a finished run needs no lock: its folder may be read-only
        return manifest, False
    stack.enter_context(locked(run_dir))
    manifest = find_finished(run_dir)  # by another process, in the meantime
    return manifest, manifest is None and prepare_run(run_dir, config)
