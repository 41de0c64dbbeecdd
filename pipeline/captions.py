"""The captions and images of a dataset, as `prepare` writes them to `data/<dataset>/captions`.

images.parquet, one row per image, N rows:
    image_id    int64
    file_name   string       relative to the source folder, "/"-separated
    split       string       "train", "val" or "test"

captions.parquet, one row per caption, M rows:
    caption_id  int64        0 … M - 1
    image_id    int64
    caption     string       as written
    words       string       its words, joined by single spaces. A word can contain a no-break
                             space, so split at " " only, not at any white space.
    token_ids   list<int32>  (number of tokens,) ids in vocab.json, without BOS and EOS
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .datasets.records import ImageRecord
from .stage.artifacts import read_output, reading, repair_command
from .stage.errors import MismatchError
from .stage.ragged import Int32Array, Ints, select_rows, to_offsets


@dataclass(frozen=True)
class ImageTable:
    """All images of a dataset.

    Attributes:
        image_ids: (N,) int64.
        file_names: (N,) relative to the source folder.
        splits: (N,) "train", "val" or "test".
    """

    image_ids: Ints
    file_names: list[str]
    splits: list[str]

    def select(self, split: str) -> Ints:
        """Return the ids of the images in `split`: (n,) int64; empty if there are none."""
        selected: Ints = self.image_ids[[name == split for name in self.splits]]
        return selected


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
    """Write captions.parquet, like `write_images`.

    Args:
        path: of the file.
        encoded: M captions as ids.
        captions: (M,) string, as written.
        words: (M,) string, tokens joined by single spaces.
    """
    offsets = pa.array(encoded.offsets.astype(np.int32))
    columns = {
        "caption_id": pa.array(encoded.caption_ids),
        "image_id": pa.array(encoded.image_ids),
        "caption": captions,
        "words": words,
        "token_ids": pa.ListArray.from_arrays(offsets, pa.array(encoded.tokens)),
    }
    _write_table(path, columns)


def read_images(path: Path) -> ImageTable:
    """Read images.parquet.

    Raises:
        MissingArtifactError: the file does not exist.
        DamagedFileError: the file is damaged or has other columns.
    """
    table = _read_table(path, ["image_id", "file_name", "split"])
    return ImageTable(
        table["image_id"].to_numpy(), table["file_name"].to_pylist(), table["split"].to_pylist()
    )


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
    table = _read_table(path, ["image_id", column])
    table = table.filter(pc.is_in(table["image_id"], value_set=pa.array(wanted)))
    references: dict[int, list[str]] = {image_id: [] for image_id in wanted.tolist()}
    texts = table[column].to_pylist()
    for image_id, text in zip(table["image_id"].to_pylist(), texts, strict=True):
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


def _read_table(path: Path, columns: list[str]) -> Any:
    """Read columns in the given order, each in at most one chunk."""
    content = read_output(path)
    with reading(path, pa.ArrowException):
        table = pq.ParquetFile(pa.BufferReader(content)).read(columns=columns)
        return table.select(columns).combine_chunks()
