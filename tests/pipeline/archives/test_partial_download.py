import hashlib
from pathlib import Path

import pytest

from showtell.pipeline.archives.partial_download import PartialDownload, read_json

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.fixture
def partial(tmp_path: Path) -> PartialDownload:
    return PartialDownload(tmp_path / "train.zip")


def write(partial: PartialDownload, **headers: str) -> None:
    """Record the version that the headers announce, and four bytes."""
    partial.restart({name.replace("_", "-"): value for name, value in headers.items()})
    partial.path.write_bytes(b"abcd")


def test_partial_download_without_bytes_requests_the_whole_file(partial: PartialDownload) -> None:
    assert (partial.size_bytes, partial.range_headers()) == (0, {})
    assert partial.hash().digest() == hashlib.md5(b"").digest()


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"etag": '"one"', "last_modified": DATE}, '"one"'),
        ({"etag": 'W/"one"', "last_modified": DATE}, DATE),
        ({"last_modified": DATE}, DATE),
        ({"etag": 'W/"one"'}, None),
        ({}, None),
    ],
)
def test_partial_download_requests_the_rest_of_its_version(partial, headers, validator) -> None:
    write(partial, **headers)
    expected = {"Range": "bytes=4-"} | ({"If-Range": validator} if validator else {})
    assert partial.range_headers() == expected


def test_partial_download_hash_continues_with_the_rest(partial: PartialDownload) -> None:
    write(partial)
    digest = partial.hash()
    digest.update(b"efgh")
    assert digest.hexdigest() == hashlib.md5(b"abcdefgh").hexdigest()


def test_partial_download_matches_unless_both_etags_differ(partial: PartialDownload) -> None:
    write(partial, etag='"one"')
    assert partial.matches({"etag": '"one"'}) and partial.matches({})
    assert not partial.matches({"etag": '"two"'})
    write(partial)
    assert partial.matches({"etag": '"two"'})


def test_partial_download_restart_and_discard_delete_the_bytes(partial: PartialDownload) -> None:
    write(partial, etag='"one"')
    partial.restart({"etag": '"two"'})
    assert read_json(partial.state_path) == {"etag": '"two"', "last_modified": None}
    assert partial.size_bytes == 0
    write(partial)
    partial.discard()
    assert not partial.path.exists() and not partial.state_path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_read_json_of_a_damaged_file_is_empty(tmp_path: Path, content: bytes) -> None:
    assert read_json(tmp_path / "none.json") == {}
    (tmp_path / "state.json").write_bytes(content)
    assert read_json(tmp_path / "state.json") == {}
