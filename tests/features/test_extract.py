import errno
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet50

from showtell.features import extract as stage
from showtell.features import plan
from showtell.features.config import FeaturesConfig
from showtell.features.encoders import hub, torchvision_models
from showtell.features.encoders.torchvision_models import TorchvisionModels
from showtell.features.engines import local
from showtell.features.extract import extract
from showtell.features.grids import grid_name
from showtell.features.layout import features_dir
from showtell.features.reading import workers
from showtell.features.reading.decode import decode_image
from showtell.features.reading.transform import Transform
from showtell.features.reading.views import VIEWS
from showtell.features.shards import FeatureShard, read_shard, write_shard
from showtell.features.store import FeatureStore
from showtell.pipeline.captions import read_images, write_images
from showtell.pipeline.datasets.records import ImageRecord
from showtell.pipeline.images.image_files import ImageFiles
from showtell.pipeline.stage.checksums import checksums_of
from showtell.pipeline.stage.errors import (
    ConfigError,
    DamagedFileError,
    DatasetError,
    MissingArtifactError,
    ShowTellError,
    StorageError,
)
from showtell.pipeline.stage.files import hash_json, locked
from showtell.pipeline.stage.manifest import Manifest

NUM_IMAGES, SHARD_SIZE, BATCH_SIZE = 22, 8, 3
EXTRAS = {"views": 2, "batch_size": 2 * BATCH_SIZE, "grid": True}  # as many batches as without
TRANSFORM = Transform(6, None, "bilinear", (0.5,) * 3, (0.5,) * 3)


