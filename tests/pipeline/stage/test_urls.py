"""Files by local path and by URL, with S3 and HTTP servers on loopback."""

import os
import sys
from pathlib import Path

import pytest

from showtell.pipeline.stage import urls
from showtell.pipeline.stage.errors import ConfigError, MissingArtifactError, StorageError

CONTENT = bytes(range(256)) * 40_000  # more than one block


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch) -> None:
    monkeypatch.setattr(urls, "FIRST_WAIT_S", 0.0)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a/00000.tar", "a/00001.tar", "b/00000.tar"):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
    return tmp_path / "files"


def names(locations: list[str], root: str) -> list[str]:
    return [location.removeprefix(f"{root}/") for location in locations]


def test_patterns_find_local_files(folder) -> None:
    root = str(folder)
    assert names(urls.expand(f"{root}/a/*.tar"), root) == ["a/00000.tar", "a/00001.tar"]
    assert names(urls.expand(f"{root}/{{b,a}}/00000.tar"), root) == ["a/00000.tar", "b/00000.tar"]
    assert len(urls.expand(f"{root}/**/*.tar")) == 3


def test_patterns_find_files_on_s3(folder, upload) -> None:
    bucket = upload(folder)
    assert names(urls.expand(f"{bucket}/*/*.tar"), bucket) == [
        "a/00000.tar",
        "a/00001.tar",
        "b/00000.tar",
    ]
    with pytest.raises(MissingArtifactError, match=r"no file matches .*/\*\.csv"):
        urls.expand(f"{bucket}/*.csv")


def test_patterns_find_links_of_an_http_page(folder, serve_folder) -> None:
    served = serve_folder(folder)
    assert names(urls.expand(f"{served.url}/a/*.tar"), served.url) == ["a/00000.tar", "a/00001.tar"]


def test_braces_expand_with_leading_zeros() -> None:
    assert urls.expand("s3://b/{08..10}-{x,y}.tar") == [
        *("s3://b/08-x.tar", "s3://b/08-y.tar", "s3://b/09-x.tar"),
        *("s3://b/09-y.tar", "s3://b/10-x.tar", "s3://b/10-y.tar"),
    ]
    assert urls.expand("https://h/{a}.tar") == ["https://h/{a}.tar"]
    assert urls.expand("https://h/a.tar?x=1") == ["https://h/a.tar?x=1"]
    with pytest.raises(ConfigError, match="at most 1,000,000"):
        urls.expand("s3://b/{0..9999}{0..9999}.tar")


def test_a_name_with_brackets_that_exists_is_no_pattern(tmp_path) -> None:
    path = tmp_path / "a[1].csv"
    path.touch()
    assert urls.expand(str(path)) == [str(path)]


@pytest.mark.parametrize("start", [0, 1000, len(CONTENT) - 5])
def test_files_are_read_from_a_byte_on(folder, upload, serve_folder, start: int) -> None:
    served, without_ranges = serve_folder(folder), serve_folder(folder)
    without_ranges.has_ranges = False
    for root in (str(folder), upload(folder), served.url, without_ranges.url):
        with urls.open_url(f"{root}/a/00000.tar", start) as file:
            first = file.read(100)
            assert first + file.read() == CONTENT[start:], root
    assert all(wanted for method, _, wanted in served.requests if method == "GET")


def test_failed_requests_are_repeated(folder, serve_folder) -> None:
    served = serve_folder(folder)
    served.statuses["/a/00000.tar"] = [503, 503, 503, 503]
    with urls.open_url(f"{served.url}/a/00000.tar") as file:
        assert file.read() == CONTENT


def test_errors_are_one_line(folder, upload, serve_folder, tmp_path) -> None:
    served, bucket = serve_folder(folder), upload(folder)
    for root in (str(folder), served.url, bucket):
        with pytest.raises(MissingArtifactError, match=r"/none\.tar does not exist\."):
            urls.open_url(f"{root}/none.tar")
    served.statuses["/a/00000.tar"] = [403] * 20
    with pytest.raises(StorageError, match=r"a/00000\.tar cannot be read: HTTP 403\. Check"):
        urls.open_url(f"{served.url}/a/00000.tar")
    served.statuses["/a/00000.tar"] = [500] * 20
    with pytest.raises(StorageError, match=r"a/00000\.tar cannot be read: HTTP 500\. Check"):
        urls.open_url(f"{served.url}/a/00000.tar")
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:1/x cannot be read: "):
        urls.open_url("http://127.0.0.1:1/x")
    with pytest.raises(StorageError, match=r"nothing://x cannot be read: Protocol not known"):
        urls.open_url("nothing://x")


def test_stamps_change_with_the_file(folder, upload, serve_folder) -> None:
    served, bucket = serve_folder(folder), upload(folder)
    import s3fs

    path = folder / "a/00000.tar"
    before = [urls.stamp(f"{root}/a/00000.tar") for root in (str(folder), served.url, bucket)]
    again = [urls.stamp(f"{root}/a/00000.tar") for root in (str(folder), served.url, bucket)]
    assert before == again
    path.write_bytes(CONTENT[::-1])
    os.utime(path, (1e9, 1e9))
    s3fs.S3FileSystem().pipe_file(f"{bucket}/a/00000.tar", CONTENT[::-1])
    after = [urls.stamp(f"{root}/a/00000.tar") for root in (str(folder), served.url, bucket)]
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert [urls.stamp(f"{root}/none") for root in (str(folder), served.url, bucket)] == [None] * 3


def test_missing_library_names_the_extra(monkeypatch) -> None:
    import fsspec.core  # noqa: F401, so that sys.modules has the module, not the object

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'showtell\[remote\]'"):
        urls.open_url("gs://bucket/x")


def test_files_are_uploaded_and_discarded(folder, upload, tmp_path) -> None:
    path = folder / "a/00000.tar"
    for root in (str(tmp_path / "copies"), upload(folder)):
        urls.require_bucket(root)
        urls.upload(path, f"{root}/c/x.tar")
        with urls.open_url(f"{root}/c/x.tar") as file:
            assert file.read() == CONTENT
        for _ in range(2):
            urls.discard(f"{root}/c/x.tar")
            assert urls.stamp(f"{root}/c/x.tar") is None


def test_upload_to_a_missing_bucket_is_one_line(folder, s3_server) -> None:
    for write in (urls.require_bucket, lambda url: urls.upload(folder / "a/00000.tar", url)):
        with pytest.raises(MissingArtifactError, match=r"s3://none-1/x cannot be written: the b"):
            write("s3://none-1/x")
