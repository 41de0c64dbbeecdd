"""Mutated annotation files: each is prepared or gives one error, within 2 s and 1 GB.

SHOWTELL_FUZZ_EXAMPLES sets the number of files, for a long run with other mutations each time.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from showtell.pipeline.datasets.caption_files import read_captions
from showtell.pipeline.prepare import prepare
from showtell.pipeline.stage.errors import ShowTellError

from .conftest import FORMATS
from .test_text_files import JSON_VALUES, WriteSource, places

NUM_EXAMPLES = os.environ.get("SHOWTELL_FUZZ_EXAMPLES")
PIECES = (b'"', b",", b"\n", b"\r", b"\0", b"\t", b"|", b"#", b"{", b"[", b"\xff", b"\xef\xbb\xbf")
WORDS = (b"null", b"1e999", b"-1", b"9" * 5000, b"../", b"\\ud800", b"\\", b"/", b"\xe2\x80\xa8")

counts = st.integers(2, 1000)
positions = st.floats(0, 1, exclude_max=True)
insertions = st.one_of(
    st.sampled_from(PIECES + WORDS),
    st.binary(max_size=8),
    st.text(max_size=20).map(str.encode),
    st.builds(lambda piece, count: piece * count, st.text(max_size=3).map(str.encode), counts),
)
edits = st.one_of(
    st.tuples(st.just("flip"), positions, st.integers(0, 7)),
    st.tuples(
        st.just("insert"), positions, st.sampled_from(PIECES + WORDS) | st.binary(max_size=8)
    ),
    st.tuples(st.just("delete"), positions, st.integers(1, 64)),
    st.tuples(st.just("repeat"), positions, st.integers(1, 64)),
    st.tuples(st.just("cut"), positions, st.none()),
)
json_edits = st.tuples(positions, st.sampled_from(list(JSON_VALUES.values())))


def edit(content: bytes, kind: str, position: float, value: Any) -> bytes:
    start = int(position * len(content))
    if kind == "flip" and content:
        flipped = content[start] ^ 1 << value
        return content[:start] + bytes([flipped]) + content[start + 1 :]
    if kind == "insert":
        return content[:start] + value + content[start:]
    if kind == "delete":
        return content[:start] + content[start + value :]
    if kind == "repeat":
        return content[:start] + content[start : start + value] + content[start:]
    return content[:start]


def replace_value(content: bytes, position: float, hostile: str) -> bytes:
    """Replace one value of a JSON document, or of its first line, by the text of another."""
    first, newline, rest = content.partition(b"\n")
    document = json.loads(first)
    found = list(places(document))
    parent, key = found[int(position * len(found))]
    parent[key] = "HOLE"
    return json.dumps(document).replace('"HOLE"', hostile).encode() + newline + rest


def is_plain(error: ShowTellError) -> bool:
    """Whether an error is one short line that can be printed."""
    message = str(error)
    message.encode()
    return "\n" not in message and len(message) < 2000


def read_mutated(
    path: Path, kind: str, within_limits: Callable[[], Any], read: Callable[[], object]
) -> None:
    """Mutate a file in many ways; each time `read` must succeed, or raise one plain error."""
    original = path.read_bytes()

    @given(st.none() | json_edits, st.lists(edits, max_size=4))
    @settings(
        max_examples=int(NUM_EXAMPLES or 240) // len(FORMATS),
        derandomize=NUM_EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(value: tuple[float, str] | None, changes: list[tuple[str, float, Any]]) -> None:
        content = original
        if value is not None and kind in ("coco", "karpathy", "jsonl"):
            content = replace_value(content, *value)
        for change in changes:
            content = edit(content, *change)
        path.write_bytes(content)
        with within_limits():
            try:
                read()
            except ShowTellError as error:
                assert is_plain(error), error

    check()


@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_annotations_are_prepared_or_one_error(
    tmp_path: Path, write_source: WriteSource, within_limits, kind: str
) -> None:
    source = write_source(kind, tmp_path)
    config = replace(source.config, min_count=1)
    prepare(config)
    read_mutated(source.file, kind, within_limits, lambda: prepare(config))


@pytest.mark.parametrize("kind", sorted({*FORMATS} - {"karpathy", "flickr-pipes"}))
def test_mutated_captions_are_read_or_one_error(
    tmp_path: Path, write_source: WriteSource, within_limits, kind: str
) -> None:
    path = write_source(kind, tmp_path).file
    assert len(read_captions(path, "candidates").texts) == 4
    read_mutated(path, kind, within_limits, lambda: read_captions(path, "candidates"))
