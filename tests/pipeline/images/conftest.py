"""Archives of images, and a web server that can be slow, broken or endless."""

import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.pipeline.images import fetch
from showtell.pipeline.images.image_files import Located

CONTENTS = [bytes([number]) * (1000 + 37 * number) for number in range(30)]


@pytest.fixture
def write_tar() -> Callable[..., list[Located]]:
    """Write a tar archive below a folder; returns what `ImageFiles.stream` needs."""

    def write(
        folder: Path, archive: str, contents: list[bytes], suffix: str = ".jpg"
    ) -> list[Located]:
        path = folder / archive
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for number, content in enumerate(contents):
                for name, text in ((f"{number:05}{suffix}", content), (f"{number:05}.txt", b"x")):
                    info = tarfile.TarInfo(name)
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text))
        with tarfile.open(path) as tar:
            return [
                (f"{archive}/{member.name}", member.offset_data, member.size)
                for member in tar
                if member.name.endswith(suffix)
            ]

    return write


@pytest.fixture
def write_parquet() -> Callable[..., list[Located]]:
    """Write a Parquet file with image bytes, as `write_tar`."""

    def write(
        folder: Path, archive: str, contents: list[bytes | None], *, nested: bool = True
    ) -> list[Located]:
        path = folder / archive
        path.parent.mkdir(parents=True, exist_ok=True)
        values = pa.array([{"bytes": c, "path": "x"} for c in contents] if nested else contents)
        table = pa.table({"text": ["x"] * len(contents), "image" if nested else "jpg": values})
        pq.write_table(table, path, row_group_size=12)
        return [(f"{archive}/{row}", -1, -1) for row in range(len(contents))]

    return write


class Web:
    """A web server on loopback.

    Attributes:
        url: of the server.
        requests: the path of each request.
        at_once: the largest number of requests that were answered at the same time.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.at_once = self._now = 0
        self._lock = threading.Lock()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with web._lock:
                    web.requests.append(self.path)
                    web._now += 1
                    web.at_once = max(web.at_once, web._now)
                try:
                    getattr(web, self.path[1:].partition("/")[0])(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with web._lock:
                        web._now -= 1

            def log_message(self, *_: object) -> None:
                pass

            def answer(self, body: bytes, status: int = 200, length: int | None = None) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 100

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def image(self, handler) -> None:
        time.sleep(0.02)
        handler.answer(CONTENTS[int(handler.path.rpartition("/")[2])])

    def moved(self, handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", handler.path.replace("moved", "image"))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def missing(self, handler) -> None:
        handler.answer(b"not here", 404)

    def busy(self, handler) -> None:
        handler.answer(b"later", 503)

    def flaky(self, handler) -> None:
        if self.requests.count(handler.path) == 1:
            handler.answer(b"later", 500)
        else:
            self.image(handler)

    def slow(self, handler) -> None:
        time.sleep(1)

    def dripping(self, handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(50):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)

    def huge(self, handler) -> None:
        handler.answer(b"x", length=1 << 40)

    def endless(self, handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(10_000):
            handler.wfile.write(bytes(100_000))

    def cut(self, handler) -> None:
        handler.answer(b"half", length=8)


@pytest.fixture
def web(monkeypatch) -> Iterator[Web]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", 0.01)
    served = Web()
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Make a request time out soon."""
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(fetch, "MAX_SECONDS", 0.5)
