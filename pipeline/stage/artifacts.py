"""Read the outputs of stages: verify them by the manifest, and name the repair command in errors.

Every folder of a stage holds a `manifest.json` with the checksum of each output.
"""

import os
import re
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from .checksums import checksum, checksum_of
from .command_line import data_option
from .errors import ConfigError, DamagedFileError, MissingArtifactError, ShowTellError
from .files import file_size, read_error
from .manifest import COPY_NAME, MANIFEST_NAME, MISSING, Manifest, stage_of
from .options import flag

# Stages whose command cannot be derived from the place of their folder; `--resume` finds options.
STAGES_WITH_OPTIONS = ("prepare", "features", "neighbours", "eval")

# Name of a features folder: encoder, weights, image size.
FEATURES_NAME = re.compile(r"([^-]+)-(.+?)(?:-([0-9]+))?")

# A folder with this file is a bundle, and not in the data folder.
BUNDLE_FILE = "model.safetensors"

# Subfolders of `raw`. Features that are computed again are in `.next` until they are complete.
RAW_SUBFOLDERS = ("images", "annotations")

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
        command = repair_command(directory / MANIFEST_NAME)
        is_lost = isinstance(error, DamagedFileError) and _has_lost_options(directory)
        advice = " with the options used before, which are lost" if is_lost else ""
        raise type(error)(f"{error} Run '{command}'{advice}.") from None


def output_error(path: Path, problem: str) -> DamagedFileError | MissingArtifactError:
    """Return the error for a problem that `Manifest.find_problems` found."""
    if problem == MISSING:
        return MissingArtifactError(f"{path} {problem}. Run '{repair_command(path)}'.")
    return damaged(path, problem)


def read_output(path: Path) -> bytes:
    """Return the content of a stage's output, verified against the manifest in its folder.

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
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Open a stage's output for reading, verified as by `read_output`, but not held in memory."""
    with reading(path), path.open("rb") as file:
        manifest = Manifest.read(path.parent)
        if manifest is not None:
            size = os.fstat(file.fileno()).st_size
            if problem := manifest.find_problem(path.name, size, partial(checksum_of, file)):
                raise ValueError(problem)
        file.seek(0)
        yield file


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
    except IsADirectoryError:
        raise damaged(path, "it is a folder") from None
    except FORMAT_ERRORS + library_errors as error:
        if unreadable := read_error(path, error):
            raise unreadable from error
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
        The command, after `rm -f PATH &&` if the stage would otherwise not notice the damage, or
        after `rmdir PATH &&` if a folder is in its place.
    """
    if path.is_dir() and not path.is_symlink():
        return f"rmdir {shlex.quote(str(path))} && {_rewrite_command(path)}"
    return _rewrite_command(path)


def _rewrite_command(path: Path) -> str:
    folder = path.parent
    if is_bundle(folder):
        commands = (manifest.command for manifest in _manifests(folder))
        words = shlex.split(next(filter(None, commands), "export RUN"))
        return f"showtell {shlex.join([*words[:2], str(folder), *words[3:]])}"
    in_raw = folder.parent.name == "raw" and folder.name in RAW_SUBFOLDERS
    if in_raw or folder.name == ".next":
        folder = folder.parent
    data, command = _command_by_place(folder)
    if folder.absolute().parent.name == "runs":  # `--resume` finds the options and reads all files
        return f"showtell {command}{data_option(data)}"
    command = f"showtell {_recorded_command(folder) or command}{data_option(data)}"
    # `download` does not read an archive again once it has verified it.
    remove = path.suffix == ".zip" or _passes_unread(path)
    return f"rm -f {shlex.quote(str(path))} && {command}" if remove else command


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is read as a bundle. `require_bundle_folder` guards writing."""
    manifest = Manifest.read(folder)
    return (folder / BUNDLE_FILE).exists() or (manifest is not None and manifest.stage == "export")


