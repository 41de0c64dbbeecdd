"""Tests of `fetch` against a local HTTP server with configurable faults."""

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from showtell.pipeline.archives import fetch as fetch_module
from showtell.pipeline.archives.fetch import (
    HEADERS,
    Archive,
    backoff,
    fetch,
    parse_retry_after,
)
from showtell.pipeline.stage.errors import DownloadError
from showtell.pipeline.stage.files import write_json


def make_zip(**members: str) -> bytes:
    """Return an uncompressed zip archive of a few kB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, text in members.items():
            zipped.writestr(name.replace("__", "/"), text * 400)
    return buffer.getvalue()


CONTENT = make_zip(train__1="abcdefgh", train__2="ijklmnop")
CHANGED = make_zip(train__1="ABCDEFGH", train__2="IJKLMNOP")
HALF = len(CONTENT) // 2
PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>"


@dataclass
class Reply:
    """One response of the server; by default a correct one."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    last_modified: str | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    ignore_range: bool = False
    ignore_if_range: bool = False
    length: int | None = None
    break_after: int | None = None
    stall_after: int | None = None
    chunked: bool = False


class Server:
    """Answers HTTP requests with the given replies in turn, and repeats the last one."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.released = threading.Event()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        self.requests.append({name.lower(): value for name, value in handler.headers.items()})
        self.paths.append(handler.path)
        body, status, headers = self.select(reply, handler)
        handler.send_response(status)
        for name, value in {**headers, **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if reply.chunked:
            for start in range(0, len(body), 1000):
                part = body[start : start + 1000]
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            handler.wfile.write(b"0\r\n\r\n")
            return
        stop = reply.break_after if reply.break_after is not None else reply.stall_after
        handler.wfile.write(body[:stop])
        handler.wfile.flush()
        if reply.stall_after is not None:
            self.released.wait(20)

    def select(
        self, reply: Reply, handler: BaseHTTPRequestHandler
    ) -> tuple[bytes, int, dict[str, str]]:
        headers = {"Content-Type": "application/zip", "Connection": "close"}
        if reply.etag:
            headers["ETag"] = reply.etag
        if reply.last_modified:
            headers["Last-Modified"] = reply.last_modified
        body, status, size = reply.content, reply.status or 200, len(reply.content)
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        condition = handler.headers.get("If-Range")
        fresh = condition in (None, reply.etag, reply.last_modified) or reply.ignore_if_range
        if wanted and fresh and not reply.ignore_range and reply.status is None:
            start = int(wanted[1])
            body, status = body[start:], 206 if start < size else 416
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        if reply.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body) if reply.length is None else reply.length)
        return body, status, headers


@contextmanager
def serving(server: Server) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        server.released.set()
        listener.shutdown()
        thread.join()
        listener.server_close()


ARCHIVE = Archive("zips/train.zip", len(CONTENT), hashlib.md5(CONTENT).hexdigest())


class Setting:
    """Fetches `ARCHIVE` from a test server into a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target, self.partial = folder / "train.zip", folder / "train.zip.partial"
        self.waits: list[float] = []

    def fetch(self, server: Server, retries: int = 3, timeout_s: float = 10.0) -> None:
        with serving(server) as base_url:
            self.fetch_from(base_url, retries, timeout_s)

    def fetch_from(self, base_url: str, retries: int = 3, timeout_s: float = 10.0) -> None:
        with httpx.Client(timeout=timeout_s, follow_redirects=True, headers=HEADERS) as client:
            url = f"{base_url}/{ARCHIVE.path}"
            fetch(client, url, ARCHIVE, self.target, retries, self.waits.append)

    def write_partial(self, content: bytes, etag: str | None = '"one"') -> None:
        self.partial.write_bytes(content)
        if etag is not None:
            state = {"etag": etag, "last_modified": None}
            write_json(self.folder / "train.zip.partial.json", state)

    def assert_complete(self) -> None:
        assert self.target.read_bytes() == CONTENT
        assert not list(self.folder.glob("*.partial*"))


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return Setting(tmp_path)


def test_fetch_resumes_after_a_broken_connection(setting: Setting) -> None:
    server = Server(Reply(break_after=HALF), Reply())
    setting.fetch(server)
    setting.assert_complete()
    assert server.requests[1]["range"] == f"bytes={HALF}-"
    assert server.requests[1]["if-range"] == '"one"'
    assert len(setting.waits) == 1


def test_fetch_keeps_partial_bytes_for_the_next_run(setting: Setting) -> None:
    with pytest.raises(DownloadError, match=f"{HALF:,} of {len(CONTENT):,} bytes are kept"):
        setting.fetch(Server(Reply(break_after=HALF)), retries=0)
    assert not setting.target.exists()
    assert setting.partial.read_bytes() == CONTENT[:HALF]
    server = Server(Reply())
    setting.fetch(server)
    setting.assert_complete()
    assert [request["range"] for request in server.requests] == [f"bytes={HALF}-"]


