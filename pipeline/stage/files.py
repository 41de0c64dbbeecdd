"""Atomic writes, hashes, and locks on folders."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import MissingArtifactError, ShowTellError

LOCK_NAME = ".lock"


def file_size(path: Path) -> int | None:
    """Return the size of a file in bytes, or None if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def require_file(path: Path, option: str, description: str) -> Path:
    """Return `path` if it names a file.

    Args:
        path: as the user gave it.
        option: the option that takes the path, as typed: `--table`.
        description: the kind of file that the option expects, with its article.

    Raises:
        MissingArtifactError: it does not exist, or is a folder.
    """
    if not path.is_file():
        problem = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise MissingArtifactError(f"{path} {problem}. Give {option} the path of {description}.")
    return path


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: object) -> str:
    """Return the SHA-256 of a JSON value, in hex. The order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def partial_path(path: Path) -> Path:
    """Return this process's temporary path beside `path`; `locked` deletes abandoned ones."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success and is deleted on failure.

    The temporary name keeps the suffix, because writers choose the file format by it.
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
    """Lock `directory` during the `with` block, so that two processes never write the same files.

    Temporary files that a killed process left behind are deleted.

    Raises:
        ShowTellError: another process holds the lock.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ShowTellError(
            f"{directory} is being written by another showtell process. "
            "Wait for it to finish, or stop it."
        ) from None
    try:
        for partial in directory.glob(".*.partial*"):
            partial.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def is_locked(directory: Path) -> bool:
    """Return whether another process holds the lock of `directory`."""
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
