"""Read the outputs of stages: verify them by the manifest, and name the repair command in errors.

Every folder of a stage holds a `manifest.json` with the checksum of each output.
"""

import json
import re
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .checksums import checksum
from .command_line import data_option
from .errors import DamagedFileError, MissingArtifactError, ShowTellError, StorageError
from .files import file_size
from .manifest import MANIFEST_NAME, MISSING, Manifest

# The lines of a manifest that record the command of the stage.
COMMAND_LINES = re.compile(
    rb'^ "command": (".+"),\n "command_checksum": "(.+)",$', flags=re.MULTILINE
)

# Subfolders that belong to a stage's folder: of downloads, and of features in progress.
SUBFOLDERS = ("images", "annotations", ".next")

# Raised by parsers for damaged content, in addition to the errors of their library.
FORMAT_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RecursionError,
    NotImplementedError,
    zlib.error,
)


def require_stage(directory: Path, *, check_content: bool = True) -> Manifest:
    """Return the manifest of a finished stage.

    Args:
        directory: output folder of the stage.
        check_content: whether to verify the checksums of the outputs, not only their sizes.

    Raises:
        MissingArtifactError: the stage is not finished, or an output does not exist.
        DamagedFileError: the manifest is damaged, or an output does not match it.
    """
    manifest = require_manifest(directory)
    for name, problem in manifest.find_problems(directory, check_content=check_content)[:1]:
        raise output_error(directory / name, problem)
    return manifest


def require_manifest(directory: Path) -> Manifest:
    """Return the manifest of a finished stage, without looking at the outputs.

    Raises:
        MissingArtifactError: the stage is not finished.
        DamagedFileError: the manifest is damaged.
    """
    try:
        return Manifest.load(directory)
    except (MissingArtifactError, DamagedFileError) as error:
        raise type(error)(f"{error} Run '{repair_command(directory / MANIFEST_NAME)}'.") from None


def output_error(path: Path, problem: str) -> DamagedFileError | MissingArtifactError:
    """Return the error for a problem that `Manifest.find_problems` found."""
    if problem == MISSING:
        return MissingArtifactError(f"{path} {problem}. Run '{repair_command(path)}'.")
    return damaged(path, problem)


def read_output(path: Path) -> bytes:
    """Return the content of a stage's output, verified against the manifest beside it.

    Manifests of earlier versions have no checksums; they verify the size only.

    Raises:
        MissingArtifactError: the file does not exist.
        DamagedFileError: it is not the file that the stage wrote, or cannot be read.
    """
    with reading(path):
        content = path.read_bytes()
        manifest = Manifest.read(path.parent)
        if manifest is not None:
            problem = manifest.find_problem(path.name, len(content), partial(checksum, content))
            if problem is not None:
                raise ValueError(problem)
    return content


@contextmanager
def reading(path: Path, *library_errors: type[Exception]) -> Iterator[None]:
    """Turn any exception while reading a stage's output into one error with the repair command.

    Args:
        path: of the file.
        library_errors: exceptions of the library that parses it, besides `FORMAT_ERRORS`.

    Raises:
        MissingArtifactError: the file does not exist.
        StorageError: the operating system cannot read it.
        DamagedFileError: its content is not what a stage writes.
    """
    try:
        yield
    except ShowTellError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise MissingArtifactError(
            f"{path} does not exist. Run '{repair_command(path)}'."
        ) from None
    except FORMAT_ERRORS + library_errors as error:
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
        raise damaged(path, describe(error)) from error


def damaged(path: Path, reason: str) -> DamagedFileError:
    """Return the error for a damaged file: path, reason, and the command that repairs it."""
    return DamagedFileError(f"{path} is damaged: {reason}. Run '{repair_command(path)}'.")


def describe(error: Exception) -> str:
    """Return the message of an error on one line of at most 200 characters."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, KeyError):
        return f"it has no {text}"
    return text.rstrip(".")


def repair_command(path: Path) -> str:
    """Return the command that writes a file under the data folder again.

    Args:
        path: `data/<dataset>/captions/…`, `data/<dataset>/features/<name>/…`, `data/runs/<run>/…`.
            It need not exist.

    Returns:
        The command, after `rm -f PATH &&` if the stage would otherwise not notice the damage.
    """
    folder = path.parent
    if folder.name in SUBFOLDERS:
        folder = folder.parent
    data, command = _command_by_place(folder)
    if not command.startswith("train"):  # `--resume` finds the options of a run by itself
        command = _recorded_command(folder) or command
    command = f"showtell {command}{data_option(data)}"
    # `download` does not read an archive again once it has verified it.
    remove = path.suffix == ".zip" or _passes_unread(path)
    return f"rm -f {shlex.quote(str(path))} && {command}" if remove else command


def _passes_unread(path: Path) -> bool:
    """Return whether a stage would accept a file because of its size, without reading it.

    Manifests have no checksums of the largest files; those of earlier versions have none at all.
    """
    manifest, size = Manifest.read(path.parent), file_size(path)
    if manifest is None or size is None or path.name in manifest.checksums:
        return False
    return path.name == MANIFEST_NAME or manifest.outputs.get(path.name) == size


def _recorded_command(folder: Path) -> str | None:
    """Return the command that a manifest records, even if the rest of the file is damaged."""
    try:
        found = COMMAND_LINES.search((folder / MANIFEST_NAME).read_bytes())
        command = str(json.loads(found[1])) if found else ""
    except (OSError, ValueError):
        return None
    is_sound = found is not None and checksum(command.encode()).encode() == found[2]
    return command if is_sound else None


def _command_by_place(folder: Path) -> tuple[Path, str]:
    """Return the data folder, and the command that writes `folder`, with default options."""
    parent = folder.absolute().parent
    if parent.name == "features":
        return parent.parents[1], f"features --dataset {shlex.quote(parent.parent.name)}"
    if parent.name == "eval":
        runs = "".join(f" --run {shlex.quote(run)}" for run in parent.parent.name.split("+"))
        return parent.parents[2], f"eval{runs}"
    if parent.name == "runs":
        return parent.parent, f"train --run {shlex.quote(folder.name)} --resume"
    stage = "download" if folder.name == "raw" else "prepare"
    return parent.parent, f"{stage} --dataset {shlex.quote(parent.name)}"
