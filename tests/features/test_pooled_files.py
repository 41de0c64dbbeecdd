from pathlib import Path

import numpy as np
import pytest
import torch

from showtell.features.pooled_files import MAPPED, PooledFiles
from showtell.features.shards import FeatureShard, read_shard, write_shard
from showtell.features.store import FeatureStore
from showtell.pipeline.stage.checksums import checksums_of
from showtell.pipeline.stage.errors import BadShardError
from showtell.pipeline.stage.manifest import Manifest

WIDTH = 5
SIZES = (4, 0, 3, 6)  # images of each shard; one shard has none


def write_store(directory: Path, suffix: str = ".h5", num_views: int = 1, seed: int = 0) -> Path:
    """Write the shards and the manifest of a features folder."""
    values = np.random.default_rng(seed).normal(size=(sum(SIZES), num_views, WIDTH))
    ids, stop = np.arange(sum(SIZES)) * 10, 0
    fingerprints = {}
    for index, size in enumerate(SIZES):
        start, stop = stop, stop + size
        name, rows = f"part-{index:05}{suffix}", values[start:stop].astype(np.float16)
        fingerprints[name] = f"shard {index}"
        views = rows[:, 1:] if num_views > 1 else None
        shard = FeatureShard(ids[start:stop], rows[:, 0], (), fingerprints[name], views)
        write_shard(directory / name, shard)
    Manifest(
        stage="features",
        version=1,
        config={"encoder": "resnet50", "image_size": None},
        inputs={},
        outputs={name: (directory / name).stat().st_size for name in fingerprints},
        checksums=checksums_of(directory, fingerprints),
        counts={"num_images": stop, "feature_dim": WIDTH, "num_views": num_views},
        details={"fingerprints": fingerprints},
    ).write(directory)
    return directory


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_mapped_store_has_the_bytes_of_the_resident_one(tmp_path, suffix, num_views) -> None:
    directory = write_store(tmp_path / "d/features/f", suffix, num_views)
    resident, mapped = (FeatureStore.load(directory, is_mapped=kind) for kind in (False, True))
    assert isinstance(mapped.pooled, PooledFiles)
    assert (mapped.feature_dim, mapped.num_views) == (WIDTH, num_views)
    assert mapped.sha256 == resident.sha256
    assert torch.equal(mapped.views, resident.views)
    assert torch.equal(mapped.features, resident.features)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(sum(SIZES), (50,), generator=generator)
    views = torch.randint(num_views, (50,), generator=generator)
    assert torch.equal(mapped.gather(rows), resident.gather(rows))
    assert torch.equal(mapped.gather(rows, views), resident.views[rows, views])
    assert torch.equal(mapped.read(2, 9), resident.views[2:9])
    assert mapped.gather(rows[:0]).shape == (0, WIDTH)
    np.testing.assert_array_equal(mapped.pooled.read(3, 12, 1), resident.views[3:12, :1])


def test_hdf5_is_mapped_without_a_copy_and_parquet_is_copied_once(tmp_path) -> None:
    hdf5 = write_store(tmp_path / "d/features/hdf5")
    FeatureStore.load(hdf5, is_mapped=True)
    assert not (hdf5 / MAPPED).exists()
    parquet = write_store(tmp_path / "d/features/parquet", ".parquet")
    copies = []
    for _ in range(2):
        FeatureStore.load(parquet, is_mapped=True)
        paths = sorted((parquet / MAPPED).glob("part-*"))
        copies.append([(path.name, path.stat().st_mtime_ns) for path in paths])
    assert copies[0] == copies[1]
    assert [name for name, _ in copies[0]] == ["part-00000.h5", "part-00002.h5", "part-00003.h5"]


def test_copies_of_parquet_shards_follow_their_content(tmp_path) -> None:
    directory = write_store(tmp_path / "d/features/f", ".parquet")
    FeatureStore.load(directory, is_mapped=True)
    write_store(directory, ".parquet", seed=1)  # the same fingerprints
    copy = directory / MAPPED / "part-00000.h5"
    for damage in (lambda: None, lambda: copy.write_bytes(copy.read_bytes()[:-9] + b"\1" * 9)):
        damage()
        mapped = FeatureStore.load(directory, is_mapped=True)
        assert torch.equal(mapped.views, FeatureStore.load(directory).views)


def test_file_that_shrinks_is_reported(tmp_path) -> None:
    directory = write_store(tmp_path / "d/features/f")
    mapped = FeatureStore.load(directory, is_mapped=True)
    (directory / "part-00002.h5").write_bytes(b"")
    with pytest.raises(BadShardError, match="part-00002"):
        mapped.read(0, 7)
    with pytest.raises(BadShardError, match="part-00002"):
        mapped.gather(torch.tensor([5]))


def test_mapping_a_shard_reads_none_of_its_features(tmp_path) -> None:
    directory = write_store(tmp_path / "d/features/f", num_views=2)
    mapped = read_shard(directory / "part-00000.h5", is_verified=True, is_mapped=True)
    shard = read_shard(directory / "part-00000.h5")
    for name in ("features", "views"):
        assert isinstance(getattr(mapped, name), np.memmap)
        np.testing.assert_array_equal(getattr(mapped, name), getattr(shard, name))
    assert mapped.crc32 == shard.crc32
