import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from showtell.features import grids as grids_module
from showtell.features import listed_shards
from showtell.features.grids import GridWriter, grid_name
from showtell.features.shards import FeatureShard, read_shard, write_shard
from showtell.features.store import FeatureStore, find_features
from showtell.pipeline.captions import write_images
from showtell.pipeline.datasets.records import ImageRecord
from showtell.pipeline.stage import manifest as manifest_module
from showtell.pipeline.stage.checksums import checksum_of_file, checksums_of
from showtell.pipeline.stage.errors import (
    BadShardError,
    DamagedFileError,
    MismatchError,
    MissingArtifactError,
)
from showtell.pipeline.stage.files import hash_file
from showtell.pipeline.stage.manifest import Manifest

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
        shard = FeatureShard(
            np.array(ids[rows], np.int64), features[rows], skipped, f"{index}" * 64
        )
        write_shard(path, shard)
        outputs[path.name] = path.stat().st_size
        fingerprints[path.name] = shard.fingerprint
    table = write_table(data, [*ids, *SKIPPED])
    Manifest(
        stage="features",
        version=1,
        config={"encoder": "resnet50", "weights": "caffe", "format": "hdf5", "image_size": None},
        inputs={"captions/images.parquet": hash_file(table), "images": "", "weights": ""},
        outputs=outputs,
        counts={"num_images": len(ids), "num_skipped": 2, "feature_dim": WIDTH, "num_shards": 2},
        details={"weights": "caffe", "transform": {}, "fingerprints": fingerprints},
    ).write(directory)
    return directory


def add_checksums(directory: Path) -> None:
    manifest = Manifest.read(directory)
    replace(manifest, checksums=checksums_of(directory, manifest.outputs)).write(directory)


def flip(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


def add_extras(directory: Path, num_views: int = 3, num_cells: int | None = 4) -> np.ndarray:
    """Add views and grid features to written features, which become the mean of the grid.

    Returns:
        (N, V, P, D) float16, the grid features.
    """
    manifest = Manifest.read(directory)
    rng, parts, outputs = np.random.default_rng(1), [], {}
    for name in sorted(manifest.outputs):
        shard = read_shard(directory / name)
        shape = (len(shard.image_ids), num_views, num_cells or 1, WIDTH)
        parts.append(rng.normal(size=shape).astype(np.float16))
        pooled = parts[-1].astype(np.float32).mean(2).astype(np.float16)
        more = pooled[:, 1:] if num_views > 1 else None
        shard = replace(shard, features=pooled[:, 0], views=more)
        if num_cells:
            writer = GridWriter(directory / grid_name(name), shape[1:])
            writer.append(parts[-1])
            shard = replace(shard, grid_crc32=writer.publish())
            outputs[grid_name(name)] = (directory / grid_name(name)).stat().st_size
        write_shard(directory / name, shard)
        outputs[name] = (directory / name).stat().st_size
    counts = {"num_views": num_views} | ({"grid_places": num_cells} if num_cells else {})
    config = {"views": num_views} | ({"grid": True} if num_cells else {})
    replace(
        manifest,
        outputs=outputs,
        counts=manifest.counts | counts,
        config=manifest.config | config,
    ).write(directory)
    return np.concatenate(parts)


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_store_contains_every_shard_in_order(tmp_path, suffix):
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


def test_rows_of_an_empty_list_are_empty(tmp_path):
    store = FeatureStore.load(write_features(tmp_path))
    assert store.rows([]).shape == (0,)
    assert store.rows([]).dtype == torch.int64
    assert store.has([]).shape == (0,)


def test_has_is_false_for_skipped_and_unknown_images(tmp_path):
    store = FeatureStore.load(write_features(tmp_path))
    asked = [3, 4, 9, 2**33 + 4, -1, 2**40]
    assert store.has(asked).tolist() == [True, False, False, True, False, False]


def test_rows_of_a_skipped_image_raise_its_reason(tmp_path):
    store = FeatureStore.load(write_features(tmp_path))
    with pytest.raises(MismatchError, match=r"no features of 1 images, e\.g\. 4: the file is emp"):
        store.rows([3, 4])


def test_rows_of_another_dataset_raise_with_the_command(tmp_path):
    store = FeatureStore.load(write_features(tmp_path))
    message = (
        r"resnet50-caffe has no features of 2 images, e\.g\. 6.*belong to another dataset.*"
        r"Run 'showtell features --dataset tiny --weights caffe "
    )
    with pytest.raises(MismatchError, match=message):
        store.rows([3, 6, 7, 6])


def test_features_of_another_image_list_are_refused(tmp_path):
    directory = write_features(tmp_path)
    write_table(tmp_path, [1, 2])
    message = "another image list.*Run 'showtell features --dataset tiny"
    with pytest.raises(MismatchError, match=message):
        FeatureStore.load(directory)


def test_features_load_without_captions(tmp_path):
    directory = write_features(tmp_path)
    (tmp_path / DATASET / "captions/images.parquet").unlink()
    assert len(FeatureStore.load(directory).image_ids) == 5


def test_folder_without_a_manifest_is_an_error_with_the_command(tmp_path):
    directory = write_features(tmp_path)
    (directory / "manifest.json").unlink()
    message = r"manifest\.json does not exist\. Run 'showtell features --dataset tiny"
    with pytest.raises(MissingArtifactError, match=message):
        FeatureStore.load(directory)


def test_missing_shard_is_an_error_with_the_command(tmp_path):
    directory = write_features(tmp_path)
    (directory / "part-00001.h5").unlink()
    with pytest.raises(
        MissingArtifactError, match=r"part-00001\.h5 does not exist.*showtell features"
    ):
        FeatureStore.load(directory)


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_damaged_shard_is_reported(tmp_path, suffix):
    directory = write_features(tmp_path, suffix=suffix)
    path = directory / f"part-00001{suffix}"
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))
    with pytest.raises(BadShardError, match=rf"{path.name} is damaged.*showtell features"):
        FeatureStore.load(directory)


