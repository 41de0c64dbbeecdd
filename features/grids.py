"""Grids on disk: what the network sees at each place of a picture, beside the pooled features.

N images, V views, R places row by row from the top left, D feature width.

`part-00000.grid.npy`, for both formats of the shard:
    NumPy's format, (N, V, R, D) float16, C order; row i belongs to image_ids[i] of the shard

The shard holds a checksum of each row. Grids are far larger than memory: they are written batch by
batch and read through memory maps.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from ..pipeline.stage.errors import BadShardError
from ..pipeline.stage.files import partial_path
from .shards import MEND, FeatureShard, describe, write_error

GridMap = np.memmap[tuple[int, ...], np.dtype[np.float16]]


def grid_name(shard_name: str) -> str:
    """Name of the grid file beside a shard."""
    return f"{Path(shard_name).stem}.grid.npy"


class GridWriter:
    """Writes the grids of a shard batch by batch, whole or not at all.

    Args:
        path: of the grid file.
        row_shape: (V, R, D).

    Raises:
        ShowTellError: from every method: the disk is full, or the folder cannot be written.
    """

    def __init__(self, path: Path, row_shape: tuple[int, int, int]) -> None:
        self.path, self.row_shape = path, row_shape
        self.partial = partial_path(path)
        self.crcs: list[int] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.partial.open("wb")
            self._write_header()
        except OSError as error:
            raise write_error(path, error) from error

    def append(self, rows: npt.NDArray[np.float16]) -> None:
        """Write (n, V, R, D) float16, n at least 0."""
        assert rows.shape[1:] == self.row_shape, rows.shape
        try:
            for row in np.ascontiguousarray(rows):
                content = row.reshape(-1).view(np.uint8).data
                self.crcs.append(zlib.crc32(content))
                self.file.write(content)
        except OSError as error:
            raise write_error(self.path, error) from error

    def publish(self) -> npt.NDArray[np.uint32]:
        """Give the file its name.

        Returns:
            (N,) uint32, checksum of each row.
        """
        try:
            self.file.seek(0)
            self._write_header()
            self.file.close()
            self.partial.replace(self.path)
        except OSError as error:
            raise write_error(self.path, error) from error
        return np.array(self.crcs, np.uint32)

    def discard(self) -> None:
        """Remove what was not published."""
        self.file.close()
        self.partial.unlink(missing_ok=True)

    def _write_header(self) -> None:
        # NumPy leaves room for the first axis to grow, so that the second header fits the first.
        shape = (len(self.crcs), *self.row_shape)
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self.file, header)


def open_grid(path: Path, shard: FeatureShard, num_places: int) -> GridMap:
    """Map the grid file of a shard into memory; header, size and two rows are verified.

    Args:
        path: of the grid file.
        shard: that it lies beside.
        num_places: the R that is expected.

    Returns:
        (N, V, R, D) float16, read-only.

    Raises:
        BadShardError: it is absent, damaged, or does not belong to the shard.
    """
    try:
        grid: GridMap = npy.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadShardError(f"{path}: cannot be read ({reason}). {MEND}") from error
    num_images, width = shard.features.shape
    expected = (num_images, shard.num_views, num_places, width)
    if grid.shape != expected or grid.dtype != np.float16 or not grid.flags.c_contiguous:
        raise BadShardError(f"{path}: is {describe(grid)}, expected {expected} float16. {MEND}")
    for row in {0, num_images - 1} if num_images else ():
        crc32 = zlib.crc32(grid[row].reshape(-1).view(np.uint8).data)
        if shard.grid_crc32 is None or crc32 != shard.grid_crc32[row]:
            raise BadShardError(
                f"{path}: the grid of image {shard.image_ids[row]} is not the one that its shard "
                f"was written with. {MEND}"
            )
    return grid


@dataclass(frozen=True)
class GridFiles:
    """The grids of a dataset on disk, as one (N, V, R, D) array that is never in memory.

    Attributes:
        maps: of each shard, in order, (n, V, R, D) float16.
        crc32: (N,) uint32, checksum of each row.
    """

    maps: tuple[GridMap, ...]
    crc32: npt.NDArray[np.uint32]

    @property
    def shape(self) -> tuple[int, int]:
        """(R, D)."""
        num_places, width = self.maps[0].shape[2:]
        return num_places, width

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """Row of the first image of each shard."""
        return np.cumsum([0, *(len(grid) for grid in self.maps[:-1])])

    def gather(
        self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float16]:
        """Read rows (n,) in any order, each in its view (n,): (n, R, D)."""
        gathered = np.empty((len(rows), *self.shape), np.float16)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        offsets = rows - self._starts[shards]
        # In the order on the disk; each row is copied once, straight to its place.
        for place in np.lexsort((views, rows)):
            gathered[place] = self.maps[shards[place]][offsets[place], views[place]]
        return gathered
