import hashlib
import io
import os
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

import pytest

from showtell.pipeline import download as download_module
from showtell.pipeline.archives import fetch as fetch_module
from showtell.pipeline.archives.fetch import Archive, backoff, parse_retry_after
from showtell.pipeline.config import DownloadConfig
from showtell.pipeline.download import ARCHIVES, ON_REQUEST, download, find_archives
from showtell.pipeline.stage.errors import DownloadError, ShowTellError
from showtell.pipeline.stage.files import locked, write_json
from showtell.pipeline.stage.manifest import Manifest


def make_zip(**members: str) -> bytes:
    """A zip of a few kB whose bytes do not compress."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, text in members.items():
            zipped.writestr(name.replace("__", "/"), text * 400)
    return buffer.getvalue()


CONTENT = make_zip(train__1="abcdefgh", train__2="ijklmnop")
CHANGED = make_zip(train__1="ABCDEFGH", train__2="IJKLMNOP")
NOTES = make_zip(**{"annotations__captions_train.json": '{"captions": []}', "other": "x"})
HALF = len(CONTENT) // 2
PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>"


@dataclass
class Reply:
    """How the server answers one request; the defaults are a correct server's."""

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
    """A loopback HTTP server that answers with the given replies, the last one again and again."""

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


def archive_of(content: bytes = CONTENT, path: str = "zips/train.zip", *members: str) -> Archive:
    return Archive(path, len(content), hashlib.md5(content).hexdigest(), members)


class Setting:
    """A dataset of one or more small archives, below a temporary data folder."""

    def __init__(self, tmp_path: Path, patch: pytest.MonkeyPatch, *archives: Archive) -> None:
        self.data, self.patch = tmp_path / "data", patch
        self.raw = self.data / "coco2014" / "raw"
        self.target, self.partial = self.raw / "train.zip", self.raw / "train.zip.partial"
        self.waits: list[float] = []
        patch.setitem(ARCHIVES, "coco2014", archives or (archive_of(),))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)

    def run(self, server: Server, retries: int = 3, timeout_s: float = 10.0) -> Manifest:
        config = DownloadConfig(
            data=self.data, dataset="coco2014", retries=retries, timeout_s=timeout_s
        )
        with serving(server) as url:
            self.patch.setenv("SHOWTELL_COCO_URL", url)
            return download(config, sleep=self.waits.append)

    def put_partial(self, content: bytes, etag: str | None = '"one"') -> None:
        self.raw.mkdir(parents=True)
        self.partial.write_bytes(content)
        if etag is not None:
            write_json(self.raw / "train.zip.partial.json", {"etag": etag, "last_modified": None})

    def assert_whole(self) -> None:
        assert self.target.read_bytes() == CONTENT
        assert not list(self.raw.glob("*.partial*"))

    def assert_absent(self) -> None:
        assert not self.target.exists()
        assert Manifest.read(self.raw) is None


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(tmp_path, monkeypatch)


def test_download_fetches_and_records_the_archives(setting: Setting) -> None:
    server = Server(Reply())
    manifest = setting.run(server)
    setting.assert_whole()
    assert server.paths == ["/zips/train.zip"]
    assert "range" not in server.requests[0]
    assert manifest == Manifest.read(setting.raw)
    assert manifest.stage == "download"
    assert manifest.inputs == {"zips/train.zip": f"md5:{hashlib.md5(CONTENT).hexdigest()}"}
    assert manifest.outputs == {"train.zip": len(CONTENT)}
    assert manifest.counts == {"num_archives": 1, "num_bytes": len(CONTENT)}
    assert setting.waits == []


def test_download_of_a_finished_dataset_asks_nothing(setting: Setting) -> None:
    first = setting.run(Server(Reply()))
    server = Server(Reply(status=500))
    assert setting.run(server) == first
    assert server.paths == []


def test_download_goes_on_behind_a_break(setting: Setting) -> None:
    server = Server(Reply(break_after=HALF), Reply())
    setting.run(server)
    setting.assert_whole()
    assert server.requests[1]["range"] == f"bytes={HALF}-"
    assert server.requests[1]["if-range"] == '"one"'
    assert len(setting.waits) == 1


