"""Image files by URL, each read with one request: `https://host/x.jpg`, `s3://bucket/x.jpg`."""

import errno
import socket
import time
from functools import cached_property
from threading import Event, Lock

import httpx

from ..stage.errors import MissingArtifactError
from ..stage.urls import RemoteError, open_url
from .local import MAX_FILE_BYTES, require_size

ATTEMPTS, FIRST_WAIT_S, MAX_WAIT_S = 3, 0.5, 30.0
TIMEOUT_S = 10.0  # to connect, and between two packets
MAX_SECONDS = 60.0  # of one download
PASSING_STATUSES = (408, 425, 429, *range(500, 600))


class Fetcher:
    """Fetches image files. Any number of threads can use it at the same time."""

    def __init__(self) -> None:
        self._is_stopped = Event()
        self._lock = Lock()

    @cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(
            follow_redirects=True,
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=None),
            headers={"User-Agent": "showtell", "Accept": "image/*,*/*;q=0.8"},
        )

    def stop(self) -> None:
        """End the requests that are running as soon as possible."""
        self._is_stopped.set()

    def try_read(self, url: str) -> bytes | OSError:
        """Return what `read` returns or raises."""
        try:
            return self.read(url)
        except OSError as error:
            return error

    def read(self, url: str) -> bytes:
        """Return the content of an image file; failures that may pass are tried again.

        Raises:
            OSError: it cannot be read, or has more than `MAX_FILE_BYTES`. It has an `errno` if the
                reason may go away.
        """
        if not url.startswith(("http://", "https://")):
            return read_object(url)
        reason, wait_s = "stopped", 0.0
        for attempt in range(ATTEMPTS):
            if self._is_stopped.wait(wait_s):
                break
            try:
                return self._get(url)
            except _PassingError as error:
                reason, wait_s = str(error), max(FIRST_WAIT_S * 2**attempt, error.wait_s)
        raise OSError(errno.EIO, reason)

    def _get(self, url: str) -> bytes:
        with self._lock:
            client = self._client
        try:
            with client.stream("GET", url) as response:
                if response.status_code in PASSING_STATUSES:
                    raise _PassingError(f"HTTP {response.status_code}", _retry_after(response))
                if response.status_code != httpx.codes.OK:
                    raise OSError(f"HTTP {response.status_code}")
                return self._read_body(response)
        except httpx.TimeoutException:
            raise _PassingError("timed out") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
                if _is_unknown_host(error):
                    raise OSError("the host does not exist") from None
                raise _PassingError(_one_line(error)) from None
            raise OSError(_one_line(error)) from None

    def _read_body(self, response: httpx.Response) -> bytes:
        """Read a body. A server may send one without end, or a byte now and then."""
        length = response.headers.get("Content-Length", "")
        require_size("the file", int(length) if length.isdecimal() else 0)
        started, content = time.monotonic(), bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            require_size("the file", len(content))
            if time.monotonic() - started > MAX_SECONDS or self._is_stopped.is_set():
                raise _PassingError("timed out")
        return bytes(content)


class _PassingError(Exception):
    """A failure that may not happen again."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def read_object(location: str) -> bytes:
    """Return the content of a file in S3, GCS or another store that fsspec reads.

    Raises:
        OSError: as `Fetcher.read`.
        ConfigError: a library is missing.
    """
    try:
        with open_url(location) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except MissingArtifactError:
        raise OSError("does not exist") from None
    except RemoteError as error:
        raise OSError(errno.EIO, error.reason) from None
    require_size("the file", len(content))
    return content


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds after which a server wants to be asked again."""
    seconds = response.headers.get("Retry-After", "")
    return min(float(seconds), MAX_WAIT_S) if seconds.isdecimal() else 0.0


def _is_unknown_host(error: BaseException | None) -> bool:
    """Return whether there is no such host, as opposed to no answer about it."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None and error.errno == socket.EAI_NONAME


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
