"""Reads and writes files by local path or URL (`s3://bucket/a.tar`, `gs://…`, `https://…`).

The only file that uses fsspec. The extra `remote` installs its libraries for S3, GCS and HTTP. They
find credentials themselves: in environment variables, configuration files, or on cloud machines.
"""

import glob
import io
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from .errors import ConfigError, MissingArtifactError, ShowTellError, StorageError
from .files import atomic_path
from .options import expand_home

T = TypeVar("T")

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
S3 = ("s3://", "s3a://")
HTTP = ("http://", "https://")
BRACES = re.compile(r"\{([^{}]*)\}")
NUMBER_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_LOCATIONS = 1_000_000  # that a pattern may expand to
BLOCK_BYTES = 8 << 20  # of a request
NUM_REQUESTS = 32  # at a time, where each is short
ATTEMPTS, FIRST_WAIT_S = 4, 1.0  # waits are 1, 2 and 4 s
# Names under which file systems report the version of a file. The first that exists is used.
VERSION_KEYS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "Last-Modified", "mtime")


def is_url(text: str) -> bool:
    """Return whether `text` is a URL, not a local path."""
    return URL.match(text) is not None


class Location(str):
    """The path or URL that an option names. A `Path` would turn `s3://` into `s3:/`."""

    def __new__(cls, text: str | Path) -> "Location":
        """Expand `~` in a path."""
        return super().__new__(cls, text if is_url(str(text)) else expand_home(Path(text)))

    def absolute(self) -> str:
        """Return it as an absolute path, or as the URL that it is."""
        return str(self) if is_url(self) else str(Path(self).absolute())


def join(source: str, name: str) -> str:
    """Return the location of a file in a source folder; `name` may be a URL itself."""
    return name if is_url(name) else f"{source.rstrip('/')}/{name}"


def expand(pattern: str) -> list[str]:
    """Return the sorted locations that a pattern names.

    Args:
        pattern: a path or URL, with `*`, `?`, `[a-z]`, `{00000..00099}` and `{train,val}`. In HTTP
            URLs, `?` starts a query. Names without `*`, `?` and `[a-z]` need not exist.

    Raises:
        MissingArtifactError: no file matches.
        StorageError: the folder or bucket cannot be listed.
        ConfigError: a library is missing.
    """
    if not is_url(pattern) and Path(pattern).exists():
        return [pattern]
    found = set[str]()
    for location in _expand_braces(pattern):
        found.update(_glob(location) if _has_wildcard(location) else [location])
    if not found:
        raise MissingArtifactError(
            f"no file matches {pattern}. Check the folder, and put the pattern in quotes so that "
            "the shell does not expand it."
        )
    return sorted(found)


def open_url(location: str, start: int = 0) -> BinaryIO:
    """Open a file for reading in order, from the byte `start` on.

    Files by URL are read in blocks of 8 MiB; failed requests are repeated a few times. The result
    can seek, as Parquet files need, but each jump is a request.

    Raises:
        MissingArtifactError: the file does not exist.
        StorageError: it cannot be read; reading from the result raises this, too.
        ConfigError: a library is missing.
    """
    if is_url(location):
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(location, start), 1 << 20))
    with _reporting_errors(location):
        file = Path(location).open("rb")  # noqa: SIM115, the caller closes it
        file.seek(start)
        return file


def stamp(location: str) -> str | None:
    """Return a text that changes when the file does; None if it does not exist.

    For a local file its size and time of modification, by URL its size and ETag.

    Raises:
        StorageError: the file system cannot be reached, or denies access.
        ConfigError: a library is missing.
    """
    try:
        if not is_url(location):
            with _reporting_errors(location):
                status = Path(location).stat()
            return f"{status.st_size}:{status.st_mtime_ns}"
        system, path = _file_system(location)
        info = _repeat(location, lambda: system.info(path))
    except MissingArtifactError:
        return None
    version = next((info[key] for key in VERSION_KEYS if info.get(key)), "")
    return f"{info.get('size')}:{str(version).strip(chr(34))}"


def download(location: str, path: Path) -> bool:
    """Copy a file to the local `path`, atomically; return False if it does not exist.

    Raises:
        StorageError: it cannot be read, or `path` cannot be written.
        ConfigError: a library is missing.
    """
    try:
        with open_url(location) as source, atomic_path(path) as partial, partial.open("wb") as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)
    except MissingArtifactError:
        return False
    return True


def upload(path: Path, location: str) -> None:
    """Copy a local file to a path or URL. Readers see all of it or nothing.

    Raises:
        MissingArtifactError: the bucket does not exist.
        StorageError: it cannot be written.
        ConfigError: a library is missing.
    """
    target = Path(location.removeprefix("file://"))
    if not is_url(location) or location.startswith("file://"):
        with atomic_path(target) as partial:
            shutil.copyfile(path, partial)
        return
    system, remote = _file_system(location)
    try:
        # Object stores show a file once it is complete.
        _repeat(location, lambda: system.put_file(str(path), remote))
    except MissingArtifactError:
        raise _missing_bucket(location) from None
    except RemoteError as error:
        raise StorageError(
            f"{location} cannot be written: {error.reason}. Check the URL, the network and your "
            "credentials."
        ) from None


def require_bucket(location: str) -> None:
    """Check that the bucket of a URL exists, if it is in S3 and the credentials allow asking.

    Raises:
        MissingArtifactError: it does not.
        ConfigError: a library is missing.
    """
    if location.startswith(S3):
        system, path = _file_system(location)
        try:
            with suppress(StorageError):
                _repeat(location, lambda: system.info(path.partition("/")[0]))
        except MissingArtifactError:
            raise _missing_bucket(location) from None


