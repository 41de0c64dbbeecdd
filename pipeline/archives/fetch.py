"""One archive over HTTP: resumed, retried, verified, and whole or absent under its final name."""

import email.utils
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx

from ..stage.console import ProgressLine, format_bytes, format_seconds, print_note, print_warning
from ..stage.errors import DownloadError
from .partial_download import Partial

FIRST_WAIT_S, LONGEST_WAIT_S, LONGEST_RETRY_AFTER_S = 1.0, 60.0, 600.0
# A compressed transfer would make every size and range mean something else.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "showtell"}


@dataclass(frozen=True)
class Archive:
    """One zip of a dataset, as its publisher serves it.

    Attributes:
        path: below the server's base URL; its last part is the file's name on disk.
        size_bytes: of the whole file.
        md5: of the whole file, in hex.
        members: files inside that are to be unpacked.
    """

    path: str
    size_bytes: int
    md5: str
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File name without the path."""
        return self.path.rpartition("/")[2]


class TryAgainError(Exception):
    """An attempt that failed in a way that the next one may not.

    Attributes:
        wait_s: seconds to wait before it, where that is known; None leaves it to `back_off`.
    """

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def fetch(
    client: httpx.Client,
    url: str,
    archive: Archive,
    target: Path,
    retries: int,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch one archive, in as many attempts as it takes while they get further.

    Args:
        client: with timeout and `HEADERS`.
        url: of the archive.
        archive: what the file must be.
        target: final name, given only to the whole and verified file.
        retries: attempts in a row that may fail without a new byte after the first one did.
        sleep: waits so many seconds.

    Raises:
        DownloadError: the server refuses or sends something else, or the retries are used up.
    """
    partial = Partial(target)
    failures, farthest = 0, partial.size_bytes
    if farthest:
        print_note(f"download: {archive.name} goes on behind {format_bytes(farthest)}")
    while True:
        try:
            return _attempt(client, url, archive, target, partial)
        except TryAgainError as error:
            reason, wait_s = str(error), error.wait_s
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise DownloadError(
                f"{url}: {error} SHOWTELL_COCO_URL names the server; check or unset it."
            ) from error
        except httpx.TransportError as error:
            reason, wait_s = str(error) or type(error).__name__, None
        # A flaky line may break off a hundred times in 19 GB; only standing still counts.
        failures = 1 if partial.size_bytes > farthest else failures + 1
        farthest = max(farthest, partial.size_bytes)
        if failures > retries:
            raise DownloadError(
                f"{url}: {reason}; given up after failing {failures}×. "
                f"{partial.size_bytes:,} of {archive.size_bytes:,} bytes are kept: run "
                "'showtell download' again to go on from there."
            )
        wait_s = back_off(failures) if wait_s is None else wait_s
        print_warning(f"{archive.name}: {reason}; next attempt in {format_seconds(wait_s)}")
        sleep(wait_s)


def back_off(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubling, up to half of it by chance less.

    The chance keeps many clients of a server that went down from coming back all at once.
    """
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (failures - 1))
    return longest * random.uniform(0.5, 1.0)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None where it says none.

    Args:
        value: of the header.
        now: Unix time in seconds.
    """
    if value is None:
        return None
    if value.strip().isdigit():
        wait_s = float(value)
    else:
        try:
            wait_s = email.utils.parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return None
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)


def _attempt(
    client: httpx.Client, url: str, archive: Archive, target: Path, partial: Partial
) -> None:
    """Make one request, keep what comes, and give the file its name once it is whole."""
    if partial.size_bytes > archive.size_bytes:
        partial.discard()
    resumed, digest = partial.size_bytes > 0, partial.hash()
    if partial.size_bytes < archive.size_bytes:
        with client.stream("GET", url, headers=partial.range_headers()) as response:
            check_response(response, archive, partial)
            chunks = response.iter_raw()
            first = next(chunks, b"")
            if response.status_code == httpx.codes.OK:
                _require_zip(first, url)
                # Not sooner: an error page must not cost what earlier attempts have fetched.
                partial.begin(response.headers)
                resumed, digest = False, partial.hash()
            _write_chunks(chain([first], chunks), archive, partial, digest)
    _finish(url, archive, target, partial, digest.hexdigest(), resumed)


