"""Verify the files of a features folder: shards, and every row of the grids."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..pipeline.stage.errors import ShowTellError
from ..pipeline.stage.manifest import Manifest
from ..pipeline.verify import Check, Reader, stage_checks
from .extract import STAGING
from .grids import grid_name, grid_shape_of, open_grid
from .listed_shards import read_listed_shard
from .shards import FORMATS, read_shard

SHARD_SUFFIXES = {known.suffix for known in FORMATS.values()}


def features_checks(directory: Path) -> Iterator[Check]:
    """Yield the checks of `data/<dataset>/features/<name>`."""
    manifest = Manifest.read(directory)
    if manifest is None:
        shards = [path for path in directory.glob("part-*") if path.suffix in SHARD_SUFFIXES]
        yield from stage_checks(directory, {path.name: read_shard for path in shards})
    else:
        readers: dict[str, Reader] = {}
        for name in (name for name in manifest.outputs if Path(name).suffix in SHARD_SUFFIXES):
            readers[name] = partial(_read_shard, manifest)
            readers[grid_name(name)] = partial(_read_grid, manifest, name)
        yield from stage_checks(directory, readers)
    yield from stage_checks(directory / STAGING, {})


def _read_shard(manifest: Manifest, path: Path) -> None:
    read_listed_shard(path, manifest)


def _read_grid(manifest: Manifest, shard_name: str, path: Path) -> None:
    """Verify every row of a grid file by the checksums in its shard."""
    try:
        shard = read_shard(path.with_name(shard_name))
    except ShowTellError:
        return  # reported for the shard, whose repair also recomputes the grid
    shape = grid_shape_of(manifest.counts)
    if shape is not None:
        open_grid(path, shard, shape, check_all_rows=True)
