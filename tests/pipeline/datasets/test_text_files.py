"""Hostile annotation files: each is one line with path, position and what was expected."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from showtell.pipeline.datasets.text_files import parse_id, parse_name, read_csv
from showtell.pipeline.stage.errors import DatasetError, ShowTellError, StorageError

from .conftest import FORMATS, Source, as_coco, as_karpathy

WriteSource = Callable[[str, Path], Source]
JSON_VALUES = {
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "long number": "9" * 5000,
    "2^63": str(2**63),
    "-2^63-1": str(-(2**63) - 1),
    "2^64": str(2**64),
    "infinity": "Infinity",
    "not a number": "NaN",
    "1e400": "1e400",
    "half": "0.5",
    "2^53+1 as float": "9007199254740994.0",
    "true": "true",
    "null": "null",
    "list": "[]",
    "list of lists": "[[1]]",
    "object": "{}",
    "number": "7",
    "text": '"x"',
    "NUL": '"a\\u0000b"',
    "lone surrogate": '"a\\ud800b"',
    "line break": '"a\\nb"',
    "empty text": '""',
    "long name": '"' + "x" * 5000 + '"',
    "many slashes": '"' + "x/" * 5000 + 'y"',
    "cut": "",
}
# Values that mean something at their place.
VALID = {
    "id": {"number", "-2^63"},
    "image_id": set(),
    "imgid": {"number"},
    "caption": {"null", "text", "line break", "empty text", "long name", "many slashes", "list"},
    "raw": {"null", "text", "line break", "empty text", "long name", "many slashes"},
    "sentences": {"list"},
}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (parent, key) of every value in a JSON value, and its root as (None, None)."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


def variants(document: Any) -> Iterator[tuple[str, str, str]]:
    """Yield key, name of the hostile value and text: each value of a document replaced by each."""
    for parent, key in list(places(document)):
        good, parent[key] = parent[key], "HOLE"
        text = json.dumps(document)
        parent[key] = good
        for name, hostile in JSON_VALUES.items():
            yield str(key), name, text.replace('"HOLE"', hostile)


def require_one_line(source: Source) -> str:
    """Load a source; return its error, or "" if it has none."""
    start = time.monotonic()
    try:
        source.load()
    except ShowTellError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 1200, message
        assert time.monotonic() - start < 2
        message.encode()
        return message
    return ""


@pytest.mark.parametrize("kind", ["coco", "karpathy", "jsonl"])
def test_hostile_json_is_one_error_with_path_and_position(
    tmp_path: Path, write_source: WriteSource, kind: str
) -> None:
    source = write_source(kind, tmp_path)
    row = json.loads(source.file.read_text().split("\n")[0]) if kind == "jsonl" else None
    document = {"coco": as_coco(), "karpathy": as_karpathy(), "jsonl": row}[kind]
    rest = source.file.read_text().partition("\n")[2]
    seen = set()
    for key, name, text in variants(document):
        if (key, name) in seen:  # the same in another image
            continue
        seen.add((key, name))
        source.file.write_text(f"{text}\n{rest}")
        message = require_one_line(source)
        ignored = key in ("info", "year", "height", "dataset") or (kind == "coco" and key == "id")
        harmless = ignored and "deep" not in name and name not in ("long number", "cut")
        if not message:
            assert harmless or name in VALID.get(key, ()), (key, name)
        elif message and not harmless and name not in ("number", "text"):
            assert str(source.file) in message or str(tmp_path) in message, message


@pytest.mark.parametrize("kind", FORMATS)
def test_empty_and_truncated_files_are_one_error(
    tmp_path: Path, write_source: WriteSource, kind: str
) -> None:
    source = write_source(kind, tmp_path)
    content = source.file.read_bytes()
    complete = source.load()
    for length in range(0, len(content) - 1, max(1, len(content) // 60)):
        source.file.write_bytes(content[:length])
        message = require_one_line(source)
        if kind in ("coco", "karpathy", "parquet") or not length:
            assert str(source.file) in message
    source.file.write_bytes(content)
    assert source.load() == complete


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("character", ["\0", "\x7f", "\u2028"])
def test_control_characters_in_names_are_refused(
    tmp_path: Path, write_source: WriteSource, kind: str, character: str
) -> None:
    source = write_source(kind, tmp_path)
    if kind == "parquet":
        pytest.skip("compressed")
    text = source.file.read_text("utf-8")
    escaped = json.dumps(character)[1:-1] if kind in ("coco", "karpathy", "jsonl") else character
    source.file.write_text(text.replace("1_a", f"1{escaped}a"), "utf-8")
    assert "without the character" in require_one_line(source)


@pytest.mark.parametrize("kind", FORMATS)
def test_unreadable_file_is_one_error(
    tmp_path: Path, write_source: WriteSource, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(kind, tmp_path)

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"cannot be read: Permission denied\."):
        source.load()


def test_long_number_is_reported_with_its_place(tmp_path: Path, write_source: WriteSource) -> None:
    source = write_source("coco", tmp_path)
    source.file.write_text('{"images": [],\n "annotations": ' + "1" * 5000 + "}")
    with pytest.raises(DatasetError, match=r"line 2, column 17: .*more than 4,300 digits"):
        source.load()


@pytest.mark.parametrize("value", [7, 7.0, "7", " 7 ", "007", "+7"])
def test_ids_are_compared_by_value(value: object) -> None:
    assert parse_id(value, "id") == 7


@pytest.mark.parametrize(
    "value",
    [0.5, "0.5", "7.0", "", "a", "７", "1_0", True, None, [7], 2**63, float("inf"), 2.0**53 + 2],
)
def test_values_that_are_no_integers_are_no_ids(value: object) -> None:
    with pytest.raises(ValueError, match=r"id is .*, expected an integer of at most 64 bits"):
        parse_id(value, "id")


@pytest.mark.parametrize("name", ["ä.jpg", "a b.jpg", "截图\u202f1.png", "a\\b.jpg"])
def test_unusual_names_are_accepted(name: str) -> None:
    assert parse_name(f" {name} ", "file_name") == name


@pytest.mark.parametrize("kind", FORMATS)
def test_caption_of_a_megabyte_is_refused_at_once(
    tmp_path: Path, write_source: WriteSource, kind: str
) -> None:
    source = write_source(kind, tmp_path)
    if kind == "parquet":
        pytest.skip("compressed")
    text = source.file.read_text("utf-8")
    source.file.write_text(text.replace("runs", "&" * 1_000_000, 1), "utf-8")
    message = require_one_line(source)
    assert "1,000,0" in message or "field larger than field limit" in message


HEADER = "file_name,caption\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # The quote of line 3 swallows line 4 and is closed at its end.
        ('a.jpg,x\nb.jpg,"A dog\nc.jpg,A cat"\nd.jpg,x\n', r"line 3: .*'c.jpg,A cat' \(line 4\)"),
        ('a.jpg,x\nb.jpg,"A dog\nc.jpg,A "" cat\nd.jpg,"\n', "line 3: the caption contains other"),
        ('a.jpg,x\nb.jpg,"A\nc.JPG,A cat"\n', "line 3: the caption contains other rows"),
        ('a.jpg,x\nb.jpg,"A\nc.jpg,A cat, asleep"\n', "line 3: the caption contains other rows"),
        ('a.jpg,x\nb.jpg,"A\na.jpg, A cat"\n', "line 3: the caption contains other rows"),
        ('a.jpg,x\nb.jpg,"A dog\nc.jpg,"A" cat\n', "lines 3 to 4: invalid CSV"),
        ('a.jpg,x\nb.jpg,"A dog\nc.jpg,A cat\nd.jpg,x\n', "starts in line 3"),
        ('a.jpg,x\n\n\nb.jpg,"A dog\nc.jpg,A cat\nd.jpg,x\n', "starts in line 5"),
        ('a.jpg,"x\ny"\nb.jpg,"A dog\nc.jpg,A cat\nd.jpg,x\n', "starts in line 4"),
        ('a.jpg,x\n"b.jpg,A dog\nc.jpg,A cat\nd.jpg,x\n', "starts in line 3"),
        ('a.jpg,x\nb.jpg,"A dog\n' + "c.jpg,A cat\n" * 20_000, "starts in line 3"),
    ],
)
def test_stray_quotes_are_reported_at_their_own_line(
    tmp_path: Path, write_source: WriteSource, text: str, message: str
) -> None:
    source = write_source("csv", tmp_path)
    source.file.write_text(HEADER + text)
    with pytest.raises(DatasetError, match=message):
        source.load()


def test_captions_may_span_lines(tmp_path: Path, write_source: WriteSource) -> None:
    source = write_source("csv", tmp_path)
    source.file.write_text(
        HEADER + '1_a.jpg,"A dog,\nrunning, fast.\n\nSee a.jpg."\n'
        '2_b.jpg,"a sign that says\nscan.jpg, page 2"\n'
    )
    captions = {record.file_name: record.captions for record in source.load().records}
    assert captions["1_a.jpg"] == ("A dog,\nrunning, fast.\n\nSee a.jpg.",)
    assert captions["2_b.jpg"] == ("a sign that says\nscan.jpg, page 2",)
    assert [line for line, _ in read_csv(source.file)] == [1, 2, 6]
