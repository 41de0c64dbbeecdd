"""Find a run by its name, a run or a bundle by its folder, or the newest run."""

from contextlib import suppress
from pathlib import Path

from ...pipeline.layout import BUILT_IN
from ...pipeline.stage.artifacts import is_bundle, require_manifest
from ...pipeline.stage.command_line import command_line
from ...pipeline.stage.console import print_aside
from ...pipeline.stage.errors import DamagedFileError, MissingArtifactError
from .hub import PREFIX, address_of, fetch_bundle, split_address
from .layout import BEST_NAME, CONFIG_NAME, LAST_NAME

DEFAULT_MODEL = "flickr8k"


def run_names(data: Path, dataset: str | None = None) -> list[str]:
    """Return the names of the runs that have weights, oldest first.

    Args:
        data: root of all files.
        dataset: if given, only its runs are considered, and those whose config is lost.
    """
    weights = sorted((data / "runs").glob(f"*/{BEST_NAME}"), key=lambda path: path.stat().st_mtime)
    runs = [path.parent for path in weights]
    if dataset is not None:
        runs = [run for run in runs if _dataset_of(run) in (dataset, None)]
    return [run.name for run in runs]


def _dataset_of(run_dir: Path) -> str | None:
    from .repair import find_config  # needs torch, which is not needed to find a bundle

    with suppress(DamagedFileError):
        return find_config(run_dir).dataset
    return None


def choose_run(data: Path, run: str | None, dataset: str | None = None) -> Path:
    """Find a run as `find_run` does; print which one was chosen and whether it is unfinished.

    Raises:
        MissingArtifactError: there is no such run.
        DamagedFileError: its manifest is damaged.
    """
    run_dir = find_run(data, run, dataset)
    if run is None:
        print_aside(f"Using the newest run, {run_dir.name}; choose another with --run.")
    try:
        require_manifest(run_dir)
    except MissingArtifactError:
        command = command_line(data, "train", "--run", run_dir.name, "--resume")
        print_aside(
            f"{run_dir.name} is not finished; using its best epoch so far. Continue it with "
            f"'{command}'."
        )
    return run_dir


def find_run(data: Path, run: str | None, dataset: str | None = None) -> Path:
    """Find the folder of a run that has weights.

    Args:
        data: root of all files.
        run: name of the run; None finds the newest one.
        dataset: if given, only its runs are considered.

    Raises:
        MissingArtifactError: there is no such run; the message lists those there are.
    """
    runs = run_names(data, dataset)
    if run in runs or (run is None and runs):
        return data / "runs" / (run or runs[-1])
    run_dir = data / "runs" / (run or "")
    if (run_dir / LAST_NAME).exists() and not (run_dir / BEST_NAME).exists():
        raise MissingArtifactError(
            f"{run_dir} has no weights yet because training stopped before the end of its first "
            f"epoch. Run '{command_line(data, 'train', '--run', run_dir.name, '--resume')}' first."
        )
    wanted = "no run" if run is None else f"no run {run!r}"
    wanted += "" if dataset is None else f" of {dataset}"
    found = f"found: {', '.join(sorted(runs))}" if runs else "found none"
    command = command_line(data, "train", "--dataset", dataset or "NAME")
    raise MissingArtifactError(
        f"{data / 'runs'} has {wanted} with weights ({found}). Run '{command}' first, or name "
        "another folder with --data."
    )


def find_model(data: Path, model: str | Path | None) -> Path:
    """Find the folder of a run or a bundle.

    Args:
        data: root of all files.
        model: name of a run, folder of a run or a bundle, name of a built-in bundle, or
            `hf:user/name` (`hf:user/name@revision`) for a bundle on the Hugging Face Hub; None
            takes the newest run, or the default built-in bundle if there is no run.

    Raises:
        MissingArtifactError: there is no such model.
        HubError: there is no such bundle on the Hub, or the Hub cannot be reached.
    """
    names = [] if str(model).startswith(PREFIX) else run_names(data)
    if model is None:
        default = BUILT_IN / DEFAULT_MODEL
        return default if default.exists() and not names else find_run(data, None)
    folder, runs = Path(model).expanduser().absolute(), (data / "runs").absolute()
    if str(model) in names or folder.parent == runs:
        return find_run(data, folder.name)
    return find_bundle(model) or find_run(data, str(model))  # raises the reason


def find_bundle(model: str | Path) -> Path | None:
    """Find the folder of a bundle, without torch.

    Args:
        model: folder, name of a built-in bundle, or `hf:user/name` (`hf:user/name@revision`).

    Returns:
        None if there is no such folder and no such built-in bundle.

    Raises:
        HubError: there is no such bundle on the Hub, or the Hub cannot be reached.
    """
    if str(model).startswith(PREFIX):
        return fetch_bundle(*split_address(str(model)))
    for candidate in (Path(model).expanduser().absolute(), BUILT_IN / model):
        if (candidate / CONFIG_NAME).exists() or is_bundle(candidate):
            return candidate
    return None


def name_of_model(data: Path, folder: Path) -> str:
    """Return what `find_model` finds a folder by: a name if possible, else the absolute path."""
    folder = folder.absolute()
    if (address := address_of(folder)) is not None:
        return address
    has_name = folder.parent in ((data / "runs").absolute(), BUILT_IN)
    return folder.name if has_name else str(folder)
