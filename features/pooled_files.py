"""Pooled features that stay in their shards, for datasets larger than memory.

An HDF5 shard stores its arrays in one piece, so they are memory-mapped or read without a copy. A
Parquet shard stores them in pages; it is copied once to an HDF5 shard in the subfolder `mapped/`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..pipeline.stage.errors import ShowTellError
from ..pipeline.stage.files import locked
from .shards import FeatureShard, bad_shard, read_shard, reading_shard, write_shard

MAPPED = "mapped"  # subfolder with the copies of Parquet shards

Features = npt.NDArray[np.float16]


@dataclass(frozen=True)
class StoredArray:
    """An array inside a file.

    Attributes:
        path: of the file.
        offset: of its first byte.
        shape: (n, W), of float16.
    """

    path: Path
    offset: int
    shape: tuple[int, int]

    def gather(self, rows: npt.NDArray[np.int64]) -> Features:
        """Copy the rows (n,), in any order, from a memory map."""
        with reading_shard(self.path):
            # Mapped only now: maps of all shards could exceed a limit on the address space.
            mapped = np.memmap(self.path, np.float16, "r", self.offset, self.shape)
        gathered: Features = np.asarray(mapped)[rows]
        return gathered

    def read(self, start: int, stop: int) -> Features:
        """Read consecutive rows; faster than a memory map if they are not in the page cache."""
        rows = np.empty((stop - start, self.shape[1]), np.float16)
        rest = rows.reshape(-1).view(np.uint8).data
        with reading_shard(self.path), self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start * rows.strides[0])
            while rest:
                if not (count := file.readinto(rest)):
                    raise bad_shard(self.path, "it ends too early")
                rest = rest[count:]
        return rows


@dataclass(frozen=True)
class PooledFiles:
    """The pooled features of a dataset, (N, V, D) float16, in the files of its shards.

    The page cache holds what is read, so that the processes of a machine share it.

    Attributes:
        shards: the arrays of each shard: (n, D) `features`, and (n, (V-1)·D) `views` if V > 1.
        shape: (N, V, D).
    """

    shards: tuple[tuple[StoredArray, ...], ...]
    shape: tuple[int, int, int]

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """Row of the first image of each shard."""
        return np.cumsum([0, *(arrays[0].shape[0] for arrays in self.shards[:-1])])

    def gather(self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> Features:
        """Return the features of the rows (n,), in any order, each in its view (n,): (n, D)."""
        _, num_views, width = self.shape
        gathered = np.empty((len(rows), width), np.float16)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        # Each shard and view is opened once.
        keys = shards * num_views + views
        order = np.argsort(keys, kind="stable")
        for index in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(rows) else ():
            shard, view = divmod(int(keys[index[0]]), num_views)
            features, *others = self.shards[shard]
            offsets = rows[index] - self._starts[shard]
            if view:
                array = others[0]
                rows_of_views = array.gather(offsets).reshape(-1, num_views - 1, width)
                gathered[index] = rows_of_views[:, view - 1]
            else:
                gathered[index] = features.gather(offsets)
        return gathered

    def read(self, start: int, stop: int, num_views: int | None = None) -> Features:
        """Read consecutive rows, and their first views or all: (stop - start, V, D)."""
        _, all_views, width = self.shape
        rows = np.empty((stop - start, num_views or all_views, width), np.float16)
        for shard, first, last in self._parts(start, stop):
            features, *others = self.shards[shard]
            begin = self._starts[shard]
            part = rows[first - start : last - start]
            part[:, 0] = features.read(first - begin, last - begin)
            if part.shape[1] > 1:
                views = others[0].read(first - begin, last - begin)
                part[:, 1:] = views.reshape(len(part), -1, width)[:, : part.shape[1] - 1]
        return rows

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the index of each shard that has some of the rows, and the first and last row."""
        while start < stop:
            shard = int(np.searchsorted(self._starts, start, side="right")) - 1
            end = int(self._starts[shard]) + self.shards[shard][0].shape[0]
            yield shard, start, min(stop, end)
            start = end


def pooled_shape_of(counts: Mapping[str, int]) -> tuple[int, int, int]:
    """Return (N, V, D) from the counts of a manifest."""
    return counts["num_images"], counts.get("num_views", 1), counts["feature_dim"]


def open_shard(path: Path, shard: FeatureShard) -> tuple[StoredArray, ...]:
    """Return where the arrays of a shard are stored, after copying a Parquet shard to HDF5.

    Args:
        path: of the shard.
        shard: its verified content, of at least one image; memory-mapped if that is possible.

    Raises:
        BadShardError: the shard is damaged.
        StorageError: the copy cannot be written.
    """
    if not isinstance(shard.features, np.memmap):
        path = copy_shard(path, shard)
        shard = read_shard(path, is_verified=True, is_mapped=True)
    arrays = [shard.features] if shard.views is None else [shard.features, shard.views]
    stored = []
    for array in arrays:
        assert isinstance(array, np.memmap), path
        shape = (len(array), array.size // len(array))
        stored.append(StoredArray(path, array.offset, shape))
    return tuple(stored)


def copy_shard(path: Path, shard: FeatureShard) -> Path:
    """Write a shard to `mapped/`, unless an undamaged copy is there; return the copy's path.

    Processes that start together wait for the first one.
    """
    copy = path.parent / MAPPED / f"{path.stem}.h5"
    if not _is_copy(copy, shard):
        with locked(copy.parent, wait=True):
            if not _is_copy(copy, shard):
                write_shard(copy, shard)
    return copy


def _is_copy(path: Path, shard: FeatureShard) -> bool:
    try:
        # The content too: features computed again may have the same fingerprint.
        found = read_shard(path)
    except ShowTellError:
        return False
    return (found.fingerprint, found.crc32) == (shard.fingerprint, shard.crc32)
