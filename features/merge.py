"""Merge two feature shards of different images into one."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from .grids import GridWriter, grid_name, open_grid
from .shards import read_shard, write_shard

ARRAYS = ("image_ids", "features", "views", "grid_crc32")


def merge_shards(
    path: Path,
    added_path: Path,
    merged_path: Path,
    skipped: tuple[tuple[int, str], ...],
    fingerprint: str,
    grid_shape: tuple[int, int] | None = None,
) -> None:
    """Write a shard with the rows of two, ordered by image id; with grids, the grid file first.

    Args:
        path: of a shard.
        added_path: of a shard with other images.
        merged_path: of the result, in another folder.
        skipped: (image_id, reason) of each image without a row in the result.
        fingerprint: of the result.
        grid_shape: (P, G), if both shards have grid files.

    Raises:
        BadShardError: a shard or a row of its grid file is damaged.
        StorageError: the disk is full, or the folder cannot be written.
    """
    shards = [read_shard(path), read_shard(added_path)]
    order = np.argsort(np.concatenate([shard.image_ids for shard in shards]))
    arrays = {
        name: np.concatenate([getattr(shard, name) for shard in shards])[order]
        for name in ARRAYS
        if getattr(shards[0], name) is not None
    }
    merged = replace(shards[0], skipped=skipped, fingerprint=fingerprint, **arrays)
    if grid_shape is not None:
        grids = [
            open_grid(place.with_name(grid_name(place.name)), shard, grid_shape)
            for place, shard in zip((path, added_path), shards, strict=True)
        ]
        first = len(grids[0])
        with ExitStack() as unfinished:
            num_views, num_cells, width = grids[0].shape[1:]
            grid_path = merged_path.with_name(grid_name(path.name))
            writer = GridWriter(grid_path, (num_views, num_cells, width))
            unfinished.callback(writer.discard)
            for row in order.tolist():
                grid, row = (grids[0], row) if row < first else (grids[1], row - first)
                writer.append(grid[row : row + 1])
            merged = replace(merged, grid_crc32=writer.publish())
    write_shard(merged_path, merged)
