"""The grid features: the feature map of each image before pooling, in a file beside each shard.

`part-00000.grid.npy`, beside shards of either format:
    NumPy's format, (N, V, P, D) float16, C order; row i belongs to image_ids[i] of the shard

N images, V views, P grid cells row by row from the top left, D feature width. The shard stores a
crc32 of each row. The files are larger than memory, so they are written batch by batch and read
through memory maps.
"""

import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from ..pipeline.stage.errors import BadShardError
from ..pipeline.stage.files import partial_path, sync, write_error
from .shards import DELETE_HINT, FeatureShard, describe, read_error

GridMap = np.memmap[tuple[int, ...], np.dtype[np.float16]]


def grid_name(shard_name: str) -> str:
    """Return the name of the grid file that belongs to a shard."""
    return f"{Path(shard_name).stem}.grid.npy"


class GridWriter:
    """Write the grid file of a shard batch by batch; it appears only when `publish` is called.

    Every method raises StorageError if the disk is full or the folder cannot be written.

    Args:
        path: of the grid file.
        row_shape: (V, P, D).
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
        """Write (n, V, P, D) float16; n may be 0."""
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
        with suppress(OSError):  # closing writes what is left, which fails again on a full disk
            self.file.close()
        self.partial.unlink(missing_ok=True)

    def _write_header(self) -> None:
        # Written first without rows and again at the end: NumPy pads the header so that a longer
        # first axis still fits.
        shape = (len(self.crcs), *self.row_shape)
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self.file, header)


def open_grid(path: Path, shard: FeatureShard, num_cells: int) -> GridMap:
    """Map the grid file of a shard into memory; verifies the header, the size and two rows.

    Args:
        path: of the grid file.
        shard: the shard that the file belongs to.
        num_cells: the expected P.

    Returns:
        (N, V, P, D) float16, read-only.

    Raises:
        BadShardError: the file is missing, damaged, or belongs to another shard.
    """
    try:
        grid: GridMap = npy.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise read_error(path, error) from error
    num_images, width = shard.features.shape
    expected = (num_images, shard.num_views, num_cells, width)
    if grid.shape != expected or grid.dtype != np.float16 or not grid.flags.c_contiguous:
        raise BadShardError(
            f"{path} is {describe(grid)}, expected {expected} float16. {DELETE_HINT}"
        )
    for row in {0, num_images - 1} if num_images else ():
        crc32 = zlib.crc32(grid[row].reshape(-1).view(np.uint8).data)
        if shard.grid_crc32 is None or crc32 != shard.grid_crc32[row]:
            raise BadShardError(
                f"{path}: the grid of image {shard.image_ids[row]} does not match the checksum in "
                f"its shard. {DELETE_HINT}"
            )
    return grid


@dataclass(frozen=True)
class GridFiles:
    """The grid features of a dataset: one (N, V, P, D) array, memory-mapped from several files.

    Attributes:
        maps: of each shard, in order, (n, V, P, D) float16.
        crc32: (N,) uint32, of each row.
    """

    maps: tuple[GridMap, ...]
    crc32: npt.NDArray[np.uint32]

    @property
    def shape(self) -> tuple[int, int]:
        """(P, D)."""
        num_cells, width = self.maps[0].shape[2:]
        return num_cells, width

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """Row of the first image of each shard."""
        return np.cumsum([0, *(len(grid) for grid in self.maps[:-1])])

    def gather(
        self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float16]:
        """Read the rows (n,), in any order, each in its view (n,); return (n, P, D)."""
        gathered = np.empty((len(rows), *self.shape), np.float16)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        offsets = rows - self._starts[shards]
        for index in np.lexsort((views, rows)):  # read in the order on disk
            gathered[index] = self.maps[shards[index]][offsets[index], views[index]]
        return gathered