def discard(location: str) -> None:
    """Delete a file by path or URL, if it exists and its folder or bucket allows that."""
    with suppress(ShowTellError), _reporting_errors(location):
        system, path = _file_system(location)
        system.rm_file(path)


def size_of(location: str) -> int:
    """Return the size of a file by URL in bytes. Raises the errors of `open_url`."""
    system, path = _file_system(location)
    return int(_repeat(location, lambda: system.info(path))["size"])


class RemoteError(StorageError):
    """A file by URL cannot be read.

    Args:
        message: the text of the error.
        reason: in a few words, without the URL.
        may_pass: whether a second request may succeed.
    """

    def __init__(self, message: str, reason: str = "", *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.reason, self.may_pass = reason or message, may_pass


def stamps(locations: Sequence[str]) -> list[str | None]:
    """Return the stamp of each file, or "" if it cannot be reached; many are asked for at a time.

    Raises:
        ConfigError: a library is missing.
    """

    def find(location: str) -> str | None:
        try:
            return stamp(location)
        except StorageError:
            return ""

    with ThreadPoolExecutor(NUM_REQUESTS) as threads:
        return list(threads.map(find, locations))


class _RemoteFile(io.RawIOBase):
    """A file by URL. Raises the errors of `open_url`."""

    def __init__(self, location: str, start: int) -> None:
        super().__init__()
        self.location, self.position = location, start
        self.system, self.path = _file_system(location)
        self._file = _repeat(location, self._open)

    def _open(self) -> Any:
        file = self.system.open(self.path, "rb", block_size=BLOCK_BYTES, cache_type="readahead")
        if file.seekable() and getattr(file, "size", None) is not None:
            file.seek(self.position)
        else:
            _skip(file, self.position)
        return file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _reporting_errors(self.location):
            base = (0, self.position, self._file.size)[whence]
            self._file.seek(base + offset)
            self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        content = _repeat(self.location, lambda: self._read(len(buffer)))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def _read(self, count: int) -> bytes:
        try:
            return bytes(self._file.read(count))
        except ValueError:  # the HTTP server answers no requests for a range of bytes
            if not self.location.startswith(HTTP):
                raise
        self._file.close()
        self._file = self.system.open(self.path, "rb", block_size=0)
        _skip(self._file, self.position)
        return bytes(self._file.read(count))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _skip(file: Any, count: int) -> None:
    while count and (content := file.read(min(count, BLOCK_BYTES))):
        count -= len(content)


def _file_system(location: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path of the file in it."""
    from fsspec.core import url_to_fs

    with _reporting_errors(location):
        system, path = url_to_fs(location, use_listings_cache=False)
    return system, path


def _glob(location: str) -> list[str]:
    if not is_url(location):
        return glob.glob(location, recursive=True)  # noqa: PTH207, patterns may be absolute
    system, path = _file_system(location)
    found = _repeat(location, lambda: system.glob(path))
    return [system.unstrip_protocol(path) for path in found]


def _has_wildcard(location: str) -> bool:
    return any(letter in location for letter in ("*[" if location.startswith(HTTP) else "*?["))


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yield what `{00000..00099}` and `{train,val}` stand for; other braces are kept."""
    parts = BRACES.split(pattern)  # text, content of braces, text, …
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_LOCATIONS:
        raise ConfigError(
            f"{pattern} expands to {count:,} files, expected at most {MAX_LOCATIONS:,}."
        )
    yield from map("".join, product(*choices))


def _choices(content: str) -> list[str]:
    if found := NUMBER_RANGE.fullmatch(content):
        first, last = found.groups()
        width = len(first) if first.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        numbers = range(int(first), int(last) + step, step)
        if len(numbers) <= MAX_LOCATIONS:
            return [f"{number:0{width}d}" for number in numbers]
    return content.split(",") if "," in content else [f"{{{content}}}"]


def _repeat(location: str, request: Callable[[], T]) -> T:
    """Return the result of a request, which is repeated if it fails for a passing reason."""
    for attempt in range(1, ATTEMPTS):
        try:
            with _reporting_errors(location):
                return request()
        except RemoteError as error:
            if not error.may_pass:
                raise
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
    with _reporting_errors(location):
        return request()


@contextmanager
def _reporting_errors(location: str) -> Iterator[None]:
    """Turn the errors of fsspec, and of the libraries that it uses, into one line."""
    try:
        yield
    except ShowTellError:
        raise
    except ImportError:
        raise ConfigError(
            f"{location} needs a library that is not installed. Run pip install 'showtell[remote]'."
        ) from None
    except (NotADirectoryError, FileNotFoundError) as error:
        # For HTTP, fsspec says so whatever happens; the cause is the real error.
        cause = error.__cause__ if location.startswith(HTTP) else None
        if cause is None or getattr(cause, "status", None) in (404, 410):
            raise MissingArtifactError(f"{location} does not exist.") from None
        raise _storage_error(location, cause) from None
    except Exception as error:  # each library has error classes of its own
        raise _storage_error(location, error) from None


def _missing_bucket(location: str) -> MissingArtifactError:
    return MissingArtifactError(
        f"{location} cannot be written: the bucket does not exist. Create it, or correct the URL."
    )


def _storage_error(location: str, error: BaseException) -> StorageError:
    if not is_url(location):
        return StorageError(f"{location} cannot be read: {getattr(error, 'strerror', error)}.")
    status = getattr(error, "status", None)
    reason = f"HTTP {status}" if status else " ".join(str(error).split())[:200].rstrip(".")
    reason = reason or type(error).__name__
    # The libraries for S3 and GCS repeat requests themselves.
    may_pass = location.startswith(HTTP) and (status or 500) in (408, 429, *range(500, 600))
    return RemoteError(
        f"{location} cannot be read: {reason}. Check the URL, the network and your credentials.",
        reason,
        may_pass=may_pass,
    )
