import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from showtell.features.shards import FeatureShard, read_shard, write_shard
from showtell.features.store import FeatureStore, find_features
from showtell.pipeline.captions import write_images
from showtell.pipeline.datasets import ImageRecord
from showtell.pipeline.errors import BadShardError, MismatchError, MissingArtifactError
from showtell.pipeline.manifest import Manifest, hash_file

IDS = [3, 5, 8, 2**33, 2**33 + 4]
SKIPPED = {4: "the file is empty", 9: "does not exist"}
WIDTH = 6
DATASET = "tiny"


def write_table(data: Path, ids: list[int]) -> Path:
    path = data / DATASET / "captions/images.parquet"
    write_images(path, [ImageRecord(i, f"{i}.jpg", "train", ("a",)) for i in ids])
    return path


def write_features(
    data: Path, name: str = "resnet50-caffe", suffix: str = ".h5", ids: list[int] | None = None
) -> Path:
    """Write two shards, of three images and of the rest, with their manifest."""
    ids = ids or IDS
    directory = data / DATASET / "features" / name
    features = np.random.default_rng(0).normal(size=(len(ids), WIDTH)).astype(np.float16)
    outputs, fingerprints = {}, {}
    for index, rows in enumerate((slice(0, 3), slice(3, None))):
        path = directory / f"part-{index:05}{suffix}"
        skipped = (list(SKIPPED.items())[index],)
        shard = FeatureShard(np.array(ids[rows]), features[rows], skipped, f"{index}" * 64)
        write_shard(path, shard)
        outputs[path.name] = path.stat().st_size
        fingerprints[path.name] = shard.fingerprint
    table = write_table(data, [*ids, *SKIPPED])
    Manifest(
        stage="features",
        version=1,
        config={"encoder": "resnet50", "weights": "caffe", "format": "hdf5", "image_size": None},
        inputs={"captions/images.parquet": hash_file(table)},
        outputs=outputs,
        counts={"num_images": len(ids), "num_skipped": 2, "feature_dim": WIDTH, "num_shards": 2},
        details={"weights": "caffe", "fingerprints": fingerprints},
    ).write(directory)
    return directory


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_store_holds_every_shard_in_order(tmp_path, suffix):
    directory = write_features(tmp_path, suffix=suffix)
    store = FeatureStore.load(directory)
    shards = [read_shard(path) for path in sorted(directory.glob("part-*"))]
    assert store.image_ids.tolist() == IDS
    assert store.image_ids.dtype == torch.int64
    assert store.features.dtype == torch.float16
    assert store.features.shape == (5, WIDTH)
    assert store.feature_dim == WIDTH
    assert store.skipped == SKIPPED
    assert store.directory == directory
    np.testing.assert_array_equal(
        store.features.numpy(), np.concatenate([shard.features for shard in shards])
    )


def test_store_is_the_same_from_both_formats(tmp_path):
    stores = [FeatureStore.load(write_features(tmp_path, s, s)) for s in (".h5", ".parquet")]
    assert torch.equal(stores[0].features, stores[1].features)
    assert torch.equal(stores[0].image_ids, stores[1].image_ids)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_rows_find_every_image_in_any_order(tmp_path, kind):
    store = FeatureStore.load(write_features(tmp_path))
    wanted = [IDS[4], IDS[0], IDS[0], IDS[2]]
    rows = store.rows(kind(wanted))
    assert rows.dtype == torch.int64
    assert rows.tolist() == [4, 0, 0, 2]
    assert store.image_ids[rows].tolist() == wanted


def test_rows_equal_a_plain_lookup(tmp_path):
    rng = np.random.default_rng(1)
    ids = sorted(rng.choice(10**6, 2000, replace=False).tolist())
    store = FeatureStore.load(write_features(tmp_path, ids=ids))
    table = {image_id: row for row, image_id in enumerate(ids)}
    wanted = rng.choice(ids, 5000)
    assert store.rows(wanted).tolist() == [table[image_id] for image_id in wanted.tolist()]
    asked = rng.integers(-10, 10**6 + 10, 5000)
    assert store.has(asked).tolist() == [image_id in table for image_id in asked.tolist()]


def test_rows_of_nothing_are_nothing(tmp_path):
    store = FeatureStore.load(write_features(tmp_path))
    assert store.rows([]).shape == (0,)
    assert store.rows([]).dtype == torch.int64
    assert store.has([]).shape == (0,)


def test_has_leaves_out_skipped_and_foreign_images(tmp_path):
    store = FeatureStore.load(write_features(tmp_path))
    asked = [3, 4, 9, 2**33 + 4, -1, 2**40]
    assert store.has(asked).tolist() == [True, False, False, True, False, False]