def test_shard_of_another_width_is_reported(tmp_path):
    directory = write_features(tmp_path)
    manifest = Manifest.read(directory)
    replace(manifest, counts=manifest.counts | {"feature_dim": 2048}).write(directory)
    message = "part-00000.h5 is damaged: 'features' is (3, 6) float16, expected (3, 2048) float16."
    with pytest.raises(BadShardError, match=re.escape(message)):
        FeatureStore.load(directory)


def test_shard_of_other_weights_is_reported(tmp_path):
    directory = write_features(tmp_path)
    shard = read_shard(directory / "part-00001.h5")
    write_shard(directory / "part-00001.h5", replace(shard, fingerprint="f" * 64))
    with pytest.raises(BadShardError, match=r"part-00001\.h5.*not what manifest\.json lists"):
        FeatureStore.load(directory)


@pytest.mark.parametrize("num_images", [4, 6])
def test_wrong_number_of_images_is_reported(tmp_path, num_images):
    directory = write_features(tmp_path)
    manifest = Manifest.read(directory)
    replace(manifest, counts=manifest.counts | {"num_images": num_images}).write(directory)
    with pytest.raises(
        DamagedFileError, match=rf"exactly its {num_images} images.*showtell features"
    ):
        FeatureStore.load(directory)


def make_older(directory: Path, seconds: float) -> None:
    path = directory / "manifest.json"
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_newest_features_are_found_and_named(tmp_path, capsys):
    for age, name in enumerate(["a-x", "c-x", "b-x"]):
        make_older(write_features(tmp_path, name), age * 100)
    root = tmp_path / DATASET
    assert find_features(root).name == "a-x"
    said = "Using the newest features, a-x; choose others with --features."
    assert said in " ".join(capsys.readouterr().err.split())
    (root / "features/a-x/manifest.json").unlink()  # never finished
    assert find_features(root).name == "c-x"
    assert find_features(root, "b-x") == root / "features/b-x"
    shutil.rmtree(root / "features/c-x")
    capsys.readouterr()
    assert find_features(root).name == "b-x" and capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["missing shard", "short shard", "manifest", "zeroed manifest"])
def test_others_are_not_taken_if_the_newest_features_are_damaged(tmp_path, damage):
    make_older(write_features(tmp_path, "a-x"), 100)
    newest = write_features(tmp_path, "b-x")
    shard, manifest = newest / "part-00000.h5", newest / "manifest.json"
    if damage == "missing shard":
        shard.unlink()
    elif damage == "short shard":
        shard.write_bytes(shard.read_bytes()[:100])
    else:
        size = manifest.stat().st_size
        manifest.write_bytes(bytes(size) if damage[0] == "z" else manifest.read_bytes()[:-9])
    with pytest.raises((MissingArtifactError, DamagedFileError), match=r"b-x/.* Run '.*features"):
        find_features(tmp_path / DATASET)


