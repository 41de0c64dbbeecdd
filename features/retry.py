"""Try skipped images again, and merge those that can be read now into their shards.

Only these images are read and encoded, into small shards in the subfolder `.retry/`. Each is then
merged with the complete shard it belongs to: rows ordered by image id, all others unchanged.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pipeline.stage.files import hash_file, hash_json, write_bytes
from ..pipeline.stage.stopwatch import Stopwatch
from .engines.engine import Engine
from .merge import merge_shards
from .plan import ImageList, ShardJob, Skipped, find_finished, may_be_readable
from .remote_shards import discard_stored, put_shard

RETRIED = ".retry"  # subfolder with the features of images that were tried again


@dataclass(frozen=True)
class Retry:
    """The skipped images of one complete shard to try again.

    Attributes:
        job: of the shard.
        skipped: all skipped images of the shard.
        positions: in the image list, of the images to try.
    """

    job: ShardJob
    skipped: Skipped
    positions: list[int]


def find_retries(
    engine: Engine,
    images: ImageList,
    jobs: Sequence[ShardJob],
    skipped: Mapping[str, Skipped],
) -> list[Retry]:
    """Find the images to try again: with `--retry-skipped` all, otherwise those that may succeed.

    Args:
        engine: its config holds the options.
        images: all images of the dataset.
        jobs: complete shards.
        skipped: name of each shard → its skipped images.
    """
    retries = []
    for job in jobs:
        ids = [image_id for image_id, _ in skipped[job.name]]
        rows = np.searchsorted(images.image_ids, ids).tolist()
        positions = [
            row
            for row, (_, reason) in zip(rows, skipped[job.name], strict=True)
            if engine.config.retry_skipped
            or may_be_readable(reason, images.stamps[row], engine.config.max_pixels)
        ]
        if positions:
            retries.append(Retry(job, skipped[job.name], positions))
    return retries


def retry_images(
    engine: Engine,
    images: ImageList,
    retries: Sequence[Retry],
    directory: Path,
    staging: Path,
    watch: Stopwatch,
) -> dict[str, Skipped]:
    """Compute the features of the images, and write the merged shards.

    An interrupted call goes on where it stopped: what it has computed stays in `.retry/`. The
    caller deletes that folder once the merged shards are published.

    Args:
        engine: the network.
        images: all images of the dataset.
        retries: which images of which shards.
        directory: the folder with the complete shards.
        staging: the folder to write the merged shards to.
        watch: measures the parts of the work.

    Returns:
        Name of each shard → its images that are still skipped.
    """
    folder, network, config = directory / RETRIED, engine.network, engine.config
    chosen = images.select([row for retry in retries for row in retry.positions])
    jobs, start, retry_id = list[ShardJob](), 0, identify(folder)
    for retry in retries:
        stop = start + len(retry.positions)
        ids = chosen.image_ids[start:stop].tolist()
        content = [retry.job.fingerprint, ids, config.max_pixels, retry_id]
        jobs.append(ShardJob(retried_name(retry.job.name), start, stop, hash_json(content)))
        start = stop
    grid_shape = (network.num_cells, network.grid_dim) if config.grid else None
    done = find_finished(jobs, folder, folder, None, network.feature_dim, grid_shape)
    for job, still_skipped in engine.compute(
        chosen, [job for job in jobs if job.name not in done], folder, watch
    ):
        done[job.name] = still_skipped
    merged = {}
    for retry in retries:
        tried = set(images.image_ids[retry.positions].tolist())
        kept = [pair for pair in retry.skipped if pair[0] not in tried]
        name = retry.job.name
        merged[name] = skipped = tuple(sorted([*kept, *done[retried_name(name)]]))
        if skipped != retry.skipped:
            fingerprint = retry.job.final_fingerprint(skipped, images)
            paths = directory / name, folder / retried_name(name), staging / name
            merge_shards(*paths, skipped, fingerprint, grid_shape)
            put_shard(config, staging / name)
    discard_stored(config, (job.name for job in jobs))
    return merged


def identify(folder: Path) -> str:
    """Return an id that differs from that of earlier retries, whose results must not be used.

    It is stored in `.retry/`, so that an interrupted retry keeps it.
    """
    path = folder / "id"
    if not path.exists():
        write_bytes(path, secrets.token_bytes(16))
    return hash_file(path)


def retried_name(shard_name: str) -> str:
    """Return the name of the shard with images to merge; `--store` must not mix them up."""
    return shard_name.replace("part-", "retry-", 1)
