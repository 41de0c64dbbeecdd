"""The captions and images of a dataset, as `prepare` writes them to `data/<dataset>/captions`.

images.parquet, one row per image, N rows:
    image_id    int64
    file_name   string       relative to the source folder, "/"-separated
    split       string       "train", "val" or "test"
    offset      int64        first byte of the image in its tar archive; only if there are tars,
    num_bytes   int64        and its length; null for images in other files

captions.parquet, one row per caption, M rows:
    caption_id  int64        0 … M - 1
    image_id    int64
    caption     string       as written
    words       string       its words, joined by single spaces. A word can contain a no-break
                             space, so split at " " only, not at any white space.
    token_ids   list<int32>  (number of tokens,) ids in vocab.json, without BOS and EOS
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .datasets.records import ImageRecord
from .images.image_files import ImageFiles
from .layout import IMAGES_PARQUET
from .stage.artifacts import open_output, reading, repair_command, require_manifest
from .stage.errors import MismatchError
from .stage.ragged import Int32Array, Ints, select_rows, to_offsets

ROWS = 1 << 16  # that become Python strings at a time


class TextColumn(Sequence[str]):
    """A column of texts that become Python strings one by one: ten million would take 1 GB."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        found = self.column[index]
        texts: list[str] = found.to_pylist() if isinstance(index, slice) else [found.as_py()]
        return texts if isinstance(index, slice) else texts[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), ROWS):
            yield from self[start : start + ROWS]

    def take(self, rows: npt.ArrayLike) -> "TextColumn":
        """Return the texts at the (n,) positions `rows`."""
        return TextColumn(self.column.take(pa.array(np.asarray(rows, np.int64))))


@dataclass(frozen=True)
class ImageTable:
    """All images of a dataset.

    Attributes:
        image_ids: (N,) int64.
        file_names: (N,) relative to the source folder.
        splits: (N,) "train", "val" or "test", as references to three strings.
        offsets: (N,) int64, first byte of each image in its tar archive; -1 for other images. None
            if no image is in a tar archive.
        num_bytes: (N,) int64, length of each image in its tar archive, likewise.
    """

    image_ids: Ints
    file_names: TextColumn
    splits: npt.NDArray[np.object_]
    offsets: Ints | None = None
    num_bytes: Ints | None = None

    @property
    def members(self) -> Ints | None:
        """(N, 2) int64, offset and length of each image in its tar archive; None without tars."""
        if self.offsets is None or self.num_bytes is None:
            return None
        return np.stack([self.offsets, self.num_bytes], 1)

    def select(self, split: str) -> Ints:
        """Return the ids of the images in `split`: (n,) int64; empty if there are none."""
        selected: Ints = self.image_ids[self.splits == split]
        return selected

    def find_names(self, image_ids: Sequence[int]) -> list[str]:
        """Return the file names of some images, in the same order.

        Raises:
            KeyError: there is no such image.
        """
        rows = np.flatnonzero(np.isin(self.image_ids, np.asarray(image_ids, np.int64)))
        names = dict(zip(self.image_ids[rows].tolist(), self.file_names.take(rows), strict=True))
        return [names[image_id] for image_id in image_ids]


@dataclass(frozen=True)
class EncodedCaptions:
    """Captions as token ids in one flat array.

    Attributes:
        caption_ids: (M,) int64.
        image_ids: (M,) int64, the image of each caption.
        tokens: (sum of lengths,) int32; caption i is tokens[offsets[i] : offsets[i + 1]].
        offsets: (M + 1,) int64.
    """

    caption_ids: Ints
    image_ids: Ints
    tokens: Int32Array
    offsets: Ints

    def __len__(self) -> int:
        return len(self.caption_ids)

    def __iter__(self) -> Iterator[Int32Array]:
        """Yield the token ids of each caption."""
        for start, stop in pairwise(self.offsets.tolist()):
            yield self.tokens[start:stop]

    @property
    def lengths(self) -> Ints:
        """(M,) int64, number of tokens of each caption."""
        return np.diff(self.offsets)

    def select(self, image_ids: npt.ArrayLike) -> "EncodedCaptions":
        """Return the captions of some images, in the order of `self`.

        Args:
            image_ids: (n,) int64, in any order.
        """
        kept = np.isin(self.image_ids, np.asarray(image_ids, dtype=np.int64))
        return EncodedCaptions(
            self.caption_ids[kept],
            self.image_ids[kept],
            *select_rows(self.tokens, self.offsets, kept),
        )


