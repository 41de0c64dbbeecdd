"""Readers of CSV, TSV and JSONL tables of any size, row by row.

A row has a caption and `file_name`, relative to the source folder, or `url`. The TSV files of CC3M
and CC12M have no header; they are recognized by the URL in their first row.
"""

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, Literal

from ..stage.errors import DatasetError
from ..stage.urls import is_url, open_url
from .samples import (
    BAD_ROW,
    CAPTION_COLUMNS,
    OPEN_QUOTE,
    URL_COLUMNS,
    BadSampleError,
    LeftOut,
    Sample,
    clean_captions,
    clean_name,
    clean_split,
    find_title,
)
from .text_files import separator_of

NAME_COLUMNS = ("file_name", *URL_COLUMNS)
MAX_LINE_LETTERS = 1 << 20  # longer lines are read in pieces, which are no rows
LAYOUT = "Expected the columns caption and file_name or url."


def read_csv_samples(location: str, name: str, left_out: LeftOut) -> Iterator[Sample]:
    """Yield the rows of a CSV or TSV file; see `SampleReader`.

    Raises:
        DatasetError: it has no such columns.
    """
    with open_url(location) as content:
        lines = _read_lines(content)
        first = next(lines, "")
        separator = "\t" if name.lower().endswith(".tsv") else separator_of(first)
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
        if header := _header_of_urls(first if separator == "\t" else ""):
            # Captions of such files contain quotes that are not closed.
            quoting = csv.QUOTE_NONE
        else:
            header = [title.strip() for title in next(csv.reader([first], delimiter=separator), [])]
            first = ""  # an empty row in its place keeps the numbers of the lines
        columns = choose_columns(header, location)
        lines = chain([first], lines)
        rows = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        places = [header.index(title) for title in columns]
        for row in _read_rows(rows, len(header), separator, name, left_out):
            yield from make_sample([row[place] for place in places], name, left_out)


def read_jsonl_samples(location: str, name: str, left_out: LeftOut) -> Iterator[Sample]:
    """Yield the rows of a file with one JSON object per line; see `SampleReader`.

    Raises:
        DatasetError: the first object has no such keys.
    """
    columns: list[str] = []
    with open_url(location) as content:
        for number, line in enumerate(_read_lines(content), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                keys = list(row) if isinstance(row, dict) else None
            except (ValueError, RecursionError):
                keys = None
            if keys is None:
                left_out.add(f"{name}, line {number}", BAD_ROW)
                continue
            columns = columns or choose_columns([*keys, "split"], location)
            yield from make_sample([row.get(key) for key in columns], name, left_out)


def choose_columns(header: list[str], location: str) -> list[str]:
    """Return the titles of the columns of names, of captions and, if there is one, of splits.

    Raises:
        DatasetError: the first or the second is missing.
    """
    name, caption = find_title(header, NAME_COLUMNS), find_title(header, CAPTION_COLUMNS)
    if name is None or caption is None:
        shown = ", ".join(map(repr, [title[:40] for title in header[:8]])) or "none"
        advice = ""
        if location.lower().endswith(".tsv"):
            advice = " If it has no header, add one: sed -i '1i caption\\turl' FILE."
        raise DatasetError(f"its columns are {shown}. {LAYOUT}{advice}")
    return [name, caption, *(["split"] if "split" in header else [])]


def make_sample(values: list[Any], table: str, left_out: LeftOut) -> Iterator[Sample]:
    """Yield the sample of a row: file name or URL, caption and, optionally, split."""
    try:
        name, captions = clean_name(values[0]), clean_captions(values[1])
        split = clean_split(values[2]) if len(values) > 2 else None
    except BadSampleError as error:
        left_out.add(f"{table}: {str(values[0])[:80]}", str(error))
        return
    yield Sample(name, captions, split)


def _header_of_urls(line: str) -> list[str]:
    """Return the header of a file without one if a line is a caption and a URL, otherwise []."""
    cells = [is_url(cell) for cell in line.split("\t")]
    if cells == [True, False]:
        return ["url", "caption"]
    return ["caption", "url"] if cells == [False, True] else []


def _read_lines(content: BinaryIO) -> Iterator[str]:
    """Yield lines with their ends. Bytes that are not UTF-8 become surrogates."""
    text = io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline="")
    while line := text.readline(MAX_LINE_LETTERS):
        yield line


def _read_rows(
    rows: Any, num_columns: int, separator: str, name: str, left_out: LeftOut
) -> Iterator[list[str]]:
    """Yield the rows of a CSV reader that have all columns; count the lines of the others."""
    while True:
        first_line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            row = [""]  # a table has two columns or more
        num_lines = rows.line_num - first_line + 1
        is_good = len(row) == num_columns
        if num_lines > 1 and (not is_good or _joins_rows(row, separator)):
            left_out.add(f"{name}, line {first_line}", OPEN_QUOTE, num_lines)
        elif is_good:
            yield row
        elif row:
            left_out.add(f"{name}, line {first_line}", BAD_ROW)


def _joins_rows(row: list[str], separator: str) -> bool:
    """Return whether a line within a cell looks like a row, as after an unclosed quote."""
    return any(
        len(cells) >= len(row) and (separator == "\t" or any(map(is_url, cells)))
        for cell in row
        for cells in (line.split(separator) for line in cell.splitlines())
    )
