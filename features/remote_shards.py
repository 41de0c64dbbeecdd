"""Shards in the folder or bucket of `--store`: `STORE/<dataset>/<features folder>/part-00000.h5`.

The files are those of the features folder. Whoever computes a shard puts it there, the grid file
first, each at once. A later job with the same dataset and options fetches it instead of computing
it; the fingerprint in the shard decides.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..pipeline.stage.urls import discard, download, join, upload
from .config import FeaturesConfig
from .grids import grid_name
from .layout import features_dir
from .plan import ShardJob

NUM_DOWNLOADS = 8  # at once


def list_files(config: FeaturesConfig, shard_name: str) -> list[str]:
    """Return the names of a shard's files, the grid file first."""
    return [grid_name(shard_name), shard_name] if config.grid else [shard_name]


def delete_shard(config: FeaturesConfig, path: Path) -> None:
    """Delete a local shard and its grid file, if they exist."""
    for name in list_files(config, path.name):
        path.with_name(name).unlink(missing_ok=True)


def put_shard(config: FeaturesConfig, path: Path) -> str:
    """Copy a finished shard and its grid file to the store, if there is one.

    Returns:
        Where the shard is now: in the store, else at `path`.

    Raises:
        StorageError: the store cannot be written.
    """
    if config.store is None:
        return str(path)
    for name in list_files(config, path.name):
        upload(path.with_name(name), location_of(config, name))
    return location_of(config, path.name)


def fetch_shards(config: FeaturesConfig, jobs: Sequence[ShardJob], directory: Path) -> int:
    """Copy shards from the store to a folder; they may be of other options.

    Returns:
        How many of them the store has.

    Raises:
        StorageError: the store cannot be read, or the folder not be written.
    """
    with ThreadPoolExecutor(NUM_DOWNLOADS, "fetch") as pool:
        return sum(pool.map(partial(_fetch, config, directory), (job.name for job in jobs)))


def _fetch(config: FeaturesConfig, directory: Path, shard_name: str) -> bool:
    names = list_files(config, shard_name)
    return all(download(location_of(config, name), directory / name) for name in names)


def discard_stored(config: FeaturesConfig, shard_names: Iterable[str]) -> None:
    """Delete shards from the store, if there is one and it allows that."""
    if config.store is not None:
        for shard_name in shard_names:
            for name in list_files(config, shard_name):
                discard(location_of(config, name))


def location_of(config: FeaturesConfig, name: str) -> str:
    """Return the path or URL of a file in the store."""
    assert config.store is not None
    return join(config.store, f"{config.dataset}/{features_dir(config).name}/{name}")