class FakeBackbone:
    """A network whose features are the mean and the contrast of each channel."""

    transform = TRANSFORM
    feature_dim = 6
    num_cells, grid_dim = 4, 6
    name = "fake-net"
    weights_sha256 = "5" * 64

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.num_images = 0
        self.num_loads = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.uint8
        assert len(pixels)
        self.num_images += len(pixels)
        values = pixels.float()
        return torch.cat([values.mean((2, 3)), values.std((2, 3))], 1) * self.scale

    def pool_and_grid(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self(pixels), fake_grid(pixels) * self.scale

    def require_grid(self) -> None:
        if not self.num_cells:
            raise ConfigError("fake-net has no grid")

    def load(self, *args: object) -> "FakeBackbone":
        self.num_loads += 1
        return self


def fake_grid(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, 6, 6) → (B, 4, 6) float32: mean and contrast in each quarter."""
    quarters = pixels.float().unfold(2, 3, 3).unfold(3, 3, 3).flatten(4)  # (B, 3, 2, 2, 9)
    cells = torch.cat([quarters.mean(4), quarters.std(4)], 1)
    return cells.flatten(2).transpose(1, 2)


class StoppingBackbone(FakeBackbone):
    """A backbone that raises `error`, or kills the process, in its call number `stop_at`."""

    def __init__(self, stop_at: int, error: BaseException | None) -> None:
        super().__init__()
        self.left, self.error = stop_at, error

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left <= 0:
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise self.error or AssertionError
        return super().__call__(pixels)


@pytest.fixture
def network(monkeypatch) -> FakeBackbone:
    return use(FakeBackbone(), monkeypatch)


def use(backbone: FakeBackbone, monkeypatch) -> FakeBackbone:
    monkeypatch.setattr(local, "load_backbone", backbone.load)
    return backbone


def make_config(data: Path) -> FeaturesConfig:
    return FeaturesConfig(
        data=data,
        dataset="tiny",
        encoder="resnet18",
        weights="IMAGENET1K_V1",  # a known name; the fake loads nothing
        shard_size=SHARD_SIZE,
        batch_size=BATCH_SIZE,
        num_workers=2,
        device="cpu",
        precision="fp32",
    )


def make_dataset(data: Path, count: int = NUM_IMAGES) -> FeaturesConfig:
    """Write images and the files that `prepare` would write for them."""
    rng = np.random.default_rng(7)
    source = data / "source"
    (source / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for index in rng.permutation(count).tolist():
        file_name = f"images/{index:03}.png"
        colors = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colors).resize((16, 16)).save(source / file_name)
        records.append(ImageRecord(index * 10, file_name, "train", ("an image",)))
    config = make_config(data)
    prepare(config, records)
    return config


def prepare(config: FeaturesConfig, records: list[ImageRecord], source: Path | None = None) -> None:
    write_images(config.captions_dir / "images.parquet", records)
    root = str(source or config.data / "source")
    Manifest("prepare", 1, {}, {}, {}, details={"source": root}).write(config.captions_dir)


def image_path(config: FeaturesConfig, index: int) -> Path:
    return config.data / "source" / f"images/{index:03}.png"


def read_all(config: FeaturesConfig) -> dict[int, bytes]:
    """image_id → bits of its features."""
    directory = features_dir(config)
    names = sorted(Manifest.read(directory).details["fingerprints"])
    shards = [read_shard(directory / name) for name in names]
    return {
        int(image_id): row.tobytes()
        for shard in shards
        for image_id, row in zip(shard.image_ids, shard.features, strict=True)
    }


def read_extras(config: FeaturesConfig) -> dict[int, tuple[bytes, bytes]]:
    """image_id → bits of all its views, and of its grids."""
    directory, found = features_dir(config), {}
    for name in sorted(Manifest.read(directory).details["fingerprints"]):
        shard = read_shard(directory / name)
        grids = np.load(directory / grid_name(name))
        assert len(grids) == len(shard.image_ids)
        for row, image_id in enumerate(shard.image_ids.tolist()):
            pooled = [shard.features[row], *shard.views[row]]
            found[image_id] = np.stack(pooled).tobytes(), grids[row].tobytes()
    return found


def contents(config: FeaturesConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(features_dir(config).glob("part-*"))}


def test_features_equal_a_plain_loop(tmp_path, network):
    config = make_dataset(tmp_path)
    manifest = extract(config)
    expected = {}
    for index in range(NUM_IMAGES):
        pixels = TRANSFORM(decode_image(image_path(config, index).read_bytes(), TRANSFORM))
        row = FakeBackbone()(torch.from_numpy(pixels.copy())[None])[0]
        expected[index * 10] = row.half().numpy().tobytes()
    assert read_all(config) == expected
    assert manifest.counts == {
        "num_images": 22,
        "num_skipped": 0,
        "feature_dim": 6,
        "num_shards": 3,
    }
    assert sorted(manifest.outputs) == [f"part-0000{index}.h5" for index in range(3)]
    assert manifest == Manifest.read(features_dir(config))
    assert manifest.details["transform"] == TRANSFORM.describe()
    assert Transform(**manifest.details["transform"]) == TRANSFORM
    assert manifest.details["images_per_second"] > 0
    assert set(manifest.details["shares"]) == {"read", "model", "write"}


def test_folder_is_named_after_encoder_and_weights(tmp_path):
    config = FeaturesConfig(data=tmp_path, dataset="tiny", encoder="resnet50", weights="caffe")
    assert features_dir(config) == tmp_path / "tiny/features/resnet50-caffe"
    (tmp_path / "mine.pth").touch()
    named = replace(config, weights=str(tmp_path / "mine.pth"))
    assert features_dir(named).name == "resnet50-mine"
    # Features of another image size do not replace these.
    assert features_dir(replace(config, image_size=288)).name == "resnet50-caffe-288"


def test_both_formats_are_equal_to_the_bit(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(config)
    hdf5 = read_all(config)
    manifest = extract(replace(config, format="parquet"))
    assert read_all(config) == hdf5
    assert sorted(contents(config)) == sorted(manifest.outputs)  # the .h5 files are gone
    assert all(name.endswith(".parquet") for name in manifest.outputs)


def test_zip_source_equals_folder_source(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(config)
    folder = read_all(config)
    with zipfile.ZipFile(tmp_path / "source/images.zip", "w") as archive:
        for path in sorted((tmp_path / "source/images").iterdir()):
            archive.write(path, f"images/{path.name}")
            path.unlink()
    (tmp_path / "source/images").rmdir()
    network.num_images = 0
    extract(config)
    assert network.num_images == NUM_IMAGES
    assert read_all(config) == folder


def test_huge_zip_members_are_skipped_with_the_reason(tmp_path, network):
    config = make_dataset(tmp_path)
    folder, archive = tmp_path / "source/images", tmp_path / "source/images.zip"
    names = sorted(path.name for path in folder.iterdir())[:3]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(names[0], bytes(5_000_003))
        zipped.writestr(names[1], bytes(5_000_001))
        zipped.write(folder / names[2], names[2])
    content = archive.read_bytes()
    for actual, recorded in ((5_000_003, 300 << 20), (5_000_001, 1000)):
        content = content.replace(struct.pack("<I", actual), struct.pack("<I", recorded))
    archive.write_bytes(content)
    for name in names:
        (folder / name).unlink()
    reasons = dict(extract(config).skipped)
    assert len(reasons) == 2
    first, second = reasons.values()
    assert "has 314,572,800 bytes, expected at most 268,435,456 for an image" in first
    assert "is damaged (wrong checksum)" in second


def test_second_run_does_no_work(tmp_path, network, monkeypatch, capsys):
    config = make_dataset(tmp_path)
    first = extract(config)
    before = {path: path.stat().st_mtime_ns for path in features_dir(config).iterdir()}

    def fail(*args: object) -> None:
        raise AssertionError("worked")

    monkeypatch.setattr(local, "load_backbone", fail)
    monkeypatch.setattr(plan, "read_shard", fail)
    monkeypatch.setattr(local, "write_shard", fail)
    monkeypatch.setattr(workers, "decode_opened", fail)
    monkeypatch.setattr(ImageFiles, "read", fail)
    capsys.readouterr()
    assert extract(config) == first
    assert extract(replace(config, precision="auto")) == first
    assert extract(replace(config, batch_size=7, num_workers=1, device="auto")) == first
    assert "up to date" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in features_dir(config).iterdir()} == before


def test_int8_features_of_an_earlier_version_stay_valid(tmp_path, network, capsys):
    config = make_dataset(tmp_path)
    auto, directory = replace(config, precision="auto"), features_dir(config)
    first = extract(config)
    old = replace(first, config=first.config | {"precision": "int8"}).write(directory)
    capsys.readouterr()
    assert extract(auto) == old
    assert "is up to date" in capsys.readouterr().out
    assert extract(config).config["precision"] == "fp32"


def test_preparing_with_another_vocabulary_keeps_the_features(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(config)
    prepared = Manifest.read(config.captions_dir)
    replace(prepared, config={"vocab_size": 99}, counts={"vocab_size": 99}).write(
        config.captions_dir
    )
    extract(config)
    assert network.num_loads == 1


@pytest.mark.parametrize(
    "change",
    [{"image_size": 4}, {"precision": "bf16"}, {"shard_size": 5}, {"format": "parquet"}],
)
def test_changed_option_recomputes_the_features(tmp_path, network, change):
    config = make_dataset(tmp_path)
    extract(config)
    changed = replace(config, **change)
    manifest = extract(changed)
    assert network.num_loads == 2
    assert manifest.config | change == manifest.config
    assert extract(changed) == manifest
    assert network.num_loads == 2


def test_features_of_deleted_images_are_kept(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(config)
    before = contents(config)
    for index in range(1, NUM_IMAGES):
        image_path(config, index).unlink()
    message = rf"{NUM_IMAGES - 1} of the {NUM_IMAGES} images no longer exist.*was not changed"
    for changed in (config, replace(config, format="parquet")):
        with pytest.raises(DatasetError, match=message):
            extract(changed)
    assert contents(config) == before


def test_misspelt_weights_leave_no_folder(tmp_path, network):
    config = make_dataset(tmp_path)
    for wrong in ({"weights": "IMAGNET"}, {"encoder": "resnet18", "weights": "caffe"}):
        with pytest.raises(ConfigError):
            extract(replace(config, **wrong))
    assert not features_dir(config).parent.exists()


def test_changed_weights_file_recomputes_the_features(tmp_path, network, monkeypatch):
    weights = tmp_path / "mine.pth"
    weights.write_bytes(b"one")
    config = replace(make_dataset(tmp_path), weights=str(weights))
    extract(config)
    extract(config)
    assert network.num_images == NUM_IMAGES
    weights.write_bytes(b"two")
    other = use(FakeBackbone(scale=0.5), monkeypatch)
    other.weights_sha256 = "6" * 64
    extract(config)
    assert other.num_images == NUM_IMAGES


def test_one_changed_image_recomputes_one_shard(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(config)
    before, files = read_all(config), contents(config)
    Image.new("RGB", (9, 9), "red").save(image_path(config, 10))
    network.num_images = 0
    extract(config)
    assert network.num_images == SHARD_SIZE
    after = read_all(config)
    assert [image_id for image_id in before if before[image_id] != after[image_id]] == [100]
    changed = [name for name, content in contents(config).items() if content != files[name]]
    assert changed == ["part-00001.h5"]


def test_added_images_recompute_only_their_shards(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(config)
    make_dataset(tmp_path, NUM_IMAGES + 4)
    for path in (tmp_path / "source/images").iterdir():
        os.utime(path, ns=(0, 0))
    extract(config)
    network.num_images = 0
    records = [
        ImageRecord(index * 10, f"images/{index:03}.png", "train", ("a",))
        for index in range(NUM_IMAGES + 4)
        if index != NUM_IMAGES + 2  # in the last shard
    ]
    prepare(config, records)
    manifest = extract(config)
    assert network.num_images == 1
    assert manifest.counts["num_images"] == NUM_IMAGES + 3
    assert len(read_all(config)) == NUM_IMAGES + 3


def test_images_with_swapped_ids_recompute_their_shard(tmp_path, network):
    config = make_dataset(tmp_path)
    for index in (2, 3):
        image = Image.new("RGB", (4, 4), (index, 0, 0))
        image.save(image_path(config, index), "BMP")  # of the same size
        os.utime(image_path(config, index), ns=(0, 0))
    extract(config)
    before = read_all(config)
    swap = {20: 30, 30: 20}
    records = [
        replace(record, image_id=swap.get(record.image_id, record.image_id))
        for record in list_records(config)
    ]
    prepare(config, records)
    network.num_images = 0
    extract(config)
    assert network.num_images == SHARD_SIZE
    after = read_all(config)
    assert (after[20], after[30]) == (before[30], before[20])


def test_images_with_other_ids_recompute_their_shard(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(config)
    before = read_all(config)
    records = [replace(r, image_id=max(r.image_id, 1)) for r in list_records(config)]
    prepare(config, records)
    network.num_images = 0
    extract(config)
    assert network.num_images == SHARD_SIZE
    assert read_all(config) == {max(image_id, 1): bits for image_id, bits in before.items()}


def resume_and_compare(killed: FeaturesConfig, tmp_path: Path, network: FakeBackbone) -> int:
    """Finish an interrupted run; returns the number of images that it computed."""
    assert Manifest.read(features_dir(killed)) is None
    network.num_images = 0
    extract(killed)
    num_images = network.num_images
    # Compare with a run over the same image files; their time stamps are part of the fingerprint.
    whole = replace(killed, dataset="whole")
    table_source = killed.data / "source"
    prepare(whole, list_records(killed), table_source)
    extract(whole)
    assert contents(killed) == contents(whole)
    assert not [p for p in features_dir(killed).iterdir() if "partial" in p.name]
    return num_images


def list_records(config: FeaturesConfig) -> list[ImageRecord]:
    table = read_images(config.captions_dir / "images.parquet")
    rows = zip(table.image_ids.tolist(), table.file_names, table.splits, strict=True)
    return [ImageRecord(image_id, name, split, ()) for image_id, name, split in rows]


def test_killed_extract_resumes_to_identical_shards_and_grids(tmp_path, network):
    config = replace(make_dataset(tmp_path), **EXTRAS)
    # 3 batches in each of the first two shards: killed in the second batch of the third shard,
    # when the first shard is certainly written.
    command = [sys.executable, __file__, str(tmp_path), "8"]
    killed = subprocess.run(command, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    kept = contents(config)
    shards = [name for name in kept if name.endswith(".h5")]
    assert "part-00000.h5" in shards
    assert len(shards) < 3
    for name in shards:
        read_shard(features_dir(config) / name)
    num_images = resume_and_compare(config, tmp_path, network)
    assert num_images == (NUM_IMAGES - SHARD_SIZE * len(shards)) * config.views


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
@pytest.mark.parametrize("stop_at", [1, 5, 8])
def test_interrupted_extract_resumes_to_identical_shards(tmp_path, monkeypatch, stop_at, error):
    config = make_dataset(tmp_path)
    use(StoppingBackbone(stop_at, error), monkeypatch)
    with pytest.raises(type(error)):
        extract(config)
    num_images = resume_and_compare(config, tmp_path, use(FakeBackbone(), monkeypatch))
    assert num_images == {1: 22, 5: 14, 8: 6}[stop_at]


def test_interrupted_recomputation_keeps_the_finished_features(tmp_path, network, monkeypatch):
    config = make_dataset(tmp_path)
    extract(config)
    before = contents(config)
    other = StoppingBackbone(8, RuntimeError("stopped"))
    other.weights_sha256 = "7" * 64
    changed = replace(config, precision="bf16")
    with pytest.raises(RuntimeError, match="stopped"):
        extract(use(other, monkeypatch) and changed)
    assert contents(config) == before
    assert extract(config).config["precision"] == "fp32"
    again = use(FakeBackbone(0.5), monkeypatch)
    again.weights_sha256 = "7" * 64
    extract(changed)
    assert again.num_images == 6  # the two staged shards were kept
    assert {path.name for path in features_dir(config).iterdir()} == {
        "manifest.json",
        ".manifest.json",
        ".lock",
        *before,
    }


def test_files_left_after_the_manifest_was_written_are_removed(tmp_path, network, monkeypatch):
    config = make_dataset(tmp_path)
    extract(config)
    changed = replace(config, format="parquet")
    with monkeypatch.context() as context:
        context.setattr(stage, "remove_stale", lambda *_: None)  # as if killed before
        extract(changed)
    names = {path.name for path in features_dir(config).iterdir()}
    assert {"part-00000.h5", "part-00000.parquet", ".next"} <= names
    with locked(features_dir(config)):
        extract(changed)  # up to date, but another process may need the files
    assert {path.name for path in features_dir(config).iterdir()} == names
    extract(changed)
    stale = {name for name in names if name.endswith(".h5")} | {".next"}
    assert {path.name for path in features_dir(config).iterdir()} == names - stale


def test_unreadable_images_are_listed_without_affecting_others(tmp_path, network, capsys):
    config = make_dataset(tmp_path)
    image_path(config, 9).unlink()
    extract(config)
    before = read_all(config)
    image_path(config, 1).write_bytes(b"no image")
    image_path(config, 10).write_bytes(image_path(config, 10).read_bytes()[:-40])
    capsys.readouterr()
    manifest = extract(config)
    after = read_all(config)
    assert set(before) - set(after) == {10, 100}
    assert all(before[image_id] == bits for image_id, bits in after.items())
    assert [name for name, _ in manifest.skipped] == [f"images/{i:03}.png" for i in (1, 9, 10)]
    assert manifest.counts["num_skipped"] == 3
    assert manifest.counts["num_images"] == NUM_IMAGES - 3
    shown = capsys.readouterr().out
    assert "images/009.png: does not exist" in shown
    network.num_loads = 0
    assert extract(config) == manifest
    assert network.num_loads == 0


def test_skipped_images_of_kept_shards_stay_listed(tmp_path, network):
    config = make_dataset(tmp_path)
    image_path(config, 1).write_bytes(b"no image")
    extract(config)
    Image.new("RGB", (9, 9)).save(image_path(config, 20))
    network.num_images = 0
    manifest = extract(config)
    assert network.num_images == 6
    assert [name for name, _ in manifest.skipped] == ["images/001.png"]


def test_shard_of_unreadable_images_only_is_empty(tmp_path, network):
    config = make_dataset(tmp_path)
    for index in range(SHARD_SIZE):
        image_path(config, index).write_bytes(b"no image")
    for format in ("hdf5", "parquet"):
        manifest = extract(replace(config, format=format))
        assert manifest.counts["num_images"] == NUM_IMAGES - SHARD_SIZE
        first = read_shard(features_dir(config) / min(manifest.outputs))
        assert first.features.shape == (0, 6)
        assert len(first.skipped) == SHARD_SIZE


def test_restored_image_is_used(tmp_path, network):
    config = make_dataset(tmp_path)
    content = image_path(config, 4).read_bytes()
    image_path(config, 4).unlink()
    assert extract(config).counts["num_skipped"] == 1
    image_path(config, 4).write_bytes(content)
    assert extract(config).counts["num_skipped"] == 0


def test_file_with_a_read_error_is_tried_again(tmp_path, network, monkeypatch):
    config = make_dataset(tmp_path)
    plain = ImageFiles.read

    def fail_once(self: ImageFiles, name: str) -> bytes:
        if name == "images/004.png":
            raise OSError(5, "Input/output error")
        return plain(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, "read", fail_once)
        manifest = extract(config)
    assert manifest.skipped == (("images/004.png", "cannot be read: Input/output error"),)
    network.num_images = 0
    assert extract(config).counts["num_skipped"] == 0
    assert network.num_images == 1


def test_dataset_without_a_readable_image_is_refused(tmp_path, network):
    config = make_dataset(tmp_path)
    for index in range(NUM_IMAGES):
        image_path(config, index).write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"none of the 22 images.*images/000.png: not an image"):
        extract(config)
    assert Manifest.read(features_dir(config)) is None


def test_source_that_is_gone_is_refused_before_the_network_is_loaded(tmp_path, network):
    config = make_dataset(tmp_path)
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"source: none of the 22 images.*showtell prepare"):
        extract(config)
    assert network.num_loads == 0


def test_features_outlive_their_images(tmp_path, network):
    config = make_dataset(tmp_path)
    manifest = extract(config)
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    assert extract(config) == manifest


def test_unprepared_dataset_error_names_the_command(tmp_path, network):
    config = FeaturesConfig(data=tmp_path, dataset="tiny")
    with pytest.raises(MissingArtifactError, match="Run 'showtell prepare --dataset tiny"):
        extract(config)
    assert not config.dataset_dir.exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"encoder": "resnet5"}, ConfigError, "resnet50"),
        ({"weights": "missing.pth"}, MissingArtifactError, "missing.pth does not exist"),
    ],
)
def test_unknown_network_leaves_no_folder(tmp_path, network, change, error, message):
    config = make_dataset(tmp_path)
    with pytest.raises(error, match=message):
        extract(replace(config, **change))
    assert not (config.dataset_dir / "features").exists()


def test_auto_weights_keep_those_of_existing_features(tmp_path, network, monkeypatch):
    auto = replace(make_dataset(tmp_path), encoder="resnet50", weights="auto")
    monkeypatch.setattr(TorchvisionModels, "choose_auto", lambda *_: "caffe")
    manifest = extract(auto)
    assert features_dir(replace(auto, weights="caffe")).name == "resnet50-caffe"
    assert [path.name for path in features_dir(auto).parent.iterdir()] == ["resnet50-caffe"]
    assert manifest.config["weights"] == manifest.details["weights"] == "caffe"

    monkeypatch.setattr(TorchvisionModels, "choose_auto", lambda *_: pytest.fail("chose again"))
    assert extract(auto) == manifest
    Image.new("RGB", (9, 9), "red").save(image_path(auto, 3))
    assert extract(auto).details["num_computed"] == SHARD_SIZE
    extract(replace(auto, weights="IMAGENET1K_V1"))
    assert extract(auto).config["weights"] == "IMAGENET1K_V1"  # preferred if there are both


def test_auto_weights_are_not_downloaded_for_missing_images(tmp_path, monkeypatch):
    config = replace(make_dataset(tmp_path), weights="auto")
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(TorchvisionModels, "choose_auto", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(DatasetError, match="none of the 22 images can be read"):
        extract(config)


def test_features_without_the_hub_use_the_caffe_weights_without_an_error(
    tmp_path, checkpoints, monkeypatch, showtell
):
    make_dataset(tmp_path, count=3)
    state = {name: values.numpy() for name, values in resnet50().state_dict().items()}
    monkeypatch.setattr(torchvision_models, "load_caffe_resnet50", lambda _: (state, "5" * 64))
    command = ("features", "--data", tmp_path, "--dataset", "tiny", "--image-size", 64)
    status, output = showtell(*command)
    assert status == 0
    assert "warning: torchvision's hub cannot be reached (" in output
    assert "error:" not in output and output.count("warning:") == 1
    directory = tmp_path / "tiny/features/resnet50-caffe-64"
    backbone = FeatureStore.load(directory).backbone
    assert (backbone["weights"], backbone["weights_sha256"]) == ("caffe", "5" * 64)

    monkeypatch.setattr(hub, "download", lambda _: pytest.fail("used the network"))
    status, output = showtell(*command)
    assert status == 0
    assert output.startswith(f"features: {directory} is up to date")


def test_explicit_weights_without_the_hub_end_with_status_3(tmp_path, checkpoints, showtell):
    make_dataset(tmp_path, count=3)
    command = ("features", "--data", tmp_path, "--dataset", "tiny")
    status, output = showtell(*command, "--weights", "IMAGENET1K_V1")
    assert status == 3
    assert "error: resnet50-00000000.pth cannot be downloaded from torchvision's hub" in output
    status, output = showtell(*command, "--encoder", "resnet18")
    assert status == 3
    assert "error: resnet18-00000000.pth cannot be downloaded" in output


@pytest.mark.parametrize("format", ["hdf5", "parquet"])
def test_truncated_shard_is_recomputed(tmp_path, network, format):
    config = replace(make_dataset(tmp_path), format=format)
    extract(config)
    before = contents(config)
    path = sorted(features_dir(config).glob("part-*"))[1]
    path.write_bytes(path.read_bytes()[:-20])
    network.num_images = 0
    extract(config)
    assert network.num_images == SHARD_SIZE
    assert contents(config) == before


def test_deleted_shard_is_recomputed(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(config)
    before = contents(config)
    (features_dir(config) / "part-00002.h5").unlink()
    network.num_images = 0
    extract(config)
    assert network.num_images == 6
    assert contents(config) == before


def test_damaged_shard_of_the_same_size_is_recomputed_with_the_next_change(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(config)
    before = contents(config)
    path = features_dir(config) / "part-00001.h5"
    shard = read_shard(path)
    at = before[path.name].index(shard.features.tobytes())
    path.write_bytes(before[path.name][:at] + b"\0\0\0\0" + before[path.name][at + 4 :])
    (features_dir(config) / "part-00000.h5").unlink()
    extract(config)
    assert contents(config) == before


def test_files_of_killed_runs_are_removed(tmp_path, network):
    config = make_dataset(tmp_path)
    features_dir(config).mkdir(parents=True)
    (features_dir(config) / ".part-00000.123.partial.h5").write_bytes(b"half")
    extract(config)
    assert not list(features_dir(config).glob("*.partial.*"))
    assert not list(features_dir(config).glob(".*.partial.*"))


def test_features_that_overflow_are_refused(tmp_path, monkeypatch):
    config = make_dataset(tmp_path)
    use(FakeBackbone(scale=1e6), monkeypatch)
    with pytest.raises(ShowTellError, match=r"image 0 from .* are not finite.*--precision fp32"):
        extract(config)


def test_failing_writer_ends_the_run(tmp_path, network, monkeypatch):
    def fail(path: Path, shard: FeatureShard) -> None:
        if path.name != "part-00000.h5":
            raise ShowTellError(f"{path} could not be written: No space left on device.")
        write_shard(path, shard)

    config = make_dataset(tmp_path)
    monkeypatch.setattr(local, "write_shard", fail)
    with pytest.raises(ShowTellError, match="No space left"):
        extract(config)
    assert Manifest.read(features_dir(config)) is None
    assert list(contents(config)) == ["part-00000.h5"]


def test_two_runs_at_once_are_refused(tmp_path, network):
    config = make_dataset(tmp_path)
    with locked(features_dir(config)), pytest.raises(ShowTellError, match="another showtell"):
        extract(config)


def test_pillow_warnings_are_not_shown(tmp_path, network, recwarn):
    config = make_dataset(tmp_path)
    image = Image.new("RGB", (9, 9))
    image.save(image_path(config, 3), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    manifest = extract(config)
    assert manifest.counts["num_skipped"] == 0
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


@pytest.mark.parametrize("format", ["hdf5", "parquet"])
def test_views_and_grids_equal_a_plain_loop(tmp_path, network, format):
    config = replace(make_dataset(tmp_path), views=5, batch_size=16, grid=True, format=format)
    image_path(config, 9).write_bytes(b"no image")
    manifest = extract(config)
    expected = {}
    for index in set(range(NUM_IMAGES)) - {9}:
        image = Image.open(image_path(config, index)).convert("RGB")
        pixels = np.stack([TRANSFORM(image, view) for view in VIEWS[:5]])
        rows = FakeBackbone()(torch.from_numpy(pixels)).half().numpy()
        grids = fake_grid(torch.from_numpy(pixels)).half().numpy()
        expected[index * 10] = rows.tobytes(), grids.tobytes()
    assert read_extras(config) == expected
    assert network.num_images == 5 * (NUM_IMAGES - 1)
    assert manifest.counts["num_images"] == NUM_IMAGES - 1
    assert (manifest.counts["num_views"], manifest.counts["grid_places"]) == (5, 4)
    assert sorted(contents(config)) == sorted(manifest.outputs)
    assert sum(name.endswith(".grid.npy") for name in manifest.outputs) == 3


def test_first_view_is_the_same_with_and_without_extras(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(config)
    plain = read_all(config)
    extract(replace(config, views=3, grid=True))
    assert read_all(config) == plain


def test_shards_from_before_views_existed_stay_valid(tmp_path, network):
    config = make_dataset(tmp_path)
    manifest = extract(config)
    shard = read_shard(features_dir(config) / "part-00000.h5")
    paths = [image_path(config, index) for index in range(SHARD_SIZE)]
    content = [
        [index * 10 for index in range(SHARD_SIZE)],
        [f"images/{path.name}" for path in paths],
        ImageFiles(tmp_path / "source").fingerprints([f"images/{path.name}" for path in paths]),
    ]
    made_by = [1, "resnet18", "5" * 64, TRANSFORM.describe(), "fp32"]
    assert shard.fingerprint == hash_json([made_by, content])
    options = {"encoder", "weights", "image_size", "precision", "format", "shard_size"}
    assert set(manifest.config) == options


def test_fewer_extras_than_cached_are_up_to_date(tmp_path, network, capsys):
    config = make_dataset(tmp_path)
    first = extract(replace(config, views=3, grid=True))
    capsys.readouterr()
    for less in ({}, {"views": 2}, {"grid": True}, {"views": 3}):
        assert extract(replace(config, **less)) == first
        assert "up to date (22 images, 3 views, 4 grid cells)" in capsys.readouterr().out
    assert network.num_loads == 1


def test_adding_extras_keeps_the_cached_ones(tmp_path, network):
    config = make_dataset(tmp_path)
    extract(replace(config, views=2))
    manifest = extract(replace(config, grid=True))
    assert (manifest.counts["num_views"], manifest.counts["grid_places"]) == (2, 4)
    # Another format or another image list does not lose them either.
    manifest = extract(replace(config, format="parquet", shard_size=30))
    assert sorted(contents(config)) == ["part-00000.grid.npy", "part-00000.parquet"]
    assert (manifest.counts["num_views"], manifest.counts["grid_places"]) == (2, 4)


@pytest.mark.parametrize("stop_at", [5, 8])
def test_interrupted_grids_keep_the_finished_features(tmp_path, network, monkeypatch, stop_at):
    config = make_dataset(tmp_path)
    plain = extract(config)
    before = contents(config)
    wanted = replace(config, **EXTRAS)
    use(StoppingBackbone(stop_at, RuntimeError("stopped")), monkeypatch)
    with pytest.raises(RuntimeError, match="stopped"):
        extract(wanted)
    assert contents(config) == before
    assert extract(config) == plain
    assert not [path for path in features_dir(config).rglob("*.npy") if "partial" in path.name]
    again = use(FakeBackbone(), monkeypatch)
    manifest = extract(wanted)
    assert again.num_images == {5: 14, 8: 6}[stop_at] * 2
    assert {path.name for path in features_dir(config).iterdir()} == {
        "manifest.json",
        ".manifest.json",
        ".lock",
        *manifest.outputs,
    }


@pytest.mark.parametrize("format", ["hdf5", "parquet"])
@pytest.mark.parametrize("keep", [None, 0, -1])
def test_missing_or_truncated_grid_is_recomputed(tmp_path, network, keep, format):
    config = replace(make_dataset(tmp_path), grid=True, format=format)
    extract(config)
    before = contents(config)
    path = features_dir(config) / "part-00001.grid.npy"
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    network.num_images = 0
    extract(config)
    assert network.num_images == SHARD_SIZE
    assert contents(config) == before


def test_network_without_a_grid_is_refused_before_it_runs(tmp_path, network, monkeypatch):
    monkeypatch.setattr(network, "num_cells", 0)
    with pytest.raises(ConfigError, match="no grid"):
        extract(replace(make_dataset(tmp_path), grid=True))
    assert network.num_images == 0


def test_grids_that_overflow_are_refused(tmp_path, network, monkeypatch):
    config = replace(make_dataset(tmp_path), grid=True)
    monkeypatch.setattr(
        sys.modules[__name__], "fake_grid", lambda p: torch.full((len(p), 4, 6), 1e6)
    )
    with pytest.raises(ShowTellError, match=r"image 0 from .* are not finite"):
        extract(config)
    assert contents(config) == {}
    assert not list(features_dir(config).glob(".*partial*"))


def test_full_disk_at_any_write_is_a_short_error_and_loses_nothing(tmp_path, network, monkeypatch):
    config = replace(make_dataset(tmp_path), **EXTRAS)
    extract(config)
    before, sync = contents(config), os.fsync
    for num_written in range(14):  # 3 grids, 3 shards and the manifest, each with its folder
        shutil.rmtree(features_dir(config))
        left = iter(range(num_written))

        def fail(descriptor: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match=r"could not be written: No space left.*Free some"):
            extract(config)
        assert not list(features_dir(config).glob("*partial*"))
        assert not list(features_dir(config).glob(".*partial*"))
        monkeypatch.setattr(os, "fsync", sync)
        extract(config)
        assert contents(config) == before


def test_images_above_the_limit_are_skipped_until_it_is_raised(tmp_path, network):
    config = make_dataset(tmp_path)
    Image.new("RGB", (100, 30)).save(image_path(config, 10))
    low = replace(config, max_pixels=2999)
    manifest = extract(low)
    reason = "has 3,000 pixels, more than --max-pixels 2,999"
    assert manifest.skipped == (("images/010.png", reason),)
    for unchanged in (low, replace(low, max_pixels=500)):
        assert extract(unchanged) == manifest
    raised = extract(replace(config, max_pixels=3000))
    assert (raised.skipped, raised.details["num_computed"]) == ((), 1)
    assert "--max-pixels 3000" in raised.command
    assert extract(low) == raised  # images that have been read stay


def flip(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


@pytest.mark.parametrize("format", ["hdf5", "parquet"])
def test_flipped_bit_anywhere_is_repaired(tmp_path, network, format):
    config = replace(make_dataset(tmp_path), format=format)
    image_path(config, 9).write_bytes(b"no image")
    extract(config)
    before = contents(config)
    path = features_dir(config) / sorted(before)[1]
    for position in range(0, len(before[path.name]), 211):
        path.write_bytes(flip(before[path.name], position))
        assert extract(config).details["num_computed"] == SHARD_SIZE
        assert contents(config) == before


@pytest.mark.parametrize("format", ["hdf5", "parquet"])
def test_damaged_shard_of_an_interrupted_run_is_recomputed(tmp_path, network, format):
    config = replace(make_dataset(tmp_path), **EXTRAS, format=format)
    image_path(config, 9).write_bytes(b"no image")
    extract(config)
    directory, before = features_dir(config), contents(config)
    name = next(name for name in before if name.startswith("part-00001") and "grid" not in name)
    grid = before["part-00001.grid.npy"]
    changes = {
        name: before[name].replace(b"not an image", b"not an imagf"),
        "part-00001.grid.npy": flip(grid, len(grid) // 2),
    }
    for changed, content in changes.items():
        assert content != before[changed]
        (directory / "manifest.json").unlink()  # as if the run had been killed before the end
        (directory / changed).write_bytes(content)
        assert extract(config).details["num_computed"] == SHARD_SIZE
        assert contents(config) == before


def test_damaged_grid_is_repaired_by_the_advised_command(tmp_path, network, monkeypatch):
    monkeypatch.setenv("SHOWTELL_DATA", str(tmp_path))
    config = replace(make_dataset(tmp_path), **EXTRAS)
    extract(config)
    before = contents(config)
    path = features_dir(config) / "part-00001.grid.npy"
    path.write_bytes(flip(before[path.name], len(before[path.name]) // 2))
    store = FeatureStore.load(features_dir(config))
    with pytest.raises(DamagedFileError) as caught:
        store.gather_grid(torch.arange(NUM_IMAGES))
    advice = str(caught.value).partition("Run '")[2].removesuffix("'.")
    remove, command = advice.split(" && ")
    assert command.startswith("showtell features --dataset tiny")
    subprocess.run(shlex.split(remove), check=True)
    extract(config)
    assert contents(config) == before


def test_damaged_image_list_does_not_replace_the_features(tmp_path, network):
    config = make_dataset(tmp_path)
    path = config.captions_dir / "images.parquet"
    checksums = checksums_of(config.captions_dir, [path.name])
    prepared = Manifest.read(config.captions_dir)
    outputs = {path.name: path.stat().st_size}
    replace(prepared, outputs=outputs, checksums=checksums).write(config.captions_dir)
    extract(config)
    before, content = contents(config), path.read_bytes()
    for position in range(0, len(content), 37):
        path.write_bytes(flip(content, position))
        with pytest.raises(DamagedFileError, match=r"images\.parquet is.*Run 'showtell prepare "):
            extract(config)
    assert contents(config) == before


@pytest.mark.parametrize("part, key", [("counts", "num_images"), ("details", "fingerprints")])
def test_manifest_without_an_entry_is_written_again(tmp_path, network, part, key):
    config = make_dataset(tmp_path)
    manifest = extract(config)
    before = contents(config)
    values = {name: value for name, value in getattr(manifest, part).items() if name != key}
    replace(manifest, **{part: values}).write(features_dir(config))
    repaired = extract(config)
    assert (repaired.counts, repaired.outputs) == (manifest.counts, manifest.outputs)
    assert network.num_images == NUM_IMAGES
    assert contents(config) == before


if __name__ == "__main__":  # the process that the kill test kills
    local.load_backbone = StoppingBackbone(int(sys.argv[2]), None).load
    extract(replace(make_config(Path(sys.argv[1])), **EXTRAS))
