"""Find the damaged files of a run, and read its config from a copy if necessary.

`config.json` has a copy in the manifest of a finished run and in the last checkpoint, and
`vocab.json` is a copy of the dataset's. Weights have no copy.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ...pipeline.stage.artifacts import damaged, read_output, require_manifest
from ...pipeline.stage.command_line import command_line
from ...pipeline.stage.errors import (
    DamagedFileError,
    MismatchError,
    MissingArtifactError,
    ShowTellError,
)
from ...pipeline.stage.files import reporting_write_errors
from ...pipeline.stage.manifest import MANIFEST_NAME, Manifest
from .checkpoint import Progress, read_progress
from .layout import BEST_NAME, CONFIG_NAME, CURVES_NAME, LAST_NAME, LOG_NAME, VOCAB_NAME
from .run import RunConfig, read_decoder, read_vocab

# Results of a run, in the order in which `set_aside` moves them. The manifest goes first, so that
# an interrupted move leaves an unfinished run.
RESULTS = (MANIFEST_NAME, LAST_NAME, BEST_NAME, LOG_NAME, CURVES_NAME)


def has_started(run_dir: Path) -> bool:
    """Return whether a folder holds results of a training."""
    return any((run_dir / name).exists() for name in (LAST_NAME, BEST_NAME, MANIFEST_NAME))


def find_config(run_dir: Path) -> RunConfig:
    """Return the config of a run, from `config.json` or from a copy of it.

    Raises:
        MissingArtifactError: there is no run.
        DamagedFileError: no file of the run holds its config.
    """
    with suppress(MissingArtifactError, DamagedFileError):
        return RunConfig.read(run_dir)
    with suppress(MissingArtifactError, DamagedFileError, KeyError, ValueError, TypeError):
        return RunConfig.from_json(Manifest.load(run_dir).details["run"])
    with suppress(MissingArtifactError, DamagedFileError):
        _, run = read_progress(run_dir / LAST_NAME)
        if run is not None:
            return run
    command = command_line(run_dir.parents[1], "train", "--run", run_dir.name)
    if not has_started(run_dir):
        raise MissingArtifactError(
            f"{run_dir} has no checkpoint: there is nothing to resume. Run '{command}' with the "
            "options of the run, without --resume."
        )
    raise DamagedFileError(
        f"{run_dir / CONFIG_NAME} is missing or damaged, and no other file holds the options of "
        f"the run. Move {run_dir} to another place, then run '{command}' with these options."
    )


def find_problems(run_dir: Path, *, all_files: bool = False) -> dict[str, ShowTellError]:
    """Read the files of a run that has started.

    Args:
        run_dir: folder of the run.
        all_files: whether to check also the last checkpoint of a finished run, which is not needed.

    Returns:
        File name → error, for each file that is missing or damaged.

    Raises:
        DamagedFileError: no file holds the config of the run.
    """
    config, manifest = find_config(run_dir), Manifest.read(run_dir)
    readers: dict[str, Callable[[], object]] = {
        CONFIG_NAME: lambda: RunConfig.read(run_dir),
        VOCAB_NAME: lambda: read_vocab(run_dir, config),
    }
    if (run_dir / MANIFEST_NAME).exists():
        readers[MANIFEST_NAME] = lambda: require_manifest(run_dir)
    if manifest is None:
        readers[LAST_NAME] = lambda: _check_training(run_dir, config)
    else:
        readers[BEST_NAME] = lambda: read_decoder(run_dir, config)
        if LOG_NAME in manifest.outputs:
            readers[LOG_NAME] = lambda: read_output(run_dir / LOG_NAME)
        if all_files and (run_dir / LAST_NAME).exists():
            readers[LAST_NAME] = lambda: read_progress(run_dir / LAST_NAME)
    problems: dict[str, ShowTellError] = {}
    for name, read in readers.items():
        try:
            read()
        except (MissingArtifactError, DamagedFileError, MismatchError) as error:
            problems[name] = error
    return problems


def _check_training(run_dir: Path, config: RunConfig) -> None:
    """Check the last checkpoint, and the weights of the best epoch if there is one."""
    if check_checkpoint(run_dir, config).best_epoch:
        read_decoder(run_dir, config)


def check_checkpoint(run_dir: Path, config: RunConfig) -> Progress:
    """Return the progress in the last checkpoint of an unfinished run.

    Raises:
        MissingArtifactError: it does not exist.
        DamagedFileError: it is damaged, or belongs to another run.
    """
    progress, run = read_progress(run_dir / LAST_NAME)
    if run is not None and replace(run, vocab_checksum=config.vocab_checksum) != config:
        raise damaged(run_dir / LAST_NAME, "it belongs to another run")
    return progress


def set_aside(run_dir: Path) -> Path:
    """Move the results of a run to a subfolder, so that training can start again.

    Returns:
        The folder `earlier-<number>`.
    """
    numbers = [int(path.name[8:]) for path in run_dir.glob("earlier-*") if path.name[8:].isdigit()]
    folder = run_dir / f"earlier-{max(numbers, default=0) + 1}"
    with reporting_write_errors(run_dir):
        folder.mkdir()
        for name in RESULTS:
            if (run_dir / name).exists():
                (run_dir / name).rename(folder / name)
    return folder