def test_download_keeps_the_part_for_the_next_run(setting: Setting) -> None:
    with pytest.raises(DownloadError, match=f"{HALF:,} of {len(CONTENT):,} bytes are kept"):
        setting.run(Server(Reply(break_after=HALF)), retries=0)
    setting.assert_absent()
    assert setting.partial.read_bytes() == CONTENT[:HALF]
    server = Server(Reply())
    setting.run(server)
    setting.assert_whole()
    assert [request["range"] for request in server.requests] == [f"bytes={HALF}-"]


def test_download_outlasts_more_breaks_than_retries_while_bytes_come(setting: Setting) -> None:
    pieces = [Reply(break_after=500) for _ in range(len(CONTENT) // 500 + 1)]
    assert len(pieces) > 5
    setting.run(Server(*pieces), retries=1)
    setting.assert_whole()


def test_download_gives_up_when_nothing_more_comes(setting: Setting) -> None:
    server = Server(Reply(break_after=HALF, ignore_range=True))
    with pytest.raises(DownloadError, match="gave up after 4 failed attempts"):
        setting.run(server, retries=3)
    # The first attempt brought bytes, so it opens the row of failures that the retries bound.
    assert len(server.paths) == 4
    setting.assert_absent()


def test_download_starts_over_when_the_server_ignores_range(setting: Setting) -> None:
    server = Server(Reply(break_after=HALF), Reply(ignore_range=True))
    setting.run(server)
    setting.assert_whole()
    assert "range" in server.requests[1]


def test_download_never_glues_a_changed_file_to_an_old_half(setting: Setting) -> None:
    old = Reply(content=CHANGED, etag='"old"', break_after=HALF)
    server = Server(old, Reply(etag='"new"'))
    assert len(CHANGED) == len(CONTENT)
    setting.run(server)
    setting.assert_whole()
    assert server.requests[1]["if-range"] == '"old"'
    assert len(server.paths) == 2


def test_download_notices_a_changed_etag_where_if_range_is_ignored(setting: Setting) -> None:
    old = Reply(content=CHANGED, etag='"old"', break_after=HALF)
    server = Server(old, Reply(etag='"new"', ignore_if_range=True))
    setting.run(server)
    setting.assert_whole()
    assert [request.get("range") for request in server.requests] == [None, f"bytes={HALF}-", None]


def test_download_of_two_wrong_halves_starts_over_by_the_checksum(setting: Setting) -> None:
    setting.put_partial(CHANGED[:HALF], etag=None)
    server = Server(Reply(etag=None))
    setting.run(server)
    setting.assert_whole()
    assert [request.get("range") for request in server.requests] == [f"bytes={HALF}-", None]


def test_download_resumes_by_date_where_the_etag_is_weak(setting: Setting) -> None:
    date = formatdate(1_500_000_000, usegmt=True)
    reply = {"etag": 'W/"weak"', "last_modified": date}
    server = Server(Reply(break_after=HALF, **reply), Reply(**reply))
    setting.run(server)
    setting.assert_whole()
    assert server.requests[1]["if-range"] == date


def test_download_resumes_a_part_put_there_by_hand(setting: Setting) -> None:
    setting.put_partial(CONTENT[:HALF], etag=None)
    server = Server(Reply())
    setting.run(server)
    setting.assert_whole()
    assert server.requests[0]["range"] == f"bytes={HALF}-"
    assert "if-range" not in server.requests[0]


def test_download_names_a_part_that_is_already_whole(setting: Setting) -> None:
    setting.put_partial(CONTENT)
    server = Server(Reply())
    setting.run(server)
    setting.assert_whole()
    assert server.paths == []


@pytest.mark.parametrize("part", [CHANGED, CONTENT + b"more"])
def test_download_drops_a_part_that_cannot_be(setting: Setting, part: bytes) -> None:
    setting.put_partial(part)
    setting.run(Server(Reply()))
    setting.assert_whole()


def test_download_starts_over_after_416(setting: Setting) -> None:
    setting.put_partial(CONTENT[:HALF])
    server = Server(Reply(status=416, content=b""), Reply())
    setting.run(server)
    setting.assert_whole()
    assert "range" not in server.requests[1]


@pytest.mark.parametrize(
    "wrong", [f"bytes 0-{HALF}/{len(CONTENT)}", f"bytes {HALF}-{len(CONTENT) + 8}/*", "nonsense"]
)
def test_download_refuses_a_wrong_content_range(setting: Setting, wrong: str) -> None:
    setting.put_partial(CONTENT[:HALF])
    server = Server(Reply(headers={"Content-Range": wrong}), Reply())
    setting.run(server)
    setting.assert_whole()
    assert "range" not in server.requests[1]


def test_download_refuses_a_length_other_than_the_published(setting: Setting) -> None:
    with pytest.raises(DownloadError, match=rf"announces 12 bytes, expected {len(CONTENT):,}"):
        setting.run(Server(Reply(length=12, break_after=12)))
    setting.assert_absent()


def test_download_goes_on_when_fewer_bytes_come_than_announced(setting: Setting) -> None:
    setting.run(Server(Reply(break_after=len(CONTENT) - 1), Reply()))
    setting.assert_whole()


def test_download_without_a_length_is_whole_or_nothing(setting: Setting) -> None:
    setting.run(Server(Reply(chunked=True)))
    setting.assert_whole()


def test_download_stops_where_more_comes_than_was_published(setting: Setting) -> None:
    with pytest.raises(DownloadError, match="md5"):
        setting.run(Server(Reply(content=CONTENT + b"x" * 300_000, chunked=True)))
    setting.assert_absent()


def test_download_refuses_a_web_page_and_keeps_the_part(setting: Setting) -> None:
    setting.put_partial(CONTENT[:HALF])
    page = Reply(content=PAGE, headers={"Content-Type": "text/html; charset=utf-8"}, status=200)
    server = Server(page)
    with pytest.raises(DownloadError, match="sent a web page, expected a zip archive"):
        setting.run(server)
    assert len(server.paths) == 1
    assert setting.partial.read_bytes() == CONTENT[:HALF]
    setting.assert_absent()


def test_download_refuses_a_web_page_that_claims_to_be_a_zip(setting: Setting) -> None:
    padded = PAGE + b" " * (len(CONTENT) - len(PAGE))
    with pytest.raises(DownloadError, match="the content starts with b'<!DOCTYPE"):
        setting.run(Server(Reply(content=padded)))
    setting.assert_absent()


def test_download_refuses_another_file_of_the_same_size(setting: Setting) -> None:
    server = Server(Reply(content=CHANGED))
    with pytest.raises(DownloadError, match=hashlib.md5(CHANGED).hexdigest()):
        setting.run(server)
    assert len(server.paths) == 1
    assert not list(setting.raw.glob("*.partial*"))
    setting.assert_absent()


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_download_tries_again_when_the_server_is_busy(setting: Setting, status: int) -> None:
    busy = Reply(status=status, content=PAGE, headers={"Retry-After": "0"})
    setting.run(Server(busy, busy, Reply()))
    setting.assert_whole()
    assert setting.waits == [0.0, 0.0]


def test_download_waits_as_long_as_the_server_asks(setting: Setting) -> None:
    busy = Reply(status=503, content=PAGE, headers={"Retry-After": "17"})
    setting.run(Server(busy, Reply()))
    assert setting.waits == [17.0]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_download_does_not_repeat_what_was_refused(setting: Setting, status: int) -> None:
    server = Server(Reply(status=status, content=PAGE, headers={"Content-Type": "text/html"}))
    with pytest.raises(DownloadError, match=f"answered {status} .*expected 200"):
        setting.run(server)
    assert len(server.paths) == 1
    assert setting.waits == []


def test_download_follows_a_redirect(setting: Setting) -> None:
    moved = Reply(status=302, content=b"", headers={"Location": "/elsewhere/train.zip"})
    server = Server(moved, Reply())
    setting.run(server)
    setting.assert_whole()
    assert server.paths == ["/zips/train.zip", "/elsewhere/train.zip"]


def test_download_resumes_through_a_redirect(setting: Setting) -> None:
    setting.put_partial(CONTENT[:HALF])
    moved = Reply(status=302, content=b"", headers={"Location": "/elsewhere/train.zip"})
    server = Server(moved, Reply())
    setting.run(server)
    setting.assert_whole()
    assert server.requests[1]["range"] == f"bytes={HALF}-"


def test_download_refuses_a_redirect_in_circles(setting: Setting) -> None:
    moved = Reply(status=302, content=b"", headers={"Location": "/zips/train.zip"})
    with pytest.raises(DownloadError, match="SHOWTELL_COCO_URL"):
        setting.run(Server(moved))


def test_download_leaves_a_stalled_server_and_goes_on(setting: Setting) -> None:
    server = Server(Reply(stall_after=HALF), Reply())
    setting.run(server, timeout_s=0.3)
    setting.assert_whole()
    assert server.requests[1]["range"] == f"bytes={HALF}-"


def test_download_from_no_server_says_so(setting: Setting) -> None:
    with serving(Server(Reply())) as url:
        setting.patch.setenv("SHOWTELL_COCO_URL", url)
    config = DownloadConfig(data=setting.data, dataset="coco2014", retries=2)
    with pytest.raises(DownloadError, match="gave up after 3 failed attempts"):
        download(config, sleep=setting.waits.append)
    assert len(setting.waits) == 2


@pytest.mark.parametrize("url", ["images.example.org", "ftp://127.0.0.1/coco"])
def test_download_refuses_a_server_that_is_no_http_url(setting: Setting, url: str) -> None:
    setting.patch.setenv("SHOWTELL_COCO_URL", url)
    with pytest.raises(DownloadError, match="address comes from SHOWTELL_COCO_URL"):
        download(DownloadConfig(data=setting.data, dataset="coco2014"), sleep=setting.waits.append)
    assert setting.waits == []


def test_download_unpacks_the_listed_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = "annotations/captions_train.json"
    notes = archive_of(NOTES, "annotations/notes.zip", member)
    setting = Setting(tmp_path, monkeypatch, notes, archive_of())
    manifest = setting.run(Server(Reply(content=NOTES), Reply()))
    assert (setting.raw / member).read_text() == '{"captions": []}' * 400
    assert not (setting.raw / "other").exists()
    assert set(manifest.outputs) == {"notes.zip", member, "train.zip"}
    (setting.raw / member).unlink()
    server = Server(Reply())
    setting.run(server)
    assert (setting.raw / member).exists()
    assert server.paths == []


def test_download_says_when_a_member_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, monkeypatch, archive_of(CONTENT, "zips/train.zip", "captions.json"))
    with pytest.raises(DownloadError, match=r"cannot unpack captions\.json"):
        setting.run(Server(Reply()))
    assert Manifest.read(setting.raw) is None


def test_download_keeps_what_is_done_when_a_later_archive_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = archive_of(), archive_of(CHANGED, "zips/val.zip")
    setting = Setting(tmp_path, monkeypatch, first, second)
    with pytest.raises(DownloadError, match="404"):
        setting.run(Server(Reply(), Reply(status=404)))
    assert setting.target.read_bytes() == CONTENT
    assert Manifest.read(setting.raw) is None
    server = Server(Reply(content=CHANGED))
    setting.run(server)
    assert server.paths == ["/zips/val.zip"]


def test_download_accepts_an_archive_put_there_by_hand(setting: Setting) -> None:
    setting.raw.mkdir(parents=True)
    setting.target.write_bytes(CONTENT)
    server = Server(Reply())
    setting.run(server)
    assert server.paths == []
    setting.assert_whole()


@pytest.mark.parametrize("content", [CONTENT[:HALF], CHANGED])
def test_download_refuses_a_wrong_file_but_leaves_it(setting: Setting, content: bytes) -> None:
    setting.raw.mkdir(parents=True)
    setting.target.write_bytes(content)
    with pytest.raises(DownloadError, match=r"rename it to train\.zip\.partial"):
        setting.run(Server(Reply()))
    assert setting.target.read_bytes() == content


def test_download_hashes_a_verified_archive_only_once(setting: Setting) -> None:
    setting.run(Server(Reply()))
    hashed: list[str] = []
    digest = hashlib.file_digest
    setting.patch.setattr(
        hashlib, "file_digest", lambda *a: (hashed.append(a[0].name), digest(*a))[1]
    )
    (setting.raw / "manifest.json").unlink()
    setting.run(Server(Reply()))
    assert hashed == []
    os.utime(setting.target, ns=(1, 1))
    (setting.raw / "manifest.json").unlink()
    setting.run(Server(Reply()))
    assert hashed == [str(setting.target)]


def test_download_interrupted_by_the_user_keeps_the_part(setting: Setting) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch_module.ProgressLine, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            setting.run(Server(Reply()))
    kept = setting.partial.read_bytes()
    assert kept and CONTENT.startswith(kept)
    setting.assert_absent()
    setting.run(Server(Reply()))
    setting.assert_whole()


def test_download_refuses_to_begin_what_cannot_fit(setting: Setting) -> None:
    usage = download_module.shutil._ntuple_diskusage(100, 90, 10)
    setting.patch.setattr(download_module.shutil, "disk_usage", lambda path: usage)
    server = Server(Reply())
    with pytest.raises(
        DownloadError, match=r"kB remain to be downloaded, 10 B are free.*free some disk space"
    ):
        setting.run(server)
    assert server.paths == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_download_onto_a_full_disk_is_one_line(setting: Setting) -> None:
    setting.patch.setattr(fetch_module.PartialDownload, "discard", lambda self: None)
    setting.raw.mkdir(parents=True)
    setting.partial.symlink_to("/dev/full")
    with pytest.raises(
        DownloadError, match=r"No space left on device.*free some disk space"
    ) as caught:
        setting.run(Server(Reply()))
    assert "\n" not in str(caught.value)
    assert not setting.target.exists()


def test_download_by_two_processes_is_refused(setting: Setting) -> None:
    with locked(setting.raw), pytest.raises(ShowTellError, match="another showtell process"):
        setting.run(Server(Reply()))


@pytest.mark.parametrize("dataset", sorted(ON_REQUEST))
def test_download_of_flickr_says_where_to_ask(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(DownloadError) as caught:
        download(DownloadConfig(data=tmp_path, dataset=dataset))
    assert ON_REQUEST[dataset] in str(caught.value)
    assert f"showtell prepare --dataset {dataset} --source DIR" in str(caught.value)
    assert not (tmp_path / dataset).exists()


def test_download_of_an_unknown_dataset_names_the_known() -> None:
    with pytest.raises(
        DownloadError, match=r"'coco2015' cannot be downloaded, only coco2014, coco2017 and scenes"
    ):
        find_archives("coco2015")


def test_recipes_name_the_captions_of_both_splits() -> None:
    for year in ("2014", "2017"):
        archives = ARCHIVES[f"coco{year}"]
        members = [member for archive in archives for member in archive.members]
        assert members == [f"annotations/captions_{split}{year}.json" for split in ("train", "val")]
        names = {archive.name for archive in archives}
        assert {f"train{year}.zip", f"val{year}.zip"} < names
        assert all(re.fullmatch("[0-9a-f]{32}", archive.md5) for archive in archives)


def test_download_of_scenes_draws_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw_two(directory: Path) -> int:
        (directory / "images").mkdir(parents=True)
        for number in (1, 2):
            (directory / "images" / f"00000{number}.jpg").write_bytes(b"picture")
        (directory / "captions.csv").write_text("file_name,caption,split\n")
        return 2

    monkeypatch.setattr(download_module, "draw_scenes", draw_two)
    config = DownloadConfig(data=tmp_path, dataset="scenes")
    manifest = download(config)
    assert manifest.counts == {"num_images": 2}
    assert set(manifest.outputs) == {"captions.csv", "images/000001.jpg", "images/000002.jpg"}
    monkeypatch.setattr(download_module, "draw_scenes", None)
    assert download(config) == manifest


def test_backoff_doubles_within_its_bounds() -> None:
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
def test_retry_after_is_read_as_seconds_or_date(value: str | None, wait_s: float | None) -> None:
    assert parse_retry_after(value, now=1_000_000.0) == wait_s
