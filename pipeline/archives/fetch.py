"""Downloads one archive over HTTP, with resume, retries and verification.

The final file name appears only once the file is complete and its checksum is right.
"""

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
from .partial_download import PartialDownload

FIRST_WAIT_S, MAX_WAIT_S, MAX_RETRY_AFTER_S = 1.0, 60.0, 600.0
# Without transfer compression, sizes and byte ranges refer to the file itself.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "showtell"}


@dataclass(frozen=True)
class Archive:
    """One zip archive of a dataset, as published.

    Attributes:
        path: relative to the server's base URL; the last part is also the local file name.
        size_bytes: of the archive.
        md5: of the archive, in hex.
        members: files in the archive that `download` unpacks.
    """

    path: str
    size_bytes: int
    md5: str
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File name without its folder."""
        return self.path.rpartition("/")[2]


class RetryableError(Exception):
    """A failed attempt that is worth repeating.

    Attributes:
        wait_s: seconds to wait before the next attempt; None for the usual backoff.
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
    """Download one archive, resuming as long as attempts make progress.

    Args:
        client: HTTP client with a timeout and `HEADERS`.
        url: address of the archive.
        archive: expected size and checksum.
        target: path of the complete, verified file.
        retries: attempts after the first failed one, before giving up. An attempt that receives
            bytes starts the count again.
        sleep: replaces `time.sleep` in tests.

    Raises:
        DownloadError: the server refuses, sends a different file, or all retries failed.
    """
    partial = PartialDownload(target)
    failures, most_bytes = 0, partial.size_bytes
    if most_bytes:
        print_note(f"download: resuming {archive.name} at {format_bytes(most_bytes)}")
    while True:
        try:
            return _attempt(client, url, archive, target, partial)
        except RetryableError as error:
            reason, wait_s = str(error), error.wait_s
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise DownloadError(
                f"{url}: {error} The address comes from SHOWTELL_COCO_URL; correct or unset it."
            ) from error
        except httpx.TransportError as error:
            reason, wait_s = str(error) or type(error).__name__, None
        # A bad connection may break a hundred times in 19 GB; only lack of progress counts.
        failures = 1 if partial.size_bytes > most_bytes else failures + 1
        most_bytes = max(most_bytes, partial.size_bytes)
        if failures > retries:
            raise DownloadError(
                f"{url}: {reason}; gave up after {failures} failed attempts. "
                f"{partial.size_bytes:,} of {archive.size_bytes:,} bytes are kept: run "
                "the same command again to resume."
            )
        wait_s = backoff(failures) if wait_s is None else wait_s
        print_warning(f"{archive.name}: {reason}; next attempt in {format_seconds(wait_s)}")
        sleep(wait_s)


def backoff(failures: int) -> float:
    """Return the seconds to wait: exponential backoff with up to 50 % random jitter.

    The jitter keeps many clients from returning to a restarted server at the same moment.

    Args:
        failures: number of consecutive failures, at least 1.
    """
    longest = min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** (failures - 1))
    return longest * random.uniform(0.5, 1.0)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds requested by a Retry-After header, or None if it is missing or invalid.

    Args:
        value: value of the header, a number of seconds or a date.
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
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)


def _attempt(
    client: httpx.Client, url: str, archive: Archive, target: Path, partial: PartialDownload
) -> None:
    """Make one request, append the response, and rename the file if it is complete."""
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
                # Only now: an error page must not delete the bytes of earlier attempts.
                partial.restart(response.headers)
                resumed, digest = False, partial.hash()
            _write_chunks(chain([first], chunks), archive, partial, digest)
    _finish(url, archive, target, partial, digest.hexdigest(), resumed)


def check_response(response: httpx.Response, archive: Archive, partial: PartialDownload) -> None:
    """Check that the body of a response is the archive (200) or the rest of it (206).

    Raises:
        RetryableError: the server is busy, or the rest does not fit the partial file, which is
            then deleted.
        DownloadError: the server does not have the archive.
    """
    url, headers, start = response.url, response.headers, partial.size_bytes
    status = f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise RetryableError(status, parse_retry_after(headers.get("Retry-After"), time.time()))
    if response.status_code == 416 and start:
        partial.discard()
        raise RetryableError(f"{status} to a resumed download; starting over", wait_s=0.0)
    if response.status_code == 206 and start:
        _check_range(response, archive, partial)
    elif response.status_code != 200:
        raise DownloadError(
            f"{url}: {status}, expected 200. Try again later, or set SHOWTELL_COCO_URL to a mirror."
        )
    if "html" in headers.get("Content-Type", ""):
        raise DownloadError(
            f"{url}: the server sent a web page, expected a zip archive. Open the address in a "
            "browser: the network may require a login, or the mirror may have moved."
        )
    expected = archive.size_bytes - (start if response.status_code == 206 else 0)
    length = headers.get("Content-Length")
    if length is not None and int(length) != expected:
        raise DownloadError(
            f"{url}: the server announces {int(length):,} bytes, expected {expected:,}: this is "
            "not the published file. Set SHOWTELL_COCO_URL to another server."
        )


def _check_range(response: httpx.Response, archive: Archive, partial: PartialDownload) -> None:
    size_bytes = archive.size_bytes
    expected = f"bytes {partial.size_bytes}-{size_bytes - 1}/{size_bytes}"
    found = response.headers.get("Content-Range")
    if found == expected and partial.matches(response.headers):
        return
    partial.discard()
    reason = "the server's file has changed"
    if found != expected:
        reason = f"the server sent Content-Range {found!r}, expected {expected!r}"
    raise RetryableError(f"{reason}; starting over", wait_s=0.0)


def _require_zip(first: bytes, url: str) -> None:
    if not first:
        raise RetryableError("the server sent nothing")
    if not first.startswith(b"PK"[: len(first)]):
        raise DownloadError(
            f"{url}: expected a zip archive, but the content starts with {first[:20]!r}."
        )


def _write_chunks(
    chunks: Iterator[bytes], archive: Archive, partial: PartialDownload, digest: Any
) -> None:
    start, total = partial.size_bytes, archive.size_bytes
    with (
        partial.path.open("ab") as file,
        ProgressLine(archive.name, total, "B", start=start) as progress,
    ):
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            progress.advance(len(chunk), text=_describe(progress))
            if progress.done > total:  # without Content-Length, it could fill the disk
                break


def _describe(progress: ProgressLine) -> str:
    if not progress.rate:
        return ""
    eta = format_seconds((progress.total - progress.done) / progress.rate)
    return f"{format_bytes(progress.rate)}/s  eta {eta}"


def _finish(
    url: str, archive: Archive, target: Path, partial: PartialDownload, md5: str, resumed: bool
) -> None:
    """Check size and checksum, and rename the file to its final name."""
    size_bytes = partial.size_bytes
    if size_bytes < archive.size_bytes:
        raise RetryableError(
            f"the connection broke after {size_bytes:,} of {archive.size_bytes:,} bytes"
        )
    if md5 != archive.md5:
        partial.discard()
        reason = f"received {size_bytes:,} bytes with md5 {md5}, expected {archive.md5}"
        if resumed:  # the two halves may come from different files
            raise RetryableError(f"{reason}; starting over", wait_s=0.0)
        raise DownloadError(
            f"{url}: {reason}. The file on the server is damaged or another version."
        )
    partial.path.replace(target)
    partial.discard()