def test_unknown_name_error_lists_the_available_features(tmp_path):
    for name in ("b-x", "a-x"):
        write_features(tmp_path, name)
    message = r"resnet50-caffe has no finished features. Available features: a-x, b-x\. Run"
    with pytest.raises(MissingArtifactError, match=message):
        find_features(tmp_path / DATASET, "resnet50-caffe")


def test_dataset_without_features_is_an_error_with_the_command(tmp_path):
    message = r"no finished features\. Run 'showtell features --dataset tiny --data .*' first"
    with pytest.raises(MissingArtifactError, match=message):
        find_features(tmp_path / DATASET, None)


def test_features_without_extras_have_one_view_without_a_copy(tmp_path):
    store = FeatureStore.load(write_features(tmp_path))
    assert store.num_views == 1
    assert store.views.shape == (5, 1, WIDTH)
    assert store.views.data_ptr() == store.features.data_ptr()
    assert store.grid_shape is None
    digest = hashlib.sha256(np.array(IDS, np.int64).tobytes() + store.features.numpy().tobytes())
    assert store.sha256 == digest.hexdigest()
    message = r"has no grid features\. Run 'showtell features .*--weights caffe --grid --data "
    with pytest.raises(MissingArtifactError, match=message):
        store.gather_grid(store.rows([3]))


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_store_contains_all_views(tmp_path, suffix):
    directory = write_features(tmp_path, suffix=suffix)
    grids = add_extras(directory, num_cells=None)
    store = FeatureStore.load(directory)
    assert store.num_views == 3
    assert store.views.dtype == torch.float16
    np.testing.assert_array_equal(store.views.numpy(), grids[:, :, 0])
    assert torch.equal(store.features, store.views[:, 0])
    assert store.grid_shape is None


def test_grids_are_gathered_from_memory_maps_in_any_order(tmp_path):
    directory = write_features(tmp_path)
    grids = add_extras(directory)
    store = FeatureStore.load(directory)
    assert store.grid_shape == (4, WIDTH)
    assert all(isinstance(grid, np.memmap) for grid in store.grids.maps)
    rows, views = torch.tensor([4, 0, 2, 3, 0, 4]), torch.tensor([1, 0, 2, 0, 2, 1])
    gathered = store.gather_grid(rows, views)
    assert gathered.dtype == torch.float16
    expected = [grids[row, view] for row, view in zip(rows, views, strict=True)]
    np.testing.assert_array_equal(gathered.numpy(), np.stack(expected))
    np.testing.assert_array_equal(store.gather_grid(rows).numpy(), grids[rows.numpy(), 0])
    assert store.gather_grid(rows[:0]).shape == (0, 4, WIDTH)


def test_grids_of_a_shard_without_rows_are_empty(tmp_path):
    directory = write_features(tmp_path, ids=[3, 5, 8])  # the second shard is empty
    grids = add_extras(directory)
    store = FeatureStore.load(directory)
    np.testing.assert_array_equal(store.gather_grid(torch.tensor([2, 0])), grids[[2, 0], 0])


def test_sha256_depends_on_views_and_grids(tmp_path):
    hashes = []
    for name, extras in {"a": (1, 4), "b": (3, None), "c": (3, 4), "d": (3, 4)}.items():
        directory = write_features(tmp_path, name)
        add_extras(directory, *extras)
        hashes.append(FeatureStore.load(directory).sha256)
    hashes.append(FeatureStore.load(write_features(tmp_path, "e")).sha256)
    assert len(set(hashes)) == 4
    assert hashes[2] == hashes[3]


def test_missing_grid_is_an_error_with_the_command(tmp_path):
    directory = write_features(tmp_path)
    add_extras(directory)
    (directory / "part-00001.grid.npy").unlink()
    message = r"part-00001\.grid\.npy does not exist.*showtell features"
    with pytest.raises(MissingArtifactError, match=message):
        FeatureStore.load(directory)


def test_grid_of_another_shard_is_reported(tmp_path):
    directory = write_features(tmp_path, ids=[*IDS, 2**33 + 5])  # two shards of three
    add_extras(directory)
    (directory / "part-00000.grid.npy").replace(directory / "part-00001.grid.npy")
    content = (directory / "part-00001.grid.npy").read_bytes()
    (directory / "part-00000.grid.npy").write_bytes(content)
    with pytest.raises(BadShardError, match=r"part-00001\.grid\.npy is damaged: row 0 does"):
        FeatureStore.load(directory)


