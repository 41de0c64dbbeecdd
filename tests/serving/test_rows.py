import csv
import io
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from showtell.serving.rows import COLUMNS, CSV, JSON_LINES, BadRowError, Row, TextFormat, valid_text

FORMATS = pytest.mark.parametrize("format_", [JSON_LINES, CSV], ids=["jsonl", "csv"])


def row_of(**values: Any) -> Row:
    row: Row = {
        "file_name": "a/dog.jpg",
        "caption": "a dog , that runs",
        "rank": 1,
        "num_captions": 1,
        "log_prob": -7.25,
        "score": -1.5,
        "word_probs": [0.5, 0.25],
        "model": "gru@12345678",
        "decoding": "beam3",
        "stamp": "100:5",
    }
    return row | values


def content_of(format_: TextFormat, rows: list[Row]) -> bytes:
    return format_.header + b"".join(map(format_.encode, rows))


def read(format_: TextFormat, content: bytes) -> list[Row]:
    return [row for row, _ in format_.read(io.BytesIO(content))]


names = st.binary(min_size=1).map(os.fsdecode).map(os.path.normpath).map(valid_text)


@FORMATS
@given(names=st.lists(names, max_size=4))
def test_any_names_survive(format_: TextFormat, names: list[str]) -> None:
    rows = [row_of(file_name=name, caption=f"{name} x") for name in names]
    assert read(format_, content_of(format_, rows)) == rows


@FORMATS
def test_every_cut_leaves_the_rows_before_it(format_: TextFormat) -> None:
    rows = [row_of(file_name=name) for name in ("a.jpg", 'c",b"d.jpg', "é.jpg")]
    ends = [len(format_.header)]
    for row in rows:
        ends.append(ends[-1] + len(format_.encode(row)))
    content = content_of(format_, rows)
    for cut in range(len(content) + 1):
        for tail in (b"", b"\0\0\0"):
            num_whole = sum(end <= cut for end in ends[1:])
            found = list(format_.read(io.BytesIO(content[:cut] + tail)))
            assert [row for row, _ in found] == rows[:num_whole]
            assert [end for _, end in found] == ends[1 : num_whole + 1]


@FORMATS
@pytest.mark.parametrize(
    "content",
    [
        b"file_name,caption\na.jpg,A dog.\n",
        b"file_name,caption\na.jpg,A dog.",
        b"a dog",
        b'{"file_name": "a.jpg", "text": "A dog."}\n',
        b'[{"a": 1}]',
        b"\xff\xfe\n",
        b"[]\n",
        b"3\n",
        b"null\n",
        b'"x',
    ],
)
def test_other_files_are_refused(format_: TextFormat, content: bytes) -> None:
    with pytest.raises(BadRowError, match="line 1"):
        read(format_, content)


@FORMATS
def test_damaged_row_in_the_middle_is_refused(format_: TextFormat) -> None:
    lines = [format_.encode(row_of(file_name=f"{i}.jpg")) for i in range(3)]
    for bad in (lines[1][:50] + lines[2], b"what\n", b'"' + lines[1], lines[1].replace(b"1", b"x")):
        with pytest.raises(BadRowError, match=r"line \d"):
            read(format_, format_.header + lines[0] + bad + lines[2] * 500)


def test_csv_has_no_formulas() -> None:
    rows = [row_of(file_name="=1+1.jpg", caption="- a dog"), row_of(model="@m@12345678")]
    text = b"".join(map(CSV.encode, rows)).decode()
    for values in csv.reader(io.StringIO(text)):
        texts = dict(zip(COLUMNS, values, strict=True))
        for name in ("file_name", "caption", "model", "decoding", "word_probs", "stamp"):
            assert not texts[name].startswith(("=", "+", "-", "@"))
    assert read(CSV, content_of(CSV, rows)) == rows


def test_json_lines_are_readable_text() -> None:
    line = JSON_LINES.encode(row_of(file_name="café.jpg"))
    assert "café" in line.decode() and json.loads(line) == row_of(file_name="café.jpg")


def test_names_that_are_not_text_of_one_line_are_escaped() -> None:
    assert valid_text("a\nb\r\u2028\x1b.jpg") == r"a\nb\r\u2028\x1b.jpg"
    assert valid_text(os.fsdecode(b"caf\xe9.jpg")) == r"caf\xe9.jpg"
    assert valid_text("café.jpg") == "café.jpg"