def test_fetch_continues_while_attempts_make_progress(setting: Setting) -> None:
    pieces = [Reply(break_after=500) for _ in range(len(CONTENT) // 500 + 1)]
    assert len(pieces) > 5
    setting.fetch(Server(*pieces), retries=1)
    setting.assert_complete()


def test_fetch_gives_up_without_progress(setting: Setting) -> None:
    server = Server(Reply(break_after=HALF, ignore_range=True))
    with pytest.raises(DownloadError, match="gave up after 4 failed attempts"):
        setting.fetch(server, retries=3)
    # The first attempt received bytes, so it is the first of the counted failures.
    assert len(server.paths) == 4
    assert not setting.target.exists()


def test_fetch_restarts_when_the_server_ignores_range(setting: Setting) -> None:
    server = Server(Reply(break_after=HALF), Reply(ignore_range=True))
    setting.fetch(server)
    setting.assert_complete()
    assert "range" in server.requests[1]


def test_fetch_restarts_when_the_server_file_changed(setting: Setting) -> None:
    old = Reply(content=CHANGED, etag='"old"', break_after=HALF)
    server = Server(old, Reply(etag='"new"'))
    assert len(CHANGED) == len(CONTENT)
    setting.fetch(server)
    setting.assert_complete()
    assert server.requests[1]["if-range"] == '"old"'
    assert len(server.paths) == 2


def test_fetch_notices_a_changed_etag_if_if_range_is_ignored(setting: Setting) -> None:
    old = Reply(content=CHANGED, etag='"old"', break_after=HALF)
    server = Server(old, Reply(etag='"new"', ignore_if_range=True))
    setting.fetch(server)
    setting.assert_complete()
    assert [request.get("range") for request in server.requests] == [None, f"bytes={HALF}-", None]


def test_fetch_restarts_when_resumed_halves_do_not_match(setting: Setting) -> None:
    setting.write_partial(CHANGED[:HALF], etag=None)
    server = Server(Reply(etag=None))
    setting.fetch(server)
    setting.assert_complete()
    assert [request.get("range") for request in server.requests] == [f"bytes={HALF}-", None]


def test_fetch_resumes_by_date_if_the_etag_is_weak(setting: Setting) -> None:
    date = formatdate(1_500_000_000, usegmt=True)
    reply = {"etag": 'W/"weak"', "last_modified": date}
    server = Server(Reply(break_after=HALF, **reply), Reply(**reply))
    setting.fetch(server)
    setting.assert_complete()
    assert server.requests[1]["if-range"] == date


def test_fetch_resumes_a_partial_file_from_elsewhere(setting: Setting) -> None:
    setting.write_partial(CONTENT[:HALF], etag=None)
    server = Server(Reply())
    setting.fetch(server)
    setting.assert_complete()
    assert server.requests[0]["range"] == f"bytes={HALF}-"
    assert "if-range" not in server.requests[0]


def test_fetch_finishes_a_complete_partial_file(setting: Setting) -> None:
    setting.write_partial(CONTENT)
    server = Server(Reply())
    setting.fetch(server)
    setting.assert_complete()
    assert server.paths == []


@pytest.mark.parametrize("part", [CHANGED, CONTENT + b"more"])
def test_fetch_discards_a_wrong_partial_file(setting: Setting, part: bytes) -> None:
    setting.write_partial(part)
    setting.fetch(Server(Reply()))
    setting.assert_complete()


def test_fetch_restarts_after_416(setting: Setting) -> None:
    setting.write_partial(CONTENT[:HALF])
    server = Server(Reply(status=416, content=b""), Reply())
    setting.fetch(server)
    setting.assert_complete()
    assert "range" not in server.requests[1]


@pytest.mark.parametrize(
    "wrong", [f"bytes 0-{HALF}/{len(CONTENT)}", f"bytes {HALF}-{len(CONTENT) + 8}/*", "nonsense"]
)
def test_fetch_restarts_after_a_wrong_content_range(setting: Setting, wrong: str) -> None:
    setting.write_partial(CONTENT[:HALF])
    server = Server(Reply(headers={"Content-Range": wrong}), Reply())
    setting.fetch(server)
    setting.assert_complete()
    assert "range" not in server.requests[1]


def test_fetch_refuses_a_wrong_content_length(setting: Setting) -> None:
    with pytest.raises(DownloadError, match=rf"announces 12 bytes, expected {len(CONTENT):,}"):
        setting.fetch(Server(Reply(length=12, break_after=12)))
    assert not setting.target.exists()


def test_fetch_resumes_when_bytes_are_missing(setting: Setting) -> None:
    setting.fetch(Server(Reply(break_after=len(CONTENT) - 1), Reply()))
    setting.assert_complete()


def test_fetch_works_without_content_length(setting: Setting) -> None:
    setting.fetch(Server(Reply(chunked=True)))
    setting.assert_complete()


def test_fetch_stops_at_too_many_bytes(setting: Setting) -> None:
    with pytest.raises(DownloadError, match="md5"):
        setting.fetch(Server(Reply(content=CONTENT + b"x" * 300_000, chunked=True)))
    assert not setting.target.exists()


def test_fetch_refuses_a_web_page_and_keeps_partial_bytes(setting: Setting) -> None:
    setting.write_partial(CONTENT[:HALF])
    page = Reply(content=PAGE, headers={"Content-Type": "text/html; charset=utf-8"}, status=200)
    server = Server(page)
    with pytest.raises(DownloadError, match="sent a web page, expected a zip archive"):
        setting.fetch(server)
    assert len(server.paths) == 1
    assert setting.partial.read_bytes() == CONTENT[:HALF]
    assert not setting.target.exists()


def test_fetch_refuses_a_web_page_declared_as_zip(setting: Setting) -> None:
    padded = PAGE + b" " * (len(CONTENT) - len(PAGE))
    with pytest.raises(DownloadError, match="the content starts with b'<!DOCTYPE"):
        setting.fetch(Server(Reply(content=padded)))
    assert not setting.target.exists()


def test_fetch_refuses_another_file_of_the_same_size(setting: Setting) -> None:
    server = Server(Reply(content=CHANGED))
    with pytest.raises(DownloadError, match=hashlib.md5(CHANGED).hexdigest()):
        setting.fetch(server)
    assert len(server.paths) == 1
    assert not list(setting.folder.glob("*.partial*"))
    assert not setting.target.exists()


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_fetch_retries_when_the_server_is_busy(setting: Setting, status: int) -> None:
    busy = Reply(status=status, content=PAGE, headers={"Retry-After": "0"})
    setting.fetch(Server(busy, busy, Reply()))
    setting.assert_complete()
    assert setting.waits == [0.0, 0.0]


def test_fetch_waits_as_long_as_the_server_asks(setting: Setting) -> None:
    busy = Reply(status=503, content=PAGE, headers={"Retry-After": "17"})
    setting.fetch(Server(busy, Reply()))
    assert setting.waits == [17.0]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_fetch_does_not_retry_refused_requests(setting: Setting, status: int) -> None:
    server = Server(Reply(status=status, content=PAGE, headers={"Content-Type": "text/html"}))
    with pytest.raises(DownloadError, match=f"answered {status} .*expected 200"):
        setting.fetch(server)
    assert len(server.paths) == 1
    assert setting.waits == []


def test_fetch_follows_a_redirect(setting: Setting) -> None:
    moved = Reply(status=302, content=b"", headers={"Location": "/elsewhere/train.zip"})
    server = Server(moved, Reply())
    setting.fetch(server)
    setting.assert_complete()
    assert server.paths == ["/zips/train.zip", "/elsewhere/train.zip"]


def test_fetch_resumes_through_a_redirect(setting: Setting) -> None:
    setting.write_partial(CONTENT[:HALF])
    moved = Reply(status=302, content=b"", headers={"Location": "/elsewhere/train.zip"})
    server = Server(moved, Reply())
    setting.fetch(server)
    setting.assert_complete()
    assert server.requests[1]["range"] == f"bytes={HALF}-"


def test_fetch_refuses_a_redirect_loop(setting: Setting) -> None:
    moved = Reply(status=302, content=b"", headers={"Location": "/zips/train.zip"})
    with pytest.raises(DownloadError, match="SHOWTELL_COCO_URL"):
        setting.fetch(Server(moved))


def test_fetch_resumes_after_a_stalled_connection(setting: Setting) -> None:
    server = Server(Reply(stall_after=HALF), Reply())
    setting.fetch(server, timeout_s=0.3)
    setting.assert_complete()
    assert server.requests[1]["range"] == f"bytes={HALF}-"


def test_fetch_gives_up_without_a_server(setting: Setting) -> None:
    with serving(Server(Reply())) as url:
        pass
    with pytest.raises(DownloadError, match="gave up after 3 failed attempts"):
        setting.fetch_from(url, retries=2)
    assert len(setting.waits) == 2


@pytest.mark.parametrize("url", ["images.example.org", "ftp://127.0.0.1/coco"])
def test_fetch_refuses_an_invalid_url(setting: Setting, url: str) -> None:
    with pytest.raises(DownloadError, match="address comes from SHOWTELL_COCO_URL"):
        setting.fetch_from(url)
    assert setting.waits == []


def test_fetch_interrupted_by_the_user_keeps_partial_bytes(setting: Setting) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch_module.ProgressLine, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            setting.fetch(Server(Reply()))
    kept = setting.partial.read_bytes()
    assert kept and CONTENT.startswith(kept)
    assert not setting.target.exists()
    setting.fetch(Server(Reply()))
    setting.assert_complete()


def test_backoff_doubles_up_to_its_limit() -> None:
    for failures, longest in ((1, 1.0), (2, 2.0), (4, 8.0), (7, 60.0), (500, 60.0)):
        waits = [backoff(failures) for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        (None, None),
        ("0", 0.0),
        ("90", 90.0),
        ("-5", None),
        ("999999", 600.0),
        (formatdate(1_000_030, usegmt=True), 30.0),
        (formatdate(999_000, usegmt=True), 0.0),
        ("soon", None),
        ("", None),
        ("nan", None),
    ],
)
def test_retry_after_accepts_seconds_or_a_date(value: str | None, wait_s: float | None) -> None:
    assert parse_retry_after(value, now=1_000_000.0) == wait_s
