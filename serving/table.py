"""A table of captions: a JSON Lines, CSV or Parquet file that a later run continues.

JSON Lines and CSV files grow while images are captioned. A Parquet file cannot grow, so its rows
are collected in `captions.parquet.jsonl`, which becomes the Parquet file at the end.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from ..pipeline.stage.artifacts import FORMAT_ERRORS, describe
from ..pipeline.stage.errors import DatasetError, MismatchError
from ..pipeline.stage.files import (
    atomic_path,
    file_size,
    locked_file,
    read_error,
    sync,
    write_error,
)
from .rows import COLUMNS, CSV, JSON_LINES, BadRowError, Row, valid_text
from .stream import CaptionedImage

SCHEMA = pa.schema(
    {
        "file_name": pa.string(),
        "caption": pa.string(),
        "rank": pa.int32(),
        "num_captions": pa.int32(),
        "log_prob": pa.float64(),
        "score": pa.float64(),
        "word_probs": pa.list_(pa.float32()),
        "model": pa.string(),
        "decoding": pa.string(),
        "stamp": pa.string(),
    }
)
ROWS_AT_ONCE = 10_000


class CaptionTable:
    """A table of captions by one model, locked by this process; see `rows.py` for its columns.

    Args:
        path: of the file; its suffix is the format.
        model: column of every row.
        decoding: column of every row.
    """

    def __init__(self, path: Path, model: str, decoding: str) -> None:
        self.path, self.model, self.decoding = path, model, decoding
        self.is_parquet = path.suffix.lower() == ".parquet"
        self.growing = path.with_name(f"{path.name}.jsonl") if self.is_parquet else path
        self.format = CSV if path.suffix.lower() == ".csv" else JSON_LINES
        self.folder = os.path.join(os.path.abspath(path.parent), "")  # noqa: PTH100, PTH118
        self.end = 0  # where the last row of `growing` ends
        self.dropped: set[str] = set()

    @classmethod
    @contextmanager
    def open(cls, path: Path, model: str, decoding: str) -> Iterator[Self]:
        """Yield a table that no other process can open.

        Raises:
            ShowTellError: another process writes it.
            StorageError: the folder cannot be written.
        """
        with locked_file(path):
            yield cls(path, model, decoding)

    def name_of(self, image: str) -> str:
        """Return the `file_name` of an image; the same for all spellings of its path."""
        path = os.path.abspath(image)  # noqa: PTH100 (100,000 of them)
        return valid_text(path.removeprefix(self.folder))

    def find_finished(self, stamps: Mapping[str, str]) -> set[str]:
        """Return the file names of the images that the table holds.

        Images that have changed since, and the last one if some of its rows are missing, do not
        count; `start` drops their rows.

        Args:
            stamps: file name → stamp, for the images to caption.

        Raises:
            MismatchError: the table holds captions of another model, or with other options.
            DatasetError: the file is not such a table.
        """
        finished: dict[str, str] = {}
        row: Row | None = None
        for row in self.read():
            self.require_same_source(row)
            finished[row["file_name"]] = row["stamp"]
        self.dropped = {
            name for name, stamp in finished.items() if stamps.get(name, stamp) != stamp
        }
        if row is not None and row["rank"] < row["num_captions"]:
            self.dropped.add(row["file_name"])
        return finished.keys() - self.dropped

    def require_same_source(self, row: Row) -> None:
        """Check that a row is by the model and the decoding options of this table.

        Raises:
            MismatchError: it is not.
        """
        weights = self.model.rpartition("@")[2]
        if (row["model"].rpartition("@")[2], row["decoding"]) != (weights, self.decoding):
            raise MismatchError(
                f"{self.path} holds captions by {row['model']} with {row['decoding']}, not by "
                f"{self.model} with {self.decoding}. Give another --output, or delete the file to "
                "caption all images again."
            )

    def read(self) -> Iterator[Row]:
        """Yield all rows that are complete.

        Raises:
            DatasetError: the file is not a table of captions.
            StorageError: it cannot be read.
        """
        path = self.growing if self.growing.exists() else self.path
        if not path.exists():
            return
        try:
            if path != self.growing:
                yield from read_parquet(path)
                return
            with path.open("rb") as file:
                for row, end in self.format.read(file):
                    self.end = end
                    yield row
        except (pa.ArrowException, *FORMAT_ERRORS) as error:
            if unreadable := read_error(path, error):
                raise unreadable from None
            raise DatasetError(
                f"{path} is not a table that showtell can continue: {describe(error)}. Give "
                "another --output."
            ) from None

    def start(self) -> None:
        """Make the file ready for more rows: without rows to drop or an unfinished one.

        Raises:
            StorageError: the file cannot be written.
        """
        is_clean = not self.dropped and self.end and self.end == file_size(self.growing)
        if is_clean:
            return
        kept = (row for row in self.read() if row["file_name"] not in self.dropped)
        with atomic_path(self.growing) as partial, partial.open("wb") as file:
            file.write(self.format.header)
            file.writelines(map(self.format.encode, kept))

    def append(self, images: Iterable[CaptionedImage], stamps: Mapping[str, str]) -> None:
        """Add the captions of images; they are on the disk when this returns.

        Args:
            images: unreadable ones are left out.
            stamps: file name → stamp of each image.

        Raises:
            StorageError: the file cannot be written.
        """
        content = memoryview(b"".join(map(self.format.encode, self.rows_of(images, stamps))))
        try:
            # Not "ab", which would start a new file if somebody had removed this one.
            with self.growing.open("r+b", buffering=0) as file:
                file.seek(0, os.SEEK_END)
                while content:
                    content = content[file.write(content) :]
            sync(self.growing)
        except OSError as error:
            raise write_error(self.growing, error) from error

    def rows_of(self, images: Iterable[CaptionedImage], stamps: Mapping[str, str]) -> Iterator[Row]:
        """Yield the rows of captioned images; arguments as in `append`."""
        for image in images:
            name = self.name_of(image.path)
            for rank, caption in enumerate(image.captions, start=1):
                yield {
                    "file_name": name,
                    "caption": caption.text,
                    "rank": rank,
                    "num_captions": len(image.captions),
                    "log_prob": round(caption.log_prob, 4),
                    "score": round(caption.score, 4),
                    "word_probs": [float(f"{prob:.4g}") for prob in caption.word_probs],
                    "model": self.model,
                    "decoding": self.decoding,
                    "stamp": stamps[name],
                }

    def finish(self) -> None:
        """Write the Parquet file from the collected rows.

        Raises:
            StorageError: the file cannot be written.
        """
        if self.is_parquet and self.growing.exists():
            write_parquet(self.path, self.read())
            self.growing.unlink()


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file.

    Raises:
        BadRowError: the columns are others.
        pa.ArrowException: it is not a Parquet file.
    """
    # Not by its path: pyarrow would treat a name such as "s3:x" as a URL.
    with path.open("rb") as content, pq.ParquetFile(content) as file:
        if tuple(file.schema_arrow.names) != COLUMNS:
            raise BadRowError(f"its columns are {', '.join(file.schema_arrow.names)}")
        batches = file.iter_batches(ROWS_AT_ONCE)
        yield from chain.from_iterable(batch.to_pylist() for batch in batches)


def write_parquet(path: Path, rows: Iterator[Row]) -> None:
    """Write rows to a Parquet file, atomically and some at a time."""
    with (
        atomic_path(path) as partial,
        partial.open("wb") as content,
        pq.ParquetWriter(content, SCHEMA) as writer,
    ):
        while some := list(islice(rows, ROWS_AT_ONCE)):
            writer.write_batch(pa.RecordBatch.from_pylist(some, schema=SCHEMA))
