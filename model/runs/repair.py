"""Find the damaged files of a run, and read its config from a copy if necessary.

`config.json` has a copy in the manifest of a finished run and in its weights, and `vocab.json` is a
copy of the dataset's. Weights have no copy.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...pipeline.stage.artifacts import read_output, require_manifest
from ...pipeline.stage.command_line import command_line
from ...pipeline.stage.errors import (
    DamagedFileError,
    MismatchError,
    MissingArtifactError,
    ShowTellError,
)
from ...pipeline.stage.files import reporting_write_errors
from ...pipeline.stage.manifest import COPY_NAME, MANIFEST_NAME, Manifest
from .checkpoint import Progress, read_progress
from .layout import BEST_NAME, CONFIG_NAME, CURVES_NAME, LAST_NAME, LOG_NAME, VOCAB_NAME
from .run import RunConfig, read_decoder, read_run, read_vocab, require_same_config

# Results of a run, in the order in which `set_aside` moves them. The manifest goes first, so that
# an interrupted move leaves an unfinished run.
RESULTS = (MANIFEST_NAME, LAST_NAME, BEST_NAME, LOG_NAME, CURVES_NAME)


def has_started(run_dir: Path) -> bool:
    """Return whether a folder holds results of a training."""
    return any((run_dir / name).exists() for name in (LAST_NAME, BEST_NAME, MANIFEST_NAME))


def find_manifest(run_dir: Path) -> Manifest | None:
    """Return the manifest of a finished run, or its copy if it is damaged or of another run."""
    if (run_dir / MANIFEST_NAME).exists():
        for name in (MANIFEST_NAME, COPY_NAME):
            with suppress(MissingArtifactError, DamagedFileError):
                manifest = Manifest.load(run_dir, name)
                if not is_foreign(run_dir, manifest):
                    return manifest
    return None


def is_foreign(run_dir: Path, manifest: Manifest) -> bool:
    """Return whether a manifest is of another run: neither config nor weights are those it lists.

    A config that does not match its own checksum is damaged, and shows nothing.
    """
    with suppress(MissingArtifactError, DamagedFileError):
        RunConfig.read(run_dir, alone=True)
        problems = dict(manifest.find_problems(run_dir))
        return {CONFIG_NAME, BEST_NAME} <= problems.keys()
    return False


def find_config(run_dir: Path) -> RunConfig:
    """Return the config of a run, from `config.json` or from a copy of it.

    Raises:
        MissingArtifactError: there is no run.
        DamagedFileError: no file of the run holds its config.
    """
    with suppress(MissingArtifactError, DamagedFileError):
        return RunConfig.read(run_dir)
    with suppress(KeyError, ValueError, TypeError):
        if manifest := find_manifest(run_dir):
            return RunConfig.from_json(manifest.details["run"])
    for name in (LAST_NAME, BEST_NAME):
        with suppress(MissingArtifactError, DamagedFileError):
            if run := read_run(run_dir / name):
                return run
    command = command_line(run_dir.parents[1], "train", "--run", run_dir.name)
    if not has_started(run_dir):
        raise MissingArtifactError(
            f"{run_dir} has no checkpoint: there is nothing to resume. Run '{command}' with the "
            "options of the run, without --resume."
        )
    raise DamagedFileError(
        f"{run_dir / CONFIG_NAME} is missing or damaged, and no other file holds the options of "
        f"the run. Run '{command}' with these options, without --resume: it starts from step 0, "
        "and keeps the earlier results in a subfolder."
    )


def find_problems(run_dir: Path, *, all_files: bool = False) -> dict[str, ShowTellError]:
    """Read the files of a run that has started.

    Args:
        run_dir: folder of the run.
        all_files: whether to check also the last checkpoint of a finished run, which is not needed.

    Returns:
        File name → error, for each file that is missing or damaged. Without the config of the run,
        the others cannot be checked.
    """
    try:
        config, manifest = find_config(run_dir), Manifest.read(run_dir)
    except DamagedFileError as error:
        return {CONFIG_NAME: error}
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
    if run is not None:
        require_same_config(run_dir / LAST_NAME, run, config)
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
