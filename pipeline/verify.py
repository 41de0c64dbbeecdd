"""Verify the files of a dataset: each is read by the function that the stages use.

`features/verify.py` and `model/verify.py` add the checks of their own files.
"""

import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .captions import read_captions, read_images
from .layout import CAPTIONS_PARQUET, IMAGES_PARQUET, VOCAB_JSON
from .stage.artifacts import damaged, output_error, reading, repair_command, require_manifest
from .stage.checksums import checksum_of_file
from .stage.errors import MissingArtifactError, ShowTellError
from .stage.files import IS_BUSY, LOCK_NAME, file_size, is_locked
from .stage.manifest import COPY_NAME, MANIFEST_NAME, Manifest
from .text.vocab import Vocab

Reader = Callable[[Path], object]  # raises a ShowTellError if the file is not what a stage wrote


@dataclass(frozen=True)
class Problem:
    """A file that is damaged, missing, or left over from an interrupted stage.

    Attributes:
        path: of the file.
        state: `damaged`, `missing`, `unfinished` for a leftover of an interrupted stage, or
            `skipped` for a folder that another process is writing to.
        message: what is wrong, and what to do.
        command: repairs the file; empty for a skipped folder.
    """

    path: Path
    state: str
    message: str
    command: str


@dataclass(frozen=True)
class Check:
    """A file to verify.

    Attributes:
        path: of the file.
        read: reads and verifies the file.
        command: repairs it; default the command of the stage that writes it.
        state: of the problem, if there is one; `damaged` becomes `missing` if there is no file.
    """

    path: Path
    read: Callable[[], object]
    command: str | None = None
    state: str = "damaged"

    def find_problem(self) -> Problem | None:
        """Verify the file; return None if it has no problem."""
        try:
            with reading(self.path):
                self.read()
        except ShowTellError as error:
            is_missing = isinstance(error, MissingArtifactError) and self.state == "damaged"
            state = "missing" if is_missing else self.state
            command = self.command if self.command is not None else repair_command(self.path)
            return Problem(self.path, state, str(error), command)
        return None


def link_checks(data: Path, *patterns: str) -> Iterator[Check]:
    """Yield a check for each symbolic link that leads nowhere, such as to a disk that is missing.

    Args:
        data: root of all files.
        patterns: globs of the folders that stages write to.
    """
    for path in sorted(path for pattern in patterns for path in data.glob(pattern)):
        if path.is_symlink() and not path.exists():
            command = f"rm {shlex.quote(str(path))}"
            lost = MissingArtifactError(
                f"{path} is a link to {path.readlink()}, which cannot be opened. Connect its disk, "
                f"or run '{command}'."
            )
            yield Check(path, partial(_fail, lost), command)


def dataset_checks(dataset: Path) -> Iterator[Check]:
    """Yield the checks of `data/<dataset>/raw` and `captions`."""
    raw = dataset / "raw"
    # `download` locks the folder it writes to. Any other `raw` is the user's own.
    if any(file_size(raw / name) is not None for name in (LOCK_NAME, MANIFEST_NAME)):
        archives = _archive_digests(Manifest.read(raw)).items()
        yield from stage_checks(
            raw, {name: partial(_check_digest, digest) for name, digest in archives}
        )
    readers: dict[str, Reader] = {
        IMAGES_PARQUET: read_images,
        CAPTIONS_PARQUET: read_captions,
        VOCAB_JSON: Vocab.read,
    }
    yield from stage_checks(dataset / "captions", readers)


def _archive_digests(manifest: Manifest | None) -> dict[str, str]:
    """Return name of each archive → its published checksum, as in `md5:0123…`."""
    inputs = manifest.inputs if manifest else {}
    return {Path(name).name: digest for name, digest in inputs.items()}


def _check_digest(expected: str, path: Path) -> None:
    with path.open("rb") as file:
        digest = f"md5:{hashlib.file_digest(file, 'md5').hexdigest()}"
    if digest != expected:
        raise damaged(path, f"it has {digest}, expected {expected}")


def stage_checks(
    directory: Path, readers: Mapping[str, Reader], unlisted: Mapping[str, Reader] | None = None
) -> Iterator[Check]:
    """Yield the checks of a stage's folder; only one, `skipped`, while it is being written.

    Args:
        directory: output folder of the stage.
        readers: name of an output → function that reads it, where a checksum is not enough.
        unlisted: the same for files that the manifest does not list; they need not exist.
    """
    try:
        paths = directory.glob("*")
        files = [path.name for path in paths if path.is_file() or path.name == MANIFEST_NAME]
    except OSError:  # its manifest cannot be read either
        files = [MANIFEST_NAME]
    names = {name for name in files if not name.startswith((LOCK_NAME, COPY_NAME))}
    if not names:
        return
    if is_locked(directory):
        busy = ShowTellError(f"{directory} {IS_BUSY} Then verify it again.")
        yield Check(directory, partial(_fail, busy), "", state="skipped")
        return
    is_finished = MANIFEST_NAME in names
    if is_finished:
        yield Check(directory / MANIFEST_NAME, partial(require_manifest, directory))
    else:
        yield _unfinished_check(directory)
    manifest = Manifest.read(directory)
    for name in manifest.outputs if manifest else sorted(names & readers.keys()):
        read = partial(_read_output, directory, name, manifest, readers.get(name))
        yield Check(directory / name, read)
    for name, reader in (unlisted or {}).items():
        if name in names:
            yield Check(directory / name, partial(reader, directory / name))
    for path in (directory / name for name in sorted(names) if ".partial" in name):
        # A finished stage does not look for them again.
        command = f"rm {shlex.quote(str(path))}" if is_finished else repair_command(path)
        leftover = ShowTellError(
            f"{path} was left behind by a stage that was stopped. Run '{command}'."
        )
        yield Check(path, partial(_fail, leftover), command, state="unfinished")


def _unfinished_check(directory: Path) -> Check:
    """Return the check of a folder without a manifest; it always reports the folder."""
    if directory.name == ".next":
        command = f"rm -r {shlex.quote(str(directory))}"
        text = (
            f"{directory} holds the files of a stage that was stopped. Run the same command again "
            f"to complete them, or '{command}' to delete them."
        )
    else:
        command = repair_command(directory / MANIFEST_NAME)
        text = (
            f"{directory} is not complete: its stage was stopped, or its {MANIFEST_NAME} was "
            f"deleted. Run '{command}' to complete it."
        )
    problem = partial(_fail, ShowTellError(text))
    return Check(directory / MANIFEST_NAME, problem, command, state="unfinished")


def _read_output(
    directory: Path, name: str, manifest: Manifest | None, reader: Reader | None
) -> None:
    """Verify a file by the manifest of its stage, then by its own reader."""
    path = directory / name
    with reading(path):
        if manifest is not None:
            checksum = partial(checksum_of_file, path)
            if problem := manifest.find_problem(name, file_size(path), checksum):
                raise output_error(path, problem)
        if reader is not None:
            reader(path)


def _fail(error: ShowTellError) -> None:
    raise error
