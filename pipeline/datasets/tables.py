"""Reader of tables with the columns `file_name, caption[, split]`, one row per caption.

Formats: CSV, JSONL (one JSON object per line) and Parquet; in the latter two, `caption` may also be
a list of strings. Other columns are ignored. File names are relative to the source folder.
"""

import itertools
import posixpath
import reprlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..stage.errors import DatasetError
from ..stage.files import require_file
from .listing import Listing
from .text_files import (
    Position,
    find_column,
    parse_caption,
    parse_json,
    parse_name,
    read_caption_columns,
    read_utf8,
    reporting_errors,
    require_type,
)

TABLE_NAMES = ("captions.csv", "captions.jsonl", "captions.parquet")
COLUMNS = ("file_name", "caption", "split")
LAYOUT = "Expected a row for each caption: file_name, caption and, optionally, split."
DAMAGED_PARQUET = "Expected a Parquet file. It may be damaged or incomplete; write it again."
# Parquet. A row holds a file name and a caption, which take more than a byte even if compressed.
PARQUET_BATCH = 1024  # rows
MIN_VALUES, MIN_PAGE_BYTES, MIN_BYTES = 100_000, 4 << 20, 256 << 20  # allowed in a file of any size
MAX_EXPANSION = 100  # times the size of the file
SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}

# file_name, caption and split. Empty cells are "" or None.
Row = tuple[Any, Any, Any]


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
        read_rows = ROW_READERS[self.table.suffix.lower()]
        with reporting_errors(self.table, expected=LAYOUT) as position:
            for name, caption, split in read_rows(self.table, position):
                name = posixpath.normpath(parse_name(name, "file_name"))
                listing.captions.setdefault(name, []).extend(_parse_captions(caption))
                if split is not None and split != "":
                    _set_split(splits, name, split)
        if not listing.captions:
            raise DatasetError(f"{self.table} has no rows. {LAYOUT}")
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


def _parse_captions(value: object) -> list[str | None]:
    """Return the captions of a row: one, or a list."""
    captions = value if isinstance(value, list) else [value]
    return [parse_caption(caption, "caption") for caption in captions]


def _set_split(splits: dict[str, str], name: str, split: object) -> None:
    """Add the split of an image to `splits`; raise if an earlier row has another one."""
    known = SPLIT_NAMES.get(split.strip().lower()) if isinstance(split, str) else None
    if known is None:
        raise ValueError(
            f"split is {reprlib.repr(split)}, expected one of {', '.join(SPLIT_NAMES)}"
        )
    if splits.setdefault(name, known) != known:
        raise ValueError(
            f"image {name} is in two splits, {splits[name]!r} above and {known!r} here; keep all "
            "captions of an image in one split"
        )


def _read_csv_rows(path: Path, position: Position) -> Iterator[Row]:
    columns = ((name,) for name in COLUMNS)
    for line, name, caption, split in read_caption_columns(path, *columns):
        position.text = f"line {line}"
        yield name, caption, split


def _read_jsonl_rows(path: Path, position: Position) -> Iterator[Row]:
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if not line.strip():
            continue
        position.text = f"line {number}"
        row = require_type(parse_json(line, path, first_line=number), dict, "the row", "an object")
        yield row["file_name"], row["caption"], row.get("split")


def _read_parquet_rows(path: Path, position: Position) -> Iterator[Row]:
    def choose(header: list[str]) -> list[str]:
        for column in COLUMNS[:2]:
            find_column(header, (column,), path)
        return [column for column in COLUMNS if column in header]

    for row in read_parquet_columns(path, position, choose):
        yield row[0], row[1], row[2] if len(row) == 3 else None


def read_parquet_columns(
    path: Path, position: Position, choose: Callable[[list[str]], list[str]]
) -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns of a Parquet file, row by row.

    Args:
        path: of the file.
        position: updated to the row that is read.
        choose: returns the names of the columns to read, given those of the file.

    Raises:
        DatasetError: the file is damaged, or expands to far more than its size.
    """
    # Not by its path: pyarrow would treat a name such as "s3:x" as a URL.
    with (
        reporting_errors(path, pa.ArrowException, expected=DAMAGED_PARQUET),
        path.open("rb") as content,
        pq.ParquetFile(content) as file,
    ):
        wanted = choose(file.schema_arrow.names)
        size = path.stat().st_size
        require_honest_size(file.metadata, size)
        numbers, num_bytes = itertools.count(1), 0
        for batch in file.iter_batches(PARQUET_BATCH, columns=wanted):
            num_bytes += batch.nbytes
            _require_at_most(num_bytes, max(MIN_BYTES, MAX_EXPANSION * size), "bytes", size)
            columns = [batch.column(name).to_pylist() for name in wanted]
            for row in zip(*columns, strict=True):
                position.text = f"row {next(numbers)}"
                yield row


def require_honest_size(metadata: pq.FileMetaData, size: int) -> None:
    """Check how much a Parquet file of `size` bytes says it holds, before it is decoded.

    Repeated values take almost no space in a file, but each takes memory here. The metadata of
    single columns would say more, but pyarrow ends the process if it is damaged.

    Raises:
        ValueError: there are more rows, or their pages have more bytes, than captions can have.
    """
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    limit = max(MIN_PAGE_BYTES, MAX_EXPANSION * size)
    _require_at_most(sum(group.total_byte_size for group in groups), limit, "bytes", size)
    _require_at_most(sum(group.num_rows for group in groups), max(MIN_VALUES, size), "rows", size)


def _require_at_most(count: int, limit: int, unit: str, size: int) -> None:
    if count > limit:
        raise ValueError(
            f"it expands to {count:,} {unit}, more than {limit:,} from a file of {size:,} bytes"
        )


ROW_READERS: dict[str, Callable[[Path, Position], Iterator[Row]]] = {
    ".csv": _read_csv_rows,
    ".jsonl": _read_jsonl_rows,
    ".parquet": _read_parquet_rows,
}
