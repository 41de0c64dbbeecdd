"""The plan of the features stage: which images, in which shards, and which shards exist already."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..pipeline.captions import read_images
from ..pipeline.images.image_files import ImageFiles
from ..pipeline.layout import IMAGES_PARQUET, PARQUET_STAMPS
from ..pipeline.stage.artifacts import repair_command, require_stage
from ..pipeline.stage.errors import DatasetError, ShowTellError
from ..pipeline.stage.files import hash_file, hash_json
from ..pipeline.stage.manifest import Manifest
from .config import FeaturesConfig
from .grids import grid_name, open_grid
from .reading.batches import split_into_batches
from .reading.broken_images import MISSING, READ_FAILED, is_above_lower_limit
from .shards import FORMATS, FeatureShard, has_checksum, read_shard

# Stored before the fingerprint if an image may be readable later: the next run tries it again.
RETRY = "retry"

Skipped = tuple[tuple[int, str], ...]  # (image_id, reason) of each image of a shard without a row


@dataclass(frozen=True)
class ImageList:
    """The images of a dataset, ordered by image_id.

    Attributes:
        files: where they are.
        source: the folder or URL they are in.
        sha256: of the images.parquet that lists them.
        image_ids: (N,) int64, increasing.
        file_names: N names, relative to the source.
        stamps: size and time of each file or its archive, None if it does not exist.
        members: (N, 2) int64, offset and size of each image in its tar archive, -1 if it is in
            none; None if no image is in a tar archive.
    """

    files: ImageFiles
    source: str
    sha256: str
    image_ids: npt.NDArray[np.int64]
    file_names: list[str]
    stamps: list[str | None]
    members: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.file_names)

    def select(self, positions: Sequence[int]) -> "ImageList":
        """Return the images at some positions, in that order."""
        return replace(
            self,
            image_ids=self.image_ids[positions],
            file_names=[self.file_names[i] for i in positions],
            stamps=[self.stamps[i] for i in positions],
            members=None if self.members is None else self.members[positions],
        )

    def part(self, start: int, stop: int) -> "ImageList":
        """Return the images at positions `start` to `stop`."""
        return self.select(range(start, stop))


@dataclass(frozen=True)
class ShardJob:
    """One shard of the result.

    Attributes:
        name: the file name.
        start: position of its first image in the image list.
        stop: position after its last image.
        fingerprint: of everything it depends on.
    """

    name: str
    start: int
    stop: int
    fingerprint: str

    def __len__(self) -> int:
        return self.stop - self.start

    def batches(self, batch_size: int) -> list[tuple[int, int]]:
        """Return the (start, stop) of its batches.

        No batch spans two shards, so a resumed run computes the same batches.
        """
        return split_into_batches(self.start, self.stop, batch_size)

    @property
    def retry_fingerprint(self) -> str:
        """The fingerprint to store if the next run is to try some images again."""
        return f"{RETRY} {self.fingerprint}"

    def final_fingerprint(self, skipped: Skipped, images: ImageList) -> str:
        """Return the fingerprint to store."""
        rows = np.searchsorted(images.image_ids, [image_id for image_id, _ in skipped])
        stamps = [images.stamps[row] for row in rows]
        is_retried = any(
            may_be_readable(reason, stamp)
            for (_, reason), stamp in zip(skipped, stamps, strict=True)
        )
        return self.retry_fingerprint if is_retried else self.fingerprint


def list_images(config: FeaturesConfig) -> ImageList:
    """Read the image list that `prepare` wrote.

    Raises:
        MissingArtifactError: the dataset is not prepared.
        DatasetError: a Parquet file with images has changed since then.
    """
    prepared = require_stage(config.captions_dir)
    source: str = prepared.details["source"]
    path = config.captions_dir / IMAGES_PARQUET
    table = read_images(path)
    order = np.argsort(table.image_ids, kind="stable")
    names = [*table.file_names.take(order)]
    files = ImageFiles(source)
    stamps = files.fingerprints(names)
    if expected := prepared.details.get(PARQUET_STAMPS):
        require_unchanged(path, files, names, stamps, expected)
    members = table.members
    return ImageList(
        files=files,
        source=source,
        sha256=hash_file(path),
        image_ids=table.image_ids[order],
        file_names=names,
        stamps=stamps,
        members=None if members is None else members[order],
    )


def require_unchanged(
    path: Path,
    files: ImageFiles,
    file_names: Sequence[str],
    stamps: Sequence[str | None],
    expected: Mapping[str, str],
) -> None:
    """Check that Parquet files are those that `prepare` read: their rows may be other images now.

    Args:
        path: of the image list.
        files: the images.
        file_names: of N images.
        stamps: of the N images; an archive that is missing has None.
        expected: name → stamp of each Parquet file when `prepare` read it.

    Raises:
        DatasetError: naming the first file that has changed.
    """
    for name, stamp in zip(file_names, stamps, strict=True):
        archive = name.rpartition("/")[0]
        if stamp is not None and expected.get(archive, stamp) != stamp:
            raise DatasetError(
                f"{files.locate(archive)} has changed since it was prepared, so its captions may "
                f"belong to other rows. Run '{repair_command(path)}', then the same command again."
            )


def plan_shards(config: FeaturesConfig, images: ImageList, network: object) -> list[ShardJob]:
    """Divide the image list into shards.

    Args:
        config: for the shard size and the format.
        images: of the dataset.
        network: a JSON value that identifies the weights, the transform and the precision.

    Returns:
        The shards in the order of the image list.
    """
    jobs = []
    spans = split_into_batches(0, len(images), config.shard_size)
    for name, (start, stop) in zip(shard_names(config, images), spans, strict=True):
        content = [
            images.image_ids[start:stop].tolist(),
            images.file_names[start:stop],
            images.stamps[start:stop],
        ]
        if images.members is not None:
            content.append(images.members[start:stop].tolist())
        jobs.append(ShardJob(name, start, stop, hash_json([network, content])))
    return jobs


def shard_names(config: FeaturesConfig, images: ImageList) -> list[str]:
    """Return the file names of all shards."""
    count = -(-len(images) // config.shard_size)
    return [f"part-{index:05}{FORMATS[config.format].suffix}" for index in range(count)]


def find_finished(*args: Any, **options: Any) -> dict[str, Skipped]:
    """Return name → skipped images of the shards that `find_files` finds. Arguments as there."""
    return {name: skipped for name, (_, skipped) in find_files(*args, **options).items()}


def find_files(
    jobs: Sequence[ShardJob],
    directory: Path,
    staging: Path,
    done: Manifest | None,
    feature_dim: int,
    grid_shape: tuple[int, int] | None = None,
) -> dict[str, tuple[Path, Skipped]]:
    """Find the shards that exist, are undamaged and have the fingerprint of their job.

    Shards are read completely, because the new manifest will list them as valid.

    Args:
        jobs: the shards of the result.
        directory: the features folder.
        staging: folder with the shards of an interrupted run.
        done: the manifest of the features folder.
        feature_dim: D.
        grid_shape: (P, G), if each shard needs a grid file.

    Returns:
        Name of each shard found → its file, and its skipped images; some of them may have to be
        tried again.
    """
    found: dict[str, tuple[Path, Skipped]] = {}
    changed = find_changed(done, directory) if done else set()
    for job in jobs:
        paths = [staging / job.name, directory / job.name]
        fingerprints = (job.fingerprint, job.retry_fingerprint)
        for path in paths:
            if job.name in found or not path.exists():
                continue
            with suppress(ShowTellError):
                shard = read_shard(path, feature_dim)
                # A retry that was killed may have moved a merged shard into the folder.
                if (job.name, shard.fingerprint) in changed and not has_checksum(path):
                    continue
                # Without a row there is nothing to keep: all its images are tried again.
                if shard.fingerprint in fingerprints[: 1 + (len(shard.image_ids) > 0)]:
                    if grid_shape is not None:
                        open_moved_grid(path, directory, shard, grid_shape)
                    found[job.name] = path, shard.skipped
    return found


def open_moved_grid(
    path: Path, directory: Path, shard: FeatureShard, grid_shape: tuple[int, int]
) -> None:
    """Verify the grid file of a shard. A killed run may have moved it to `directory` already.

    Raises:
        ShowTellError: it does not exist or is damaged.
    """
    name = grid_name(path.name)
    try:
        open_grid(path.with_name(name), shard, grid_shape, check_all_rows=True)
    except ShowTellError:
        open_grid(directory / name, shard, grid_shape, check_all_rows=True)


def may_be_readable(reason: str, stamp: str | None, max_pixels: int = 0) -> bool:
    """Return whether a skipped image may be readable now, although it has not changed.

    Args:
        reason: why it was skipped.
        stamp: of its file, None if there is none.
        max_pixels: `--max-pixels`, which may have been lower before.
    """
    return (
        reason.startswith(READ_FAILED)
        or (reason == MISSING and stamp is not None)
        or is_above_lower_limit(reason, max_pixels)
    )


def is_limited(skipped: Iterable[tuple[object, str]], max_pixels: int) -> bool:
    """Return whether a lower `--max-pixels` skipped images that this value may allow.

    Lowering the value changes nothing: images that have been read are kept.
    """
    return any(is_above_lower_limit(reason, max_pixels) for _, reason in skipped)


def find_changed(done: Manifest, directory: Path) -> set[tuple[str, str]]:
    """Return (name, fingerprint) of each listed shard whose file differs from the manifest.

    A file with another fingerprint may be a valid shard that a killed run moved into the folder.
    """
    fingerprints = done.details.get("fingerprints", {})
    return {(name, fingerprints.get(name, "")) for name, _ in done.find_problems(directory)}
