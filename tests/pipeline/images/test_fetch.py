"""Images behind URLs of their own, with servers that fail in every way."""

import errno
import time

import pytest

from showtell.pipeline.images import fetch, local
from showtell.pipeline.images.fetch import Fetcher
from showtell.pipeline.images.image_files import ImageFiles

from .conftest import CONTENTS


def reason_of(url: str) -> tuple[str, bool]:
    """Return why a URL cannot be read, and whether that may pass."""
    with pytest.raises(OSError) as raised:
        Fetcher().read(url)
    error = raised.value
    return error.strerror or str(error), error.errno is not None


def test_image_is_fetched_and_redirects_are_followed(web) -> None:
    for path in ("image/7", "moved/7", "flaky/7"):
        assert Fetcher().read(f"{web.url}/{path}") == CONTENTS[7]
    assert web.requests == ["/image/7", "/moved/7", "/image/7", "/flaky/7", "/flaky/7"]


@pytest.mark.parametrize(
    ("path", "reason", "may_pass", "num_requests"),
    [
        ("missing", "HTTP 404", False, 1),
        ("busy", "HTTP 503", True, 3),
        ("slow", "timed out", True, 3),
        ("dripping", "timed out", True, 3),
        ("huge", "the file has 1,099,511,627,776 bytes, expected at most", False, 1),
        ("cut", "peer closed connection without sending complete message body", True, 3),
    ],
)
def test_reason_says_what_the_server_did(
    web, impatient, path, reason, may_pass, num_requests
) -> None:
    found, passes = reason_of(f"{web.url}/{path}")
    assert found.startswith(reason)
    assert passes == may_pass
    assert len(web.requests) == num_requests


def test_endless_body_is_not_read_to_the_end(web, monkeypatch) -> None:
    monkeypatch.setattr(local, "MAX_FILE_BYTES", 1_000_000)
    started = time.monotonic()
    assert reason_of(f"{web.url}/endless")[0].startswith("the file has 1,")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("url", ["http://", "http://a b/", "http://[::1/x", "https://x:y/z.jpg"])
def test_no_url_is_a_reason_that_stays(url: str) -> None:
    assert not reason_of(url)[1]


def test_refused_connection_may_pass_and_an_unknown_host_does_not(web, monkeypatch) -> None:
    assert reason_of("http://127.0.0.1:9/x.jpg")[1]

    def unknown(*_: object, **__: object) -> None:
        raise fetch.socket.gaierror(fetch.socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(fetch.socket, "getaddrinfo", unknown)
    assert reason_of("http://nowhere.invalid/x.jpg") == ("the host does not exist", False)


def test_many_urls_are_fetched_at_once_and_arrive_in_order(web) -> None:
    numbers = [number % 30 for number in range(200)]
    images = [(f"{web.url}/image/{number}", -1, -1) for number in numbers]
    images[50] = (f"{web.url}/missing", -1, -1)
    contents = list(ImageFiles("s3://elsewhere").stream(images))
    assert str(contents.pop(50)) == "HTTP 404"
    assert contents == [CONTENTS[n] for i, n in enumerate(numbers) if i != 50]
    assert 8 <= web.at_once <= 32


def test_closing_a_stream_ends_its_requests_soon(web) -> None:
    images = [(f"{web.url}/{'slow' if i else 'image'}/{i}", -1, -1) for i in range(100)]
    stream = ImageFiles("s3://elsewhere").stream(images)
    assert next(stream) == CONTENTS[0]
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 2


def test_folder_on_s3_is_read_file_by_file(tmp_path, upload) -> None:
    for number in range(20):
        path = tmp_path / "set" / f"a/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENTS[number])
    files = ImageFiles(upload(tmp_path / "set"))
    names = [*(f"a/{number}.jpg" for number in range(20)), "a/none.jpg"]
    *contents, missing = files.stream((name, -1, -1) for name in names)
    assert contents == CONTENTS[:20]
    assert isinstance(missing, OSError)
    assert (str(missing), missing.errno) == ("does not exist", None)
    assert files.read("a/3.jpg") == CONTENTS[3]
    assert files.fingerprints(names) == ["url"] * 21


def test_unreachable_store_is_a_reason_that_may_pass(monkeypatch) -> None:
    pytest.importorskip("aiohttp")

    def refused(*_: object) -> None:
        raise fetch.RemoteError("s3://b/x.jpg cannot be read: HTTP 503.", "HTTP 503")

    monkeypatch.setattr(fetch, "open_url", refused)
    (content,) = ImageFiles("s3://b").stream([("x.jpg", -1, -1)])
    assert isinstance(content, OSError)
    assert (content.errno, content.strerror) == (errno.EIO, "HTTP 503")