def test_rows_of_a_skipped_image_tell_why(tmp_path):
    store = FeatureStore.load(write_features(tmp_path))
    with pytest.raises(MismatchError, match=r"no features of 1 images, e\.g\. 4: the file is emp"):
        store.rows([3, 4])


def test_rows_of_another_dataset_name_the_command(tmp_path):
    store = FeatureStore.load(write_features(tmp_path))
    message = (
        r"resnet50-caffe has no features of 2 images, e\.g\. 6.*belong to another dataset.*"
        r"Run 'showtell features --dataset tiny --encoder resnet50 --weights caffe --format hdf5'"
    )
    with pytest.raises(MismatchError, match=message):
        store.rows([3, 6, 7, 6])


def test_features_of_another_image_list_are_refused(tmp_path):
    directory = write_features(tmp_path)
    write_table(tmp_path, [1, 2])
    message = "another image list.*Run 'showtell features --dataset tiny --encoder resnet50"
    with pytest.raises(MismatchError, match=message):
        FeatureStore.load(directory)


def test_features_load_without_their_captions(tmp_path):
    directory = write_features(tmp_path)
    (tmp_path / DATASET / "captions/images.parquet").unlink()
    assert len(FeatureStore.load(directory).image_ids) == 5


def test_folder_without_a_manifest_names_the_command(tmp_path):
    directory = write_features(tmp_path)
    (directory / "manifest.json").unlink()
    message = r"manifest\.json does not exist\. Run 'showtell features --dataset tiny' first"
    with pytest.raises(MissingArtifactError, match=message):
        FeatureStore.load(directory)


def test_missing_shard_names_the_command(tmp_path):
    directory = write_features(tmp_path)
    (directory / "part-00001.h5").unlink()
    with pytest.raises(MissingArtifactError, match=r"part-00001\.h5 is missing.*showtell features"):
        FeatureStore.load(directory)


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_damaged_shard_is_reported(tmp_path, suffix):
    directory = write_features(tmp_path, suffix=suffix)
    path = directory / f"part-00001{suffix}"
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))
    with pytest.raises(BadShardError, match=rf"{path.name}.*Delete it and run 'showtell features'"):
        FeatureStore.load(directory)


def test_shard_of_another_width_is_reported(tmp_path):
    directory = write_features(tmp_path)
    manifest = Manifest.read(directory)
    replace(manifest, counts=manifest.counts | {"feature_dim": 2048}).write(directory)
    message = "part-00000.h5: 'features' is (3, 6) float16, expected (3, 2048) float16."
    with pytest.raises(BadShardError, match=re.escape(message)):
        FeatureStore.load(directory)


def test_shard_of_other_weights_is_reported(tmp_path):
    directory = write_features(tmp_path)
    shard = read_shard(directory / "part-00001.h5")
    write_shard(directory / "part-00001.h5", replace(shard, fingerprint="f" * 64))
    with pytest.raises(BadShardError, match=r"part-00001\.h5.*not the shard that manifest\.json"):
        FeatureStore.load(directory)


@pytest.mark.parametrize(("num_images", "problem"), [(4, "not the shard"), (6, "hold 5 images")])
def test_count_that_does_not_fit_is_reported(tmp_path, num_images, problem):
    directory = write_features(tmp_path)
    manifest = Manifest.read(directory)
    replace(manifest, counts=manifest.counts | {"num_images": num_images}).write(directory)
    with pytest.raises(BadShardError, match=rf"{problem}.*showtell features"):
        FeatureStore.load(directory)


def make_older(directory: Path, seconds: float) -> None:
    path = directory / "manifest.json"
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_newest_complete_features_are_found(tmp_path):
    for age, name in enumerate(["a-x", "c-x", "b-x"]):
        make_older(write_features(tmp_path, name), age * 100)
    root = tmp_path / DATASET
    assert find_features(root, None).name == "a-x"
    (root / "features/a-x/part-00000.h5").unlink()
    assert find_features(root, None).name == "c-x"
    (root / "features/c-x/manifest.json").unlink()
    assert find_features(root) == root / "features/b-x"
    assert find_features(root, "b-x") == root / "features/b-x"


def test_features_of_an_unknown_name_list_those_there_are(tmp_path):
    for name in ("b-x", "a-x"):
        write_features(tmp_path, name)
    message = r"resnet50-caffe holds no finished features; there are: a-x, b-x\. Run 'showtell f"
    with pytest.raises(MissingArtifactError, match=message):
        find_features(tmp_path / DATASET, "resnet50-caffe")


def test_dataset_without_features_names_the_command(tmp_path):
    message = r"no finished features\. Run 'showtell features --dataset tiny' first"
    with pytest.raises(MissingArtifactError, match=message):
        find_features(tmp_path / DATASET, None)