class ParquetTable:
    """A Parquet file that is written by groups of rows; all have the columns of the first.

    Not atomic, like `write_images`. Use it in a `with` block.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: pq.ParquetWriter | None = None
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self._writer is not None:
                self._writer.close()

    def write(self, columns: Mapping[str, Any]) -> None:
        """Append rows."""
        table = pa.table(dict(columns))
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd")
        self._writer.write_table(table)


def write_images(path: Path, records: Sequence[ImageRecord]) -> None:
    """Write images.parquet; not atomically, because `prepare` renames all files together."""
    columns = {
        "image_id": pa.array([record.image_id for record in records], pa.int64()),
        "file_name": pa.array([record.file_name for record in records], pa.string()),
        "split": pa.array([record.split for record in records], pa.string()),
    }
    _write_table(path, columns)


def write_captions(
    path: Path, encoded: EncodedCaptions, captions: pa.Array, words: pa.Array
) -> None:
    """Write captions.parquet, like `write_images`; see `caption_columns` for the arguments."""
    _write_table(path, caption_columns(encoded, captions, words))


def caption_columns(
    encoded: EncodedCaptions, captions: pa.Array, words: pa.Array
) -> dict[str, Any]:
    """Return the columns of captions.parquet.

    Args:
        encoded: M captions as ids.
        captions: (M,) string, as written.
        words: (M,) string, tokens joined by single spaces.
    """
    offsets = pa.array(encoded.offsets.astype(np.int32))
    return {
        "caption_id": pa.array(encoded.caption_ids),
        "image_id": pa.array(encoded.image_ids),
        "caption": captions,
        "words": words,
        "token_ids": pa.ListArray.from_arrays(offsets, pa.array(encoded.tokens)),
    }


def read_images(path: Path) -> ImageTable:
    """Read images.parquet.

    Raises:
        MissingArtifactError: the file does not exist.
        DamagedFileError: the file is damaged or has other columns.
    """
    table = _read_table(path, ["image_id", "file_name", "split"], ["offset", "num_bytes"])
    split = table["split"]
    names = split.unique()
    return ImageTable(
        table["image_id"].to_numpy(),
        TextColumn(table["file_name"]),
        np.array(names.to_pylist(), object)[pc.index_in(split, value_set=names).to_numpy()],
        *(
            pc.fill_null(table[name], -1).to_numpy() if name in table.column_names else None
            for name in ("offset", "num_bytes")
        ),
    )


def open_images(captions_dir: Path, image_ids: Sequence[int]) -> tuple[ImageFiles, list[str]]:
    """Return what reads some images of a prepared dataset, and their names in the same order.

    Raises:
        MissingArtifactError: the dataset is not prepared.
        DamagedFileError: its manifest or images.parquet is damaged.
        KeyError: there is no such image.
    """
    source = require_manifest(captions_dir).details["source"]
    table = read_images(captions_dir / IMAGES_PARQUET)
    names = table.find_names(image_ids)
    if (members := table.members) is None:
        return ImageFiles(source), names
    rows = np.flatnonzero(np.isin(table.image_ids, np.asarray(image_ids, np.int64)))
    places = map(tuple, members[rows].tolist())
    return ImageFiles(source, dict(zip(table.file_names.take(rows), places, strict=True))), names


def read_captions(path: Path) -> EncodedCaptions:
    """Read the token ids in captions.parquet. Raises the errors of `read_images`."""
    table = _read_table(path, ["caption_id", "image_id", "token_ids"])
    lists = table["token_ids"]
    return EncodedCaptions(
        table["caption_id"].to_numpy(),
        table["image_id"].to_numpy(),
        pc.list_flatten(lists).to_numpy(),
        to_offsets(pc.list_value_length(lists).to_numpy()),
    )


def read_references(
    path: Path, column: Literal["caption", "words"], image_ids: npt.ArrayLike
) -> dict[int, list[str]]:
    """Read the captions of some images as text.

    Args:
        path: of captions.parquet.
        column: "caption" for the text as written, "words" for its words joined by spaces.
        image_ids: (n,) int64.

    Returns:
        image_id → its captions, in the order of `image_ids`.

    Raises:
        MissingArtifactError: the file does not exist.
        DamagedFileError: the file is damaged.
        MismatchError: it has no caption for one of the images.
    """
    wanted = np.asarray(image_ids, dtype=np.int64)
    references: dict[int, list[str]] = {image_id: [] for image_id in wanted.tolist()}
    value_set = pa.array(wanted)
    with open_output(path) as content, reading(path, pa.ArrowException):
        for batch in pq.ParquetFile(content).iter_batches(columns=["image_id", column]):
            found = batch.filter(pc.is_in(batch["image_id"], value_set=value_set))
            texts = zip(found["image_id"].to_pylist(), found[column].to_pylist(), strict=True)
            for image_id, text in texts:
                references[image_id].append(text)
    if missing := [image_id for image_id, texts in references.items() if not texts]:
        raise MismatchError(
            f"{path} has no captions for {len(missing):,} of {len(wanted):,} images "
            f"(image_id {missing[0]}). Run '{repair_command(path)}'."
        )
    return references


def _write_table(path: Path, columns: dict[str, Any]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(memoryview(sink.getvalue()))


def _read_table(path: Path, columns: list[str], optional: Sequence[str] = ()) -> pa.Table:
    """Read columns in the given order; the file itself is verified, but not held in memory."""
    with open_output(path) as content, reading(path, pa.ArrowException):
        # Not by its path: pyarrow would treat a name such as "s3:x" as a URL.
        file = pq.ParquetFile(content)
        columns = [*columns, *(name for name in optional if name in file.schema_arrow.names)]
        return file.read(columns=columns).select(columns)