def require_bundle_folder(folder: Path, command: str, source: str) -> None:
    """Check that a bundle may be written to a folder: new, empty, or with a bundle of its source.

    Other programs also write `config.json`, `model.safetensors` and `README.md`. Therefore only a
    manifest, or the copy that `export` and `pull` write first, shows that the folder is ours.

    Args:
        folder: of the bundle.
        command: that writes it, `export` or `pull`.
        source: what it is made from, a run or a repository.

    Raises:
        ConfigError: it holds something else.
    """
    if not folder.exists():
        return
    if folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir()):
        return
    for manifest in _manifests(folder):
        if manifest.stage == "export":
            known = shlex.split(manifest.command)[:2]
            if known in ([], [command, source]):  # earlier versions recorded no command
                return
            raise ConfigError(
                f"{folder} holds another bundle, made by 'showtell {shlex.join(known)}'. Delete "
                "the folder, or give another OUT."
            )
    raise ConfigError(f"{folder} exists and is not a bundle. Give a new or empty folder.")


def _passes_unread(path: Path) -> bool:
    """Return whether a stage would accept the damaged file because its size is right.

    Manifests have no checksums of the largest files; those of earlier versions have none at all.
    """
    manifest, size = Manifest.read(path.parent), file_size(path)
    if manifest is None or size is None or path.name in manifest.checksums:
        return False
    return manifest.outputs.get(path.name) == size


def _recorded_command(folder: Path) -> str | None:
    """Return the command that a manifest or its copy records; None if neither does.

    A manifest that was written to a folder of another name would give the command of that one.
    """
    for manifest in _manifests(folder):
        if manifest.folder in ("", folder.absolute().name):
            return manifest.command or _command_of_manifest(manifest, folder)
    return None


def _manifests(folder: Path) -> Iterator[Manifest]:
    """Yield the manifest of a folder and its copy, those that are not damaged."""
    for name in (MANIFEST_NAME, COPY_NAME):
        with suppress(ShowTellError, OSError):
            yield Manifest.load(folder, name)


def _has_lost_options(folder: Path) -> bool:
    """Return whether the stage of a folder has options, and nothing records those used."""
    return stage_of(folder) in STAGES_WITH_OPTIONS and _recorded_command(folder) is None


def _command_of_manifest(manifest: Manifest, folder: Path) -> str | None:
    """Return the command with the options in a manifest of an earlier version, without a command.

    None for stages that need no options.
    """
    stage, options, folder = manifest.stage, dict(manifest.config), folder.absolute()
    if stage not in STAGES_WITH_OPTIONS:
        return None
    if stage == "eval":
        options["run"] = folder.parents[1].name.split("+")
    else:
        dataset = folder.parents[stage == "features"]
        options = {"dataset": dataset.name} | options
    if stage == "features":
        options["weights"] = manifest.details.get("weights", options.get("weights"))
    words = [stage]
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                words.append(flag(name))
            elif item is not None and item is not False:
                words += [flag(name), str(item)]
    return shlex.join(words)


def _command_by_place(folder: Path) -> tuple[Path, str]:
    """Return the data folder, and the command that writes `folder`, as far as its name tells."""
    parent = folder.absolute().parent
    if parent.name == "features":
        words = ["features", "--dataset", parent.parent.name]
        if found := FEATURES_NAME.fullmatch(folder.name):
            options = zip(("--encoder", "--weights", "--image-size"), found.groups(), strict=True)
            words += [word for option in options if option[1] for word in option]
        return parent.parents[1], shlex.join(words)
    if parent.name == "neighbours":
        features, _, neighbours = folder.name.rpartition("-")
        words = ["neighbours", "--dataset", parent.parent.name, "--features", features]
        return parent.parents[1], shlex.join([*words, "--neighbours", neighbours])
    if parent.name == "eval":
        runs = "".join(f" --run {shlex.quote(run)}" for run in parent.parent.name.split("+"))
        return parent.parents[2], f"eval{runs}"
    if parent.name == "runs":
        return parent.parent, f"train --run {shlex.quote(folder.name)} --resume"
    stage = "download" if folder.name == "raw" else "prepare"
    return parent.parent, f"{stage} --dataset {shlex.quote(parent.name)}"
