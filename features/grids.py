"""The grid features: the feature map of each image before pooling, in a file beside each shard.

`part-00000.grid.npy`, beside shards of either format:
    NumPy's format, (N, V, P, G) float16, C order; row i belongs to image_ids[i] of the shard

N images, V views, P grid cells row by row from the top left, G their width, which usually equals
that of the pooled features. The shard stores a crc32 of each row. The files are larger than memory,
so they are written batch by batch and read through memory maps.
"""

import tokenize
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from ..pipeline.stage.files import partial_path, sync, write_error
from .shards import FeatureShard, bad_shard, describe, reading_shard

# Raised by NumPy for a damaged header, in addition to `artifacts.FORMAT_ERRORS`.
HEADER_ERRORS = (SyntaxError, tokenize.TokenError)

GridMap = np.memmap[tuple[int, ...], np.dtype[np.float16]]


def grid_name(shard_name: str) -> str:
    """Return the name of the grid file that belongs to a shard."""
    return f"{Path(shard_name).stem}.grid.npy"


class GridWriter:
    """Write the grid file of a shard batch by batch; it appears only when `publish` is called.

    Every method raises StorageError if the disk is full or the folder cannot be written.

    Args:
        path: of the grid file.
        row_shape: (V, P, G).
    """

    def __init__(self, path: Path, row_shape: tuple[int, int, int]) -> None:
        self.path, self.row_shape = path, row_shape
        self.partial = partial_path(path)
        self.crcs: list[int] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.partial.open("wb")
        except OSError as error:
            raise write_error(path, error) from error
        self._write_header()

    def append(self, rows: npt.NDArray[np.float16]) -> None:
        """Write (n, V, P, G) float16; n may be 0."""
        assert rows.shape[1:] == self.row_shape, rows.shape
        try:
            for row in np.ascontiguousarray(rows):
                content = row.reshape(-1).view(np.uint8).data
                self.crcs.append(zlib.crc32(content))
                self.file.write(content)
        except OSError as error:
            raise write_error(self.path, error) from error

    def publish(self) -> npt.NDArray[np.uint32]:
        """Complete the file and move it into place.

        Returns:
            (N,) uint32, the crc32 of each row.
        """
        try:
            self.file.seek(0)
            self._write_header()
            self.file.close()
            sync(self.partial)
            self.partial.replace(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise write_error(self.path, error) from error
        return np.array(self.crcs, np.uint32)

    def discard(self) -> None:
        """Delete the file unless it has been published."""
        with suppress(OSError):  # closing flushes the buffer, which fails again on a full disk
            self.file.close()
        self.partial.unlink(missing_ok=True)

    def _write_header(self) -> None:
        # Written first without rows and again at the end: NumPy pads the header so that a longer
        # first axis still fits.
        shape = (len(self.crcs), *self.row_shape)
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self.file, header)


def grid_shape_of(counts: Mapping[str, int]) -> tuple[int, int] | None:
    """Return (P, G) from the counts of a manifest; None without grid features."""
    if "grid_places" not in counts:
        return None
    return counts["grid_places"], counts.get("grid_dim", counts["feature_dim"])


def open_grid(
    path: Path, shard: FeatureShard, shape: tuple[int, int], *, check_all_rows: bool = False
) -> GridMap:
    """Map the grid file of a shard into memory; verifies the header, the size and some rows.

    Args:
        path: of the grid file.
        shard: the shard that the file belongs to.
        shape: the expected (P, G).
        check_all_rows: whether to verify all rows, not only the first and the last.

    Returns:
        (N, V, P, G) float16, read-only.

    Raises:
        MissingArtifactError: the file does not exist.
        BadShardError: the file is damaged, or belongs to another shard.
        StorageError: the operating system cannot read it.
    """
    with reading_shard(path, *HEADER_ERRORS):
        grid: GridMap = npy.open_memmap(path, mode="r")
    num_images = len(shard.features)
    expected = (num_images, shard.num_views, *shape)
    if grid.shape != expected or grid.dtype != np.float16 or not grid.flags.c_contiguous:
        raise bad_shard(path, f"it is {describe(grid)}, expected {expected} float16")
    if shard.grid_crc32 is None:
        raise bad_shard(path, "its shard has no checksums for it")
    first_and_last = range(0, num_images, max(num_images - 1, 1))
    for row in range(num_images) if check_all_rows else first_and_last:
        check_row(grid, row, shard.grid_crc32[row])
    return grid


def check_row(grid: GridMap, row: int, crc32: int) -> None:
    """Verify one row of a grid file.

    Raises:
        BadShardError: the row does not have this crc32.
    """
    if zlib.crc32(grid[row].reshape(-1).view(np.uint8).data) != crc32:
        raise bad_shard(Path(str(grid.filename)), f"row {row} does not match its checksum")


def _map_files(paths: list[Path], crc32: npt.NDArray[np.uint32]) -> "GridFiles":
    """Map grid files that `open_grid` has verified before; for `pickle`."""
    return GridFiles(tuple(npy.open_memmap(path, mode="r") for path in paths), crc32)


@dataclass(frozen=True)
class GridFiles:
    """The grid features of a dataset: one (N, V, P, G) array, memory-mapped from several files.

    A row is verified when it is first read. Several threads can read at the same time.

    Attributes:
        maps: of each shard, in order, (n, V, P, G) float16.
        crc32: (N,) uint32, of each row.
    """

    maps: tuple[GridMap, ...]
    crc32: npt.NDArray[np.uint32]

    @property
    def shape(self) -> tuple[int, int]:
        """(P, G)."""
        num_cells, width = self.maps[0].shape[2:]
        return num_cells, width

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """Row of the first image of each shard."""
        return np.cumsum([0, *(len(grid) for grid in self.maps[:-1])])

    @cached_property
    def _is_verified(self) -> npt.NDArray[np.bool_]:
        """(N,) bool, whether a row has been verified."""
        return np.zeros(len(self.crc32), bool)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the paths of the files: a loader's worker processes map them again."""
        return _map_files, ([grid.filename for grid in self.maps], self.crc32)

    def gather(
        self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float16]:
        """Read the rows (n,), in any order, each in its view (n,); return (n, P, G).

        Raises:
            BadShardError: a row is damaged.
        """
        gathered = np.empty((len(rows), *self.shape), np.float16)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        offsets = rows - self._starts[shards]
        for index in np.lexsort((views, rows)):  # read in the order on disk
            row, grid, offset = rows[index], self.maps[shards[index]], offsets[index]
            if not self._is_verified[row]:
                check_row(grid, offset, self.crc32[row])
                self._is_verified[row] = True
            gathered[index] = grid[offset, views[index]]
        return gathered
