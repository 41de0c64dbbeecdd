"""The train stage: cached features and encoded captions → a run.

Writes data/runs/<run>/ (see `runs.layout`), with a manifest once training has finished. The
training loop is in training/trainer.py.
"""

from dataclasses import replace

from ..features.device import choose_device, choose_precision, precision_name
from ..pipeline.stage.console import print_note
from ..pipeline.stage.files import locked
from ..pipeline.stage.manifest import Manifest
from .config import TrainConfig
from .training.data import load_training_data
from .training.memory import choose_window
from .training.resume import (
    default_run_name,
    find_finished,
    prepare_run,
    repair_run,
    require_same_run,
    restore_options,
)
from .training.source import inherit_options
from .training.trainer import Trainer


def train(config: TrainConfig) -> Manifest:
    """Train a decoder on cached features, validate it after every epoch, and keep the best epoch.

    On a CPU, a run that was stopped at any moment and resumed ends with the same weights, bit for
    bit, as a run that was never stopped. Ctrl-C and SIGTERM stop it after the current step, with a
    checkpoint.

    Raises:
        MissingArtifactError: an earlier stage has not run, or there is nothing to resume.
        MismatchError: the run exists with other options or inputs.
        DamagedFileError: a file of the run is damaged, and `--resume` is not given.
        StoppedError: the run was stopped by a signal.
    """
    run_dir = config.data / "runs" / (config.run or default_run_name(config))
    if config.resume:
        config = restore_options(run_dir, config)
        if (manifest := repair_run(run_dir)) is not None:
            print_note(f"train: {run_dir} is finished.")
            return manifest
    else:
        if config.init is not None:
            config = inherit_options(config)
        # Resolved once: a run keeps its precision when it is resumed on another machine.
        dtype = choose_precision(config.precision, choose_device(config.device))
        config = choose_window(replace(config, precision=precision_name(dtype)), run_dir)
    data = load_training_data(config)
    require_same_run(run_dir, config, data)
    manifest = find_finished(run_dir)
    if manifest is None:  # a finished run needs no lock: its folder may be read-only
        with locked(run_dir):
            manifest = find_finished(run_dir)  # by another process, in the meantime
            if manifest is None:
                resume = prepare_run(run_dir, config)
                return Trainer(config, data, run_dir, resume=resume).run()
    print_note(f"train: {run_dir} is up to date.")
    return manifest
