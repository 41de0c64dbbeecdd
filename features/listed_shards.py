"""Read the shards that a manifest lists, after verifying them."""

from functools import partial
from pathlib import Path

from ..pipeline.stage.checksums import checksum_of_file
from ..pipeline.stage.manifest import MANIFEST_NAME, Manifest
from .shards import FeatureShard, bad_shard, read_shard, reading_shard


def verify_shard(path: Path, manifest: Manifest) -> None:
    """Verify the checksum of a shard just before it is read, while it is in the page cache.

    Raises:
        MissingArtifactError: it does not exist.
        BadShardError: it is not the file that the manifest lists.
    """
    with reading_shard(path):
        content = partial(checksum_of_file, path)
        problem = manifest.find_problem(path.name, path.stat().st_size, content)
    if problem is not None:
        raise bad_shard(path, problem)


def read_listed_shard(path: Path, manifest: Manifest, *, is_mapped: bool = False) -> FeatureShard:
    """Read a shard and check that it is the one that the manifest lists.

    The caller has verified its checksum, if the manifest lists one.

    Args:
        path: of the shard.
        manifest: of the features.
        is_mapped: see `read_shard`.

    Raises:
        MissingArtifactError: it does not exist.
        BadShardError: it is damaged, or is not the shard that the manifest lists.
    """
    is_verified = path.name in manifest.checksums  # by the caller
    shard = read_shard(
        path, manifest.counts["feature_dim"], is_verified=is_verified, is_mapped=is_mapped
    )
    num_views = manifest.counts.get("num_views", 1)
    fingerprint = manifest.details["fingerprints"][path.name]
    if shard.fingerprint != fingerprint or shard.num_views != num_views:
        raise bad_shard(
            path, f"its fingerprint or its number of views is not what {MANIFEST_NAME} lists"
        )
    return shard
