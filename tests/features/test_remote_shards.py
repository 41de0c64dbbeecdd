import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from showtell.features.config import FeaturesConfig
from showtell.features.engines.local import LocalEngine
from showtell.features.extract import extract
from showtell.features.layout import features_dir
from showtell.pipeline.stage.errors import MissingArtifactError, StorageError
from showtell.pipeline.stage.manifest import Manifest

NUM_SHARDS = 3


@pytest.fixture
def config(scenes, random_weights) -> FeaturesConfig:
    """The options of the features that `scenes` has, which are deleted."""
    config = FeaturesConfig(
        data=scenes,
        dataset="scenes",
        encoder="resnet18",
        weights=str(random_weights),
        image_size=64,
        shard_size=25,
        precision="fp32",
    )
    shutil.rmtree(features_dir(config))
    return config


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """Names of the shards that are computed."""
    names: list[str] = []
    compute = LocalEngine.compute

    def record(self, images, jobs, directory, watch):
        names.extend(job.name for job in jobs)
        return compute(self, images, jobs, directory, watch)

    monkeypatch.setattr(LocalEngine, "compute", record)
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


@pytest.mark.parametrize("grid", [False, True])
def test_stored_shards_are_fetched_instead_of_computed(tmp_path, config, computed, grid):
    plain = replace(config, grid=grid)
    first = extract(plain)
    expected = contents(features_dir(config))
    stored = replace(plain, store=str(tmp_path / "store"))
    for name in (0, NUM_SHARDS):  # computed and stored, then fetched
        shutil.rmtree(features_dir(config))
        computed.clear()
        manifest = extract(stored)
        assert len(computed) == NUM_SHARDS - name
        assert contents(features_dir(config)) == expected
        fingerprints = manifest.details["fingerprints"]
        assert fingerprints == first.details["fingerprints"]
        assert (manifest.outputs, manifest.checksums) == (first.outputs, first.checksums)
    folder = tmp_path / "store/scenes" / features_dir(config).name
    assert contents(folder) == expected
    assert sorted(contents(folder)) == sorted(path.name for path in folder.iterdir())


def test_damaged_missing_and_outdated_shards_are_computed_again(tmp_path, config, computed):
    stored = replace(config, store=str(tmp_path / "store"))
    extract(stored)
    expected = contents(features_dir(config))
    folder = tmp_path / "store/scenes" / features_dir(config).name
    damaged = bytearray(expected["part-00000.h5"])
    damaged[len(damaged) // 2] ^= 1
    (folder / "part-00000.h5").write_bytes(damaged)
    (folder / "part-00001.h5").unlink()
    shutil.rmtree(features_dir(config))
    computed.clear()
    extract(stored)
    assert computed == ["part-00000.h5", "part-00001.h5"]
    assert contents(features_dir(config)) == expected == contents(folder)
    computed.clear()
    extract(replace(stored, precision="bf16"))
    assert len(computed) == NUM_SHARDS  # of other options
    assert contents(folder) == contents(features_dir(config)) != expected


def test_bucket_holds_the_same_files(tmp_path, config, computed, upload):
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed/x").touch()
    stored = replace(config, store=f"{upload(tmp_path / 'seed')}/features")
    extract(stored)
    expected = contents(features_dir(config))
    shutil.rmtree(features_dir(config))
    computed.clear()
    extract(stored)
    assert computed == []
    assert contents(features_dir(config)) == expected


def test_store_in_a_bucket_that_does_not_exist_is_refused_at_once(config, computed, s3_server):
    with pytest.raises(MissingArtifactError, match=r"s3://none-1/x.* the bucket does not exist\."):
        extract(replace(config, store="s3://none-1/x"))
    assert computed == []


def test_store_that_cannot_be_written_is_one_line(tmp_path, config):
    store = tmp_path / "file"
    store.touch()
    with pytest.raises(StorageError, match=r"file/scenes.*could not be written|cannot be read"):
        extract(replace(config, store=str(store)))
    assert Manifest.read(features_dir(config)) is None
