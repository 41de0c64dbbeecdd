"""Reader of tables with the columns `file_name, caption[, split]`, one row per caption.

Formats: CSV, JSONL (one JSON object per line) and Parquet; in the latter two, `caption` may also be
a list of strings. Other columns are ignored. File names are relative to the source folder.
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
from .listing import Listing
from .text_files import find_column, read_csv, read_utf8

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

# Position in the file ("line 7"), file_name, caption and split. Empty cells are "" or None.
Row = tuple[str, Any, Any, Any]


class TableReader:
    """Reads one table of images and captions."""

    def __init__(self, table: Path) -> None:
        self.table = require_file(table, "--table", "a CSV, JSONL or Parquet table")
        self.inputs = [table]
        if table.suffix.lower() not in ROW_READERS:
            raise DatasetError(
                f"{table} has an unknown table format: expected a name that ends in "
                f"{', '.join(ROW_READERS)}, got {table.suffix!r}."
            )

    def read(self) -> Listing:
        """Read the table. Image ids count from 1, in order of first appearance."""
        listing = Listing()
        splits: dict[str, str] = {}
        for position, name, caption, split in ROW_READERS[self.table.suffix.lower()](self.table):
            where = f"{self.table}, {position}"
            name = _parse_name(name, where)
            listing.captions.setdefault(name, []).extend(_parse_captions(caption, where))
            if split is not None and split != "":
                _set_split(splits, name, split, where)
        if not listing.captions:
            raise DatasetError(
                f"{self.table} has no rows. Expected a row for each caption, with the columns "
                "file_name and caption."
            )
        listing.splits = self._require_all_or_none(splits, listing.captions)
        listing.image_ids = {name: number for number, name in enumerate(listing.captions, 1)}
        return listing

    def _require_all_or_none(
        self, splits: dict[str, str], names: Iterable[str]
    ) -> dict[str, str] | None:
        """Return the splits, or None if no image has one; raise if only some images have one."""
        without = [name for name in names if name not in splits]
        if splits and without:
            raise DatasetError(
                f"{self.table}: {len(without):,} images have no split (such as {without[0]}), but "
                "others do. Fill in the column 'split' in every row, or remove it to get random "
                "splits."
            )
        return splits or None


def _parse_name(name: object, where: str) -> str:
    """Return the normalised file name; `where` names the file and row in error messages."""
    if not isinstance(name, str) or not name.strip():
        raise DatasetError(f"{where}: file_name is {name!r}, expected the name of an image file.")
    return posixpath.normpath(name.strip())


def _parse_captions(caption: object, where: str) -> list[str]:
    """Return the captions of a row; None in the cell or its list counts as no caption."""
    captions: list[object] = caption if isinstance(caption, list) else [caption]
    texts = [text for text in captions if isinstance(text, str)]
    if len(texts) + captions.count(None) < len(captions):
        raise DatasetError(f"{where}: caption is {caption!r}, expected text.")
    return texts


def _set_split(splits: dict[str, str], name: str, split: object, where: str) -> None:
    """Add the split of an image to `splits`; raise if an earlier row has another one."""
    known = SPLIT_NAMES.get(split.strip().lower()) if isinstance(split, str) else None
    if known is None:
        raise DatasetError(
            f"{where}: split is {split!r}, expected one of {', '.join(SPLIT_NAMES)}."
        )
    if splits.setdefault(name, known) != known:
        raise DatasetError(
            f"{where}: image {name} is in two splits, {splits[name]!r} above and {known!r} here. "
            "Keep all captions of an image in one split."
        )


def _read_csv_rows(path: Path) -> Iterator[Row]:
    rows = read_csv(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if not header:
        return
    name_column, caption_column = (find_column(header, (name,), path) for name in COLUMNS[:2])
    split_column = header.index("split") if "split" in header else None
    for line, row in rows:
        split = None if split_column is None else row[split_column]
        yield f"line {line}", row[name_column], row[caption_column], split


def _read_jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(
                f"{where}: invalid JSON ({error.msg}). Each line must be one JSON object."
            ) from None
        if not isinstance(row, dict):
            raise DatasetError(f'{where}: expected an object {{"file_name": …, "caption": …}}.')
        for column in COLUMNS[:2]:
            if column not in row:
                raise DatasetError(f"{where}: no key {column!r}. Found the keys {sorted(row)}.")
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
            f"{path} cannot be read as Parquet ({reason}). The file may be damaged; write it again."
        ) from None
    for number, row in enumerate(zip(*columns, strict=True), 1):
        yield f"row {number}", row[0], row[1], row[2] if len(row) == 3 else None


ROW_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv_rows,
    ".jsonl": _read_jsonl_rows,
    ".parquet": _read_parquet_rows,
}
