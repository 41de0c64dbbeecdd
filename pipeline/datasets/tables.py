"""A user's own folder: a CSV, JSONL or Parquet table of `file_name, caption[, split]` → `Listing`.

One row for each caption; in JSONL and Parquet a caption may also be a list of captions. Any other
columns are ignored. The embedded scenes are such a folder too.
"""

import json
import posixpath
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..stage.errors import DatasetError
from ..stage.files import require_file
from .listing import Listing, decode_utf8, find_column, read_csv

TABLE_NAMES = ("captions.csv", "captions.jsonl", "captions.parquet")
COLUMNS = ("file_name", "caption", "split")
SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}

# Where the row stands ("line 7"), and its file_name, caption and split; None where there is none.
Row = tuple[str, Any, Any, Any]


class TableRecipe:
    """A table whose file names are relative to the source root."""

    def __init__(self, table: Path) -> None:
        self.table = require_file(table, "--table", "a CSV, JSONL or Parquet table")
        self.inputs = [table]
        if table.suffix.lower() not in READERS:
            raise DatasetError(
                f"{table} is of no known table format: expected a name that ends in "
                f"{', '.join(READERS)}, got {table.suffix!r}."
            )

    def read(self) -> Listing:
        """Read the table; image ids count from 1 in the order of first appearance."""
        listing = Listing()
        splits: dict[str, str] = {}
        for where, name, caption, split in READERS[self.table.suffix.lower()](self.table):
            place = f"{self.table}, {where}"
            name = _check_name(name, place)
            listing.captions.setdefault(name, []).extend(_check_captions(caption, place))
            if split is not None and split != "":
                _set_split(splits, name, split, place)
        if not listing.captions:
            raise DatasetError(
                f"{self.table} holds no rows, expected one for each caption: file_name, caption."
            )
        listing.splits = self._complete(splits, listing.captions)
        listing.image_ids = {name: number for number, name in enumerate(listing.captions, 1)}
        return listing

    def _complete(self, splits: dict[str, str], names: Iterable[str]) -> dict[str, str] | None:
        """The splits, or None where no row names one."""
        without = [name for name in names if name not in splits]
        if splits and without:
            raise DatasetError(
                f"{self.table}: {len(without):,} of its images have no split ({without[0]}) while "
                "others have one. Fill the column, or leave it out to have the splits drawn."
            )
        return splits or None


def _check_name(name: object, place: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise DatasetError(f"{place}: file_name is {name!r}, expected the name of an image file.")
    return posixpath.normpath(name.strip())


def _check_captions(caption: object, place: str) -> list[str]:
    """The captions of a row; null stands for none, as an empty field does."""
    captions: list[object] = caption if isinstance(caption, list) else [caption]
    texts = [text for text in captions if isinstance(text, str)]
    if len(texts) + captions.count(None) < len(captions):
        raise DatasetError(f"{place}: caption is {caption!r}, expected text.")
    return texts


def _set_split(splits: dict[str, str], name: str, split: object, place: str) -> None:
    known = SPLIT_NAMES.get(split.strip().lower()) if isinstance(split, str) else None
    if known is None:
        raise DatasetError(
            f"{place}: split is {split!r}, expected one of {', '.join(SPLIT_NAMES)}."
        )
    if splits.setdefault(name, known) != known:
        raise DatasetError(
            f"{place}: image {name} is in two splits, {splits[name]!r} above and {known!r} here. "
            "Keep all captions of an image in one split."
        )


def _read_csv_rows(path: Path) -> Iterator[Row]:
    rows = read_csv(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if not header:
        return
    name_at, caption_at = (find_column(header, (column,), path) for column in COLUMNS[:2])
    split_at = header.index("split") if "split" in header else None
    for line, row in rows:
        split = None if split_at is None else row[split_at]
        yield f"line {line}", row[name_at], row[caption_at], split


def _read_jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(decode_utf8(path.read_bytes(), path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(
                f"{place}: not JSON ({error.msg}). Each line must be one JSON object."
            ) from None
        if not isinstance(row, dict):
            raise DatasetError(f'{place}: expected an object {{"file_name": …, "caption": …}}.')
        for column in COLUMNS[:2]:
            if column not in row:
                raise DatasetError(f"{place}: no key {column!r}; its keys are {sorted(row)}.")
        yield f"line {number}", row["file_name"], row["caption"], row.get("split")


def _read_parquet_rows(path: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
        header = file.schema_arrow.names
        for column in COLUMNS[:2]:
            find_column(header, (column,), path)
        table = file.read(columns=[column for column in COLUMNS if column in header])
        columns = [table.column(name).to_pylist() for name in COLUMNS if name in header]
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(
            f"{path} cannot be read as Parquet ({reason}). Write it again."
        ) from None
    for number, row in enumerate(zip(*columns, strict=True), 1):
        yield f"row {number}", row[0], row[1], row[2] if len(row) == 3 else None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv_rows,
    ".jsonl": _read_jsonl_rows,
    ".parquet": _read_parquet_rows,
}
