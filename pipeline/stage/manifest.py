"""What a stage has done: the `Manifest` it writes last, atomic writes, hashes and locks.

A manifest that is present and matches means that the stage is done; anything else means that it is
not. On disk it is `manifest.json` in the stage's output directory, with the fields of `Manifest`.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from .errors import MissingArtifactError, ShowTellError

MANIFEST_NAME, LOCK_NAME = "manifest.json", ".lock"


@dataclass(frozen=True)
class Manifest:
    """The record of one finished stage.

    Attributes:
        stage: name of the stage, as typed on the command line.
        version: of the stage's output format; another version is not up to date.
        config: what the output depends on, as JSON values.
        inputs: name of each input → its sha256, or another fingerprint of its content.
        outputs: file name, relative to the directory → size in bytes.
        counts: what was made: `num_images`, `num_captions`, ….
        skipped: (image, reason) of each image left out.
        seconds: wall time the stage took, earlier interrupted runs not counted.
        details: anything else worth reading, e.g. the transform; not compared.
    """

    stage: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, int]
    counts: dict[str, int] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> Self:
        """Write `manifest.json` atomically, as the last act of a stage."""
        write_json(directory / MANIFEST_NAME, asdict(self))
        return self

    @classmethod
    def read(cls, directory: Path) -> "Manifest | None":
        """Read the manifest of `directory`; None where there is none or it cannot be understood."""
        try:
            values = json.loads((directory / MANIFEST_NAME).read_text("utf-8"))
            values["skipped"] = tuple((image, reason) for image, reason in values["skipped"])
            return cls(**values)
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
            return None

    @classmethod
    def require(cls, directory: Path, mend: str) -> "Manifest":
        """Read the manifest of a stage that must be done.

        Args:
            directory: output directory of the stage.
            mend: the command that runs the stage.

        Raises:
            MissingArtifactError: the stage is not done, or one of its files is gone.
        """
        manifest = cls.read(directory)
        if manifest is None:
            path = directory / MANIFEST_NAME
            raise MissingArtifactError(f"{path} does not exist. Run '{mend}' first.")
        if missing := manifest.missing_outputs(directory):
            raise MissingArtifactError(
                f"{directory / missing[0]} is missing or not of the size that {MANIFEST_NAME} "
                f"records ({manifest.outputs[missing[0]]} bytes). Run '{mend}' again."
            )
        return manifest

    def missing_outputs(self, directory: Path) -> list[str]:
        """Names of the outputs that are absent or changed in size."""
        return [
            name
            for name, size_bytes in self.outputs.items()
            if file_size(directory / name) != size_bytes
        ]

    def matches(
        self, directory: Path, version: int, config: dict[str, Any], inputs: dict[str, str]
    ) -> bool:
        """Whether the stage has nothing left to do for this config and these inputs."""
        return (
            self.version == version
            and self.config == json.loads(json.dumps(config))
            and self.inputs == inputs
            and not self.missing_outputs(directory)
        )


def file_size(path: Path) -> int | None:
    """Size in bytes, None where there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def hash_file(path: Path) -> str:
    """sha256 of the file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: object) -> str:
    """sha256 of a JSON value's canonical form, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def partial_path(path: Path) -> Path:
    """The name beside `path` under which this process writes it; `locked` sweeps such files."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it replaces `path`, on failure it goes.

    The temporary name keeps the suffix, by which writers choose their format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process, so that two runs never write the same files.

    Half-written files of a killed run are swept away.

    Raises:
        ShowTellError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ShowTellError(
            f"{directory} is being written by another showtell process. Wait for it, or stop it."
        ) from None
    try:
        # What a killed run has left half written: nobody else can be writing it now.
        for partial in directory.glob(".*.partial*"):
            partial.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def is_locked(directory: Path) -> bool:
    """Whether another process is at work in `directory`."""
    path = directory / LOCK_NAME
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


class Stopwatch:
    """Wall time of a stage, and how much of it each named part took."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.parts: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.perf_counter() - self.started

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to the part `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - start

    def shares(self) -> dict[str, float]:
        """Part → its share of the wall time so far, 0 to 1."""
        seconds = max(self.seconds, 1e-9)
        return {name: spent / seconds for name, spent in self.parts.items()}