def test_suggested_command_includes_views_and_grids(tmp_path):
    directory = write_features(tmp_path)
    add_extras(directory)
    write_table(tmp_path, [1, 2])
    with pytest.raises(MismatchError, match=r"--views 3 --grid --data .*'"):
        FeatureStore.load(directory)


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_flipped_bit_anywhere_in_a_shard_is_refused(tmp_path, suffix):
    directory = write_features(tmp_path, suffix=suffix)
    add_checksums(directory)
    path = directory / f"part-00001{suffix}"
    content = path.read_bytes()
    for position in range(0, len(content), 97):
        path.write_bytes(flip(content, position))
        with pytest.raises(DamagedFileError, match=f"{path.name} is damaged: its content does not"):
            FeatureStore.load(directory)


def test_damaged_image_list_is_not_taken_for_another_one(tmp_path):
    directory = write_features(tmp_path)
    captions_dir = tmp_path / DATASET / "captions"
    path = captions_dir / "images.parquet"
    content = path.read_bytes()
    outputs, checksums = {path.name: len(content)}, checksums_of(captions_dir, [path.name])
    config = {"vocab": "words"}
    details = {"source": "photos"}
    manifest = Manifest("prepare", 1, config, {}, outputs, checksums=checksums, details=details)
    manifest.write(captions_dir)
    assert FeatureStore.load(directory)
    for position in range(0, len(content), 37):
        path.write_bytes(flip(content, position))
        with pytest.raises(DamagedFileError, match=r"images\.parquet is.*Run 'showtell prepare "):
            FeatureStore.load(directory)


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_flipped_bit_anywhere_in_a_grid_is_refused_when_it_is_read(tmp_path, suffix):
    directory = write_features(tmp_path, suffix=suffix)
    grids = add_extras(directory)
    path = directory / "part-00001.grid.npy"
    content = path.read_bytes()
    num_refused = 0
    for position in range(0, len(content), 11):
        path.write_bytes(flip(content, position))
        try:
            gathered = FeatureStore.load(directory).gather_grid(torch.arange(5))
        except BadShardError as error:
            assert f"Run 'rm -f {path} && showtell features " in str(error)
            num_refused += 1
        else:  # in the padding of NumPy's header
            np.testing.assert_array_equal(gathered.numpy(), grids[:, 0])
            assert position < 128
    assert num_refused > len(content[128:]) // 11


def test_row_of_a_grid_is_verified_only_once(tmp_path, monkeypatch):
    directory = write_features(tmp_path)
    add_extras(directory)
    store = FeatureStore.load(directory)
    checked = []
    monkeypatch.setattr(grids_module, "check_row", lambda _, row, crc32: checked.append(crc32))
    for _ in range(3):
        store.gather_grid(torch.tensor([4, 1, 4]))
    assert sorted(checked) == sorted(store.grids.crc32[[1, 4]])


@pytest.mark.parametrize(
    "part, key",
    [
        ("counts", "num_images"),
        ("counts", "feature_dim"),
        ("details", "fingerprints"),
        ("details", "weights"),
        ("details", "transform"),
        ("inputs", "captions/images.parquet"),
        ("inputs", "weights"),
        ("config", "encoder"),
    ],
)
def test_manifest_without_an_entry_is_damaged(tmp_path, part, key):
    directory = write_features(tmp_path)
    manifest = Manifest.read(directory)
    values = {name: value for name, value in getattr(manifest, part).items() if name != key}
    replace(manifest, **{part: values}).write(directory)
    with pytest.raises(DamagedFileError, match=rf"manifest\.json is damaged: it has no '{key}'"):
        _ = FeatureStore.load(directory).backbone


def test_damaged_manifest_is_not_called_missing(tmp_path):
    directory = write_features(tmp_path)
    path = directory / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"resnet50", b"resnet51"))
    with pytest.raises(DamagedFileError, match=r"manifest\.json is damaged.*showtell features"):
        find_features(tmp_path / DATASET, directory.name)


def test_each_shard_is_verified_once_and_just_before_it_is_read(tmp_path, monkeypatch):
    directory = write_features(tmp_path)
    add_checksums(directory)
    events = []

    def verify(path: Path) -> str:
        events.append(("verify", path.name))
        return checksum_of_file(path)

    def read(path: Path, *args, **options) -> FeatureShard:
        events.append(("read", path.name))
        return read_shard(path, *args, **options)

    for module in (manifest_module, listed_shards):
        monkeypatch.setattr(module, "checksum_of_file", verify)
    monkeypatch.setattr(listed_shards, "read_shard", read)
    FeatureStore.load(directory)
    names = ("part-00000.h5", "part-00001.h5")
    assert events == [(event, name) for name in names for event in ("verify", "read")]
