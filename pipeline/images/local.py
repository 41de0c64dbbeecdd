"""Image files in local folders, and how file names are compared."""

import errno
import os
import stat
import unicodedata
from pathlib import Path

from ..stage.errors import StorageError

MAX_FILE_BYTES = 256 << 20  # of an image or annotation file; larger ones are not read
MISSING_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def fold(name: str) -> str:
    """Return a normalized file name, to compare names that may be spelled differently.

    Ignores case, Unicode normalization, and the kind of slash.
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def require_size(name: str, size_bytes: int) -> None:
    """Raise an OSError, which blames the file, if it has more than `MAX_FILE_BYTES`."""
    if size_bytes > MAX_FILE_BYTES:
        raise OSError(
            f"{name} has {size_bytes:,} bytes, expected at most {MAX_FILE_BYTES:,} for an image"
        )


def read_image_file(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        OSError: it does not exist, cannot be read, is not a regular file (a pipe or a device may
            never end), or has more than `MAX_FILE_BYTES`.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    require_size(str(path), status.st_size)
    return path.read_bytes()


def is_file(path: Path) -> bool:
    """Return whether `path` is a file; False if its name is too long to be one."""
    try:
        return path.is_file()
    except OSError:
        return False


def fingerprint_folder(folder: Path) -> dict[str, str]:
    """Return file name → "size:mtime_ns"; empty if the folder does not exist."""
    fingerprints = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    status = entry.stat()
                    fingerprints[entry.name] = f"{status.st_size}:{status.st_mtime_ns}"
    except OSError as error:
        if error.errno not in MISSING_ERRORS:
            raise StorageError(f"{folder} cannot be read: {error.strerror}.") from None
    return fingerprints