def check_response(response: httpx.Response, archive: Archive, partial: Partial) -> None:
    """Accept a response whose body is the archive (200), or the rest of it (206).

    Raises:
        TryAgainError: the server is busy, or its rest does not fit the partial file, which goes.
        DownloadError: it does not serve the archive.
    """
    url, headers, start = response.url, response.headers, partial.size_bytes
    status = f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise TryAgainError(status, parse_retry_after(headers.get("Retry-After"), time.time()))
    if response.status_code == 416 and start:
        partial.discard()
        raise TryAgainError(f"{status} to a resumed download; starting over", wait_s=0.0)
    if response.status_code == 206 and start:
        _check_range(response, archive, partial)
    elif response.status_code != 200:
        raise DownloadError(
            f"{url}: {status}, expected 200. Try again later, or set SHOWTELL_COCO_URL to a mirror."
        )
    if "html" in headers.get("Content-Type", ""):
        raise DownloadError(
            f"{url}: the server sent a web page, expected a zip. Open it in a browser: the network "
            "may want a login, or the mirror may have moved."
        )
    expected = archive.size_bytes - (start if response.status_code == 206 else 0)
    length = headers.get("Content-Length")
    if length is not None and int(length) != expected:
        raise DownloadError(
            f"{url}: the server announces {int(length):,} bytes, expected {expected:,}: this is "
            "not the published file. SHOWTELL_COCO_URL names another server."
        )


def _check_range(response: httpx.Response, archive: Archive, partial: Partial) -> None:
    size_bytes = archive.size_bytes
    expected = f"bytes {partial.size_bytes}-{size_bytes - 1}/{size_bytes}"
    found = response.headers.get("Content-Range")
    if found == expected and partial.is_of(response.headers):
        return
    partial.discard()
    reason = "the server's file has changed"
    if found != expected:
        reason = f"the server sent Content-Range {found!r}, expected {expected!r}"
    raise TryAgainError(f"{reason}; starting over", wait_s=0.0)


def _require_zip(first: bytes, url: str) -> None:
    if not first:
        raise TryAgainError("the server sent nothing")
    if not first.startswith(b"PK"[: len(first)]):
        raise DownloadError(f"{url}: the server sent no zip: it begins with {first[:20]!r}.")


def _write_chunks(chunks: Iterator[bytes], archive: Archive, partial: Partial, digest: Any) -> None:
    start, total = partial.size_bytes, archive.size_bytes
    with (
        partial.path.open("ab") as file,
        ProgressLine(archive.name, total, "B", start=start) as progress,
    ):
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            progress.advance(len(chunk), text=_describe(progress))
            if progress.done > total:  # without Content-Length it could fill the disk
                break


def _describe(progress: ProgressLine) -> str:
    if not progress.rate:
        return ""
    eta = format_seconds((progress.total - progress.done) / progress.rate)
    return f"{format_bytes(progress.rate)}/s  eta {eta}"


def _finish(
    url: str, archive: Archive, target: Path, partial: Partial, md5: str, resumed: bool
) -> None:
    size_bytes = partial.size_bytes
    if size_bytes < archive.size_bytes:
        raise TryAgainError(f"broken off after {size_bytes:,} of {archive.size_bytes:,} bytes")
    if md5 != archive.md5:
        partial.discard()
        reason = f"{size_bytes:,} bytes with md5 {md5} came, expected {archive.md5}"
        if resumed:  # perhaps two halves that do not belong together
            raise TryAgainError(f"{reason}; starting over", wait_s=0.0)
        raise DownloadError(f"{url}: {reason}. The server's file is damaged or another version.")
    partial.path.replace(target)
    partial.discard()
