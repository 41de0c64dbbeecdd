"""Atomic writes, hashes, and locks on folders."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import SoftFileLock, Timeout

from .errors import MissingArtifactError, ShowTellError, StorageError

LOCK_NAME, SOFT_LOCK_NAME = ".lock", ".lock-without-kernel"
IS_BUSY = "is being written by another showtell process. Wait for it to finish, or stop it."
NO_LOCKS_ERRORS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO)
STEM_LENGTH = 40  # of temporary names, because a file name may have at most 255 bytes
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    """Return this process's temporary path beside `path`; `locked` deletes abandoned ones.

    The name of the machine is part of it: on a shared file system, processes of several machines
    may have the same id.
    """
    owner = f"{os.getpid()}-{platform.node()[:STEM_LENGTH]}"
    return path.with_name(f".{path.stem[:STEM_LENGTH]}.{owner}.partial{path.suffix}")


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success and is deleted on failure.

    The temporary name keeps the suffix, because writers choose the file format by it.

    Args:
        path: of the finished file.
        durable: whether to sync the file and its folder, so that it survives a power cut.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    partial = partial_path(path)
    with reporting_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():  # before anything is written or deleted
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        try:
            yield partial
            if durable:
                sync(partial)
            partial.replace(path)
            if durable:
                sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def reporting_write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about writing `path` into a `StorageError`."""
    try:
        yield
    except OSError as error:
        # A failed write has no file name. Errors about other files are not converted.
        own = (None, str(path), str(partial_path(path)), str(path.parent))
        if error.errno in (None, errno.ENOENT) or error.filename not in own:
            raise
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> StorageError:
    """Return the error to raise if a file could not be written."""
    advice = "Fix that"
    if error.errno in FULL_DISK_ERRORS:
        advice = "Free some disk space, or write to another disk"
    elif error.errno == errno.EISDIR:
        advice = f"Move {path} to another place"
    return StorageError(
        f"{path} could not be written: {error.strerror}. {advice}, then run the same command "
        "again; finished work is kept."
    )


def read_error(path: Path, error: Exception) -> StorageError | None:
    """Return the error to raise if the system cannot read a file; None if its content is at fault.

    An OSError without errno comes from a library: the content is at fault.
    """
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return StorageError(f"{path} cannot be read: {error.strerror}.")
    return None


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, *contents: bytes | memoryview) -> None:
    """Write a file atomically. Raises the errors of `atomic_path`."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        for content in contents:
            file.write(content)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """Return `value` as indented JSON: what `write_json` writes."""
    try:
        content = json.dumps(value, indent=1, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # it contains a file name that is not UTF-8
        content = json.dumps(value, indent=1).encode()
    return content + b"\n"


@contextmanager
def locked(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock `directory` during the `with` block, so that two processes never write the same files.

    Temporary files that a killed process left behind are deleted.

    Args:
        directory: created if it does not exist.
        wait: wait for another process to release the lock, instead of raising an error.

    Raises:
        ShowTellError: another process holds the lock.
        StorageError: the folder cannot be written.
    """
    with _locked(directory, directory / LOCK_NAME, directory / SOFT_LOCK_NAME, wait):
        remove_partials(directory)
        yield


def remove_partials(directory: Path) -> None:
    """Delete the temporary files that killed processes left in a folder."""
    for partial in directory.glob(".*.partial*"):
        partial.unlink(missing_ok=True)


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Lock one file during the `with` block; the file need not exist.

    The lock is a file beside it, deleted at the end. Temporary files that a killed process left
    behind are deleted. Raises the errors of `locked`.
    """
    lock = path.with_name(f".{path.name}{LOCK_NAME}")
    with _locked(path, lock, path.with_name(f".{path.name}{SOFT_LOCK_NAME}")):
        stem, suffix = map(glob.escape, (path.stem[:STEM_LENGTH], path.suffix))
        for partial in path.parent.glob(f".{stem}.[0-9]*.partial{suffix}"):
            partial.unlink(missing_ok=True)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _locked(subject: Path, lock: Path, soft_lock: Path, wait: bool = False) -> Iterator[None]:
    """Lock a folder or a file. Raises the errors of `locked`.

    Args:
        subject: named in errors.
        lock: the file to lock; its folder is created.
        soft_lock: the lock file for file systems without locks.
        wait: wait for the lock.
    """
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)  # this also unlocks it
            if not _lock(descriptor, fcntl.LOCK_EX, wait):
                stack.enter_context(_lock_file(subject, soft_lock, wait))
            elif not os.fstat(descriptor).st_nlink:  # its owner has just deleted it
                raise BlockingIOError
        except BlockingIOError:
            raise ShowTellError(f"{subject} {IS_BUSY}") from None
        except OSError as error:
            raise write_error(subject, error) from error
        yield


def _lock(descriptor: int, kind: int, wait: bool = False) -> bool:
    """Lock an open file; return False if its file system has no locks.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is not set.
    """
    try:
        if wait:
            fcntl.flock(descriptor, kind)
            return True
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)  # `is_locked` may hold the lock for a moment
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS_ERRORS:
            raise
        return False
    return True


@contextmanager
def _lock_file(subject: Path, path: Path, wait: bool) -> Iterator[None]:
    """Hold a lock file that contains this process's id; it expires when the process ends."""
    lock = SoftFileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise ShowTellError(f"{subject} {IS_BUSY} If none is running, delete {path}.") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(directory: Path) -> bool:
    """Return whether another process holds the lock of `directory`; writes nothing."""
    try:
        descriptor = os.open(directory / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH) and _has_owner(directory / SOFT_LOCK_NAME)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _has_owner(lock_file: Path) -> bool:
    """Return whether the process that wrote a lock file may still run; only a copy is tried."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            copy = shutil.copy2(lock_file, folder)
        except FileNotFoundError:
            return False
        try:  # filelock gives the copy to us if the owner has ended
            SoftFileLock(copy).acquire(timeout=0).lock.release()
        except Timeout:
            return True
        return False
