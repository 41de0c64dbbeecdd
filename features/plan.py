"""What the stage `features` has to do: which images, in which shards, and what is done already."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..pipeline.captions import read_images
from ..pipeline.datasets.image_files import ImageFiles
from ..pipeline.layout import IMAGES_PARQUET
from ..pipeline.stage.errors import BadShardError
from ..pipeline.stage.files import hash_file, hash_json
from ..pipeline.stage.manifest import Manifest
from .config import FeaturesConfig
from .grids import grid_name, open_grid
from .reading.decode import MISSING, UNREAD
from .shards import SUFFIXES, read_fingerprint, read_shard

RETRY = "retry"  # in place of the fingerprint, where a file could not be read this time

Skipped = tuple[tuple[int, str], ...]  # (image_id, reason) of the images of a shard without a row


@dataclass(frozen=True)
class ImageList:
    """The images of a dataset, ordered by image_id.

    Attributes:
        files: where they are.
        source: the folder they are in.
        sha256: of the images.parquet that lists them.
        image_ids: (N,) int64, increasing.
        file_names: N names, relative to the source.
        stamps: size and time of each file, None where there is none.
    """

    files: ImageFiles
    source: str
    sha256: str
    image_ids: npt.NDArray[np.int64]
    file_names: list[str]
    stamps: list[str | None]

    def __len__(self) -> int:
        return len(self.file_names)


@dataclass(frozen=True)
class ShardJob:
    """One shard that has to be there in the end.

    Attributes:
        name: of its file.
        start: position of its first image in the image list.
        stop: position after its last image.
        fingerprint: of all that it depends on.
    """

    name: str
    start: int
    stop: int
    fingerprint: str

    def __len__(self) -> int:
        return self.stop - self.start

    def batches(self, batch_size: int) -> list[tuple[int, int]]:
        """(start, stop) of its batches; none spans two shards, so a resume computes the same."""
        starts = range(self.start, self.stop, batch_size)
        return [(start, min(start + batch_size, self.stop)) for start in starts]

    def final_fingerprint(self, skipped: Skipped, images: ImageList) -> str:
        """The fingerprint to store: `RETRY` where a file that is there could not be read."""
        rows = np.searchsorted(images.image_ids, [image_id for image_id, _ in skipped])
        is_there = [images.stamps[row] is not None for row in rows]
        failed = any(
            reason.startswith(UNREAD) or (reason == MISSING and there)
            for (_, reason), there in zip(skipped, is_there, strict=True)
        )
        return RETRY if failed else self.fingerprint


def list_images(config: FeaturesConfig) -> ImageList:
    """Read what `prepare` has left: the images, and the folder they are in.

    Raises:
        MissingArtifactError: the dataset is not prepared.
    """
    fix_command = f"showtell prepare --dataset {config.dataset}"
    source = Path(Manifest.require(config.captions_dir, fix_command).details["source"])
    path = config.captions_dir / IMAGES_PARQUET
    table = read_images(path)
    order = np.argsort(table.image_ids, kind="stable")
    names = [table.file_names[row] for row in order]
    files = ImageFiles(source)
    return ImageList(
        files=files,
        source=str(source),
        sha256=hash_file(path),
        image_ids=table.image_ids[order],
        file_names=names,
        stamps=files.fingerprints(names),
    )


def plan_shards(config: FeaturesConfig, images: ImageList, network: object) -> list[ShardJob]:
    """Cut the image list into shards.

    Args:
        config: its shard size and format.
        images: of the dataset.
        network: JSON value that tells the weights, the transform and the precision apart.

    Returns:
        The shards in the order of the image list, each with the fingerprint of what it depends on.
    """
    jobs = []
    for index, start in enumerate(range(0, len(images), config.shard_size)):
        stop = min(start + config.shard_size, len(images))
        content = [
            images.image_ids[start:stop].tolist(),
            images.file_names[start:stop],
            images.stamps[start:stop],
        ]
        name = f"part-{index:05}{SUFFIXES[config.format]}"
        jobs.append(ShardJob(name, start, stop, hash_json([network, content])))
    return jobs


def find_finished(
    jobs: Sequence[ShardJob],
    directories: Sequence[Path],
    feature_dim: int,
    grid_places: int | None = None,
) -> dict[str, Skipped]:
    """Find the shards that are already there, whole and of their job's fingerprint.

    Args:
        jobs: the shards that have to be there in the end.
        directories: where they may be.
        feature_dim: D.
        grid_places: R, where each must have its grid file beside it.

    Returns:
        Name of the shard → its skipped images.
    """
    found: dict[str, Skipped] = {}
    for job in jobs:
        for path in (directory / job.name for directory in directories):
            # A shard of other images or weights is told by its fingerprint, without its content.
            if job.name not in found and read_fingerprint(path) == job.fingerprint:
                with suppress(BadShardError):
                    shard = read_shard(path, feature_dim)
                    if grid_places is not None:
                        open_grid(path.with_name(grid_name(job.name)), shard, grid_places)
                    found[job.name] = shard.skipped
    return found
