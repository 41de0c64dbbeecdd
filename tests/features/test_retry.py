"""Trying skipped images again: only they are computed, and nothing else changes or is lost."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from showtell.features.config import FeaturesConfig
from showtell.features.engines.local import LocalEngine
from showtell.features.extract import extract
from showtell.features.layout import features_dir
from showtell.features.retry import RETRIED
from showtell.features.shards import read_shard
from showtell.features.store import FeatureStore
from showtell.pipeline.images.image_files import ImageFiles
from showtell.pipeline.stage.errors import ConfigError
from showtell.pipeline.stage.manifest import Manifest

from .test_extract import (
    EXTRAS,
    NUM_IMAGES,
    SHARD_SIZE,
    FakeBackbone,
    StoppingBackbone,
    contents,
    image_path,
    make_dataset,
    network,
    read_all,
    read_extras,
    use,
)

__all__ = ["network"]  # the fixture

FAILING = (3, 4, 9, 21)  # in three shards; 21 is the last image
REASON = "cannot be read: Input/output error"


@pytest.fixture
def fail_reading(monkeypatch) -> Callable[..., None]:
    """Let some images fail with an error of the disk, and no others."""
    plain = ImageFiles.read

    def fail(*indices: int, error: OSError = OSError(5, "Input/output error")) -> None:  # noqa: B008
        names = {f"images/{index:03}.png" for index in indices}

        def read(self: ImageFiles, name: str) -> bytes:
            if name in names:
                raise error
            return plain(self, name)

        monkeypatch.setattr(ImageFiles, "read", read)

    return fail


@pytest.mark.parametrize("format", ["hdf5", "parquet"])
@pytest.mark.parametrize("extras", [{}, EXTRAS])
def test_only_failed_images_are_computed_and_all_others_keep_their_bits(
    tmp_path, network, fail_reading, capsys, format, extras
) -> None:
    config = replace(make_dataset(tmp_path), **extras, format=format)
    read = read_extras if extras else read_all
    fail_reading(*FAILING)
    assert extract(config).counts["num_skipped"] == 4
    before, network.num_images = read(config), 0
    fail_reading(9)
    manifest = extract(config)
    assert network.num_images == 3 * config.views
    assert manifest.skipped == (("images/009.png", REASON),)
    assert manifest.counts["num_images"] == NUM_IMAGES - 1
    assert "3 of 4 images that were skipped could be read now" in capsys.readouterr().out
    fail_reading()
    extract(config)
    after = read(config)
    assert after.keys() == {index * 10 for index in range(NUM_IMAGES)}
    assert before.items() <= after.items()
    assert extract(config).skipped == ()
    assert "is up to date" in capsys.readouterr().out
    store = FeatureStore.load(features_dir(config))
    assert store.has(np.arange(NUM_IMAGES) * 10).all()
    # The same as if nothing had failed: the fake network computes each image by itself.
    merged = contents(config)
    for path in features_dir(config).iterdir():
        path.unlink()
    extract(config)
    assert contents(config) == merged


def test_retry_skipped_tries_images_whatever_the_reason(tmp_path, network, capsys) -> None:
    config = make_dataset(tmp_path)
    content = image_path(config, 5).read_bytes()
    image_path(config, 5).write_bytes(bytes(len(content)))
    stamp = image_path(config, 5).stat().st_mtime_ns
    assert extract(config).counts["num_skipped"] == 1
    image_path(config, 5).write_bytes(content)
    os.utime(image_path(config, 5), ns=(stamp, stamp))  # as if a server had sent something else
    network.num_images = 0
    assert extract(config).counts["num_skipped"] == 1
    retry = replace(config, retry_skipped=True)
    manifest = extract(retry)
    assert (manifest.skipped, network.num_images) == ((), 1)
    assert "retry" not in manifest.command
    capsys.readouterr()
    assert extract(retry) == manifest
    assert "is up to date (22 images, none skipped)" in capsys.readouterr().out


def test_image_that_stays_broken_changes_no_file(tmp_path, network) -> None:
    config = make_dataset(tmp_path)
    image_path(config, 5).write_bytes(b"no image")
    extract(config)
    before = contents(config)
    manifest = extract(replace(config, retry_skipped=True))
    assert [name for name, _ in manifest.skipped] == ["images/005.png"]
    assert contents(config) == before
    assert not (features_dir(config) / RETRIED).exists()


class Killed(BaseException):
    """Stands for the end of the process; no handler of the stage stops it."""


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError("HTTP 404")])
def test_nothing_is_lost_wherever_a_retry_is_killed(
    tmp_path, network, fail_reading, monkeypatch, error
) -> None:
    """Each move of a file into its place ends the run once; the next run goes on."""
    failing = (3, 9)
    config = replace(make_dataset(tmp_path), **EXTRAS)
    extract(config)
    expected = read_extras(config)
    for path in features_dir(config).glob("*"):
        path.unlink()
    fail_reading(*failing, error=error)
    extract(config)
    config = replace(config, retry_skipped=error.errno is None)
    saved = {path: path.read_bytes() for path in features_dir(config).iterdir() if path.is_file()}
    plain, left = Path.replace, 0

    def replace_or_die(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    for number in range(1, 100):
        left = 0
        for path, content in saved.items():
            path.write_bytes(content)
        fail_reading()
        left = number
        try:
            extract(config)
        except Killed:
            left = 0
            num_done = len([*(features_dir(config) / RETRIED).glob("retry-*.h5")])
            network.num_images = 0
            fail_reading(*(index for index in range(NUM_IMAGES) if index not in failing))
            assert extract(config).skipped == (), number
            assert network.num_images <= (len(failing) - num_done) * config.views
            assert read_extras(config) == expected
        else:
            break
    assert 10 < number < 40


def test_killed_computation_goes_on_where_it_stopped(
    tmp_path, network, fail_reading, monkeypatch
) -> None:
    config = make_dataset(tmp_path)
    fail_reading(*FAILING)
    extract(config)
    fail_reading()
    before = contents(config)

    class Stopping(FakeBackbone):
        def __call__(self, pixels):  # type: ignore[no-untyped-def]
            if self.num_images >= 3:
                raise KeyboardInterrupt
            return super().__call__(pixels)

    use(Stopping(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        extract(config)
    assert contents(config) == before
    assert Manifest.read(features_dir(config)).counts["num_skipped"] == 4
    backbone = use(FakeBackbone(), monkeypatch)
    assert extract(config).skipped == ()
    assert 1 <= backbone.num_images < len(FAILING)


def test_results_of_an_earlier_retry_are_not_used(tmp_path, network, monkeypatch) -> None:
    """Workers of a cluster find them in the store, where a killed run leaves them."""
    config = replace(make_dataset(tmp_path), store=str(tmp_path / "store"))
    image_path(config, 5).write_bytes(b"no image")
    extract(config)
    fingerprints, compute = list[str](), LocalEngine.compute

    def record(self, images, jobs, directory, watch):  # type: ignore[no-untyped-def]
        fingerprints.extend(job.fingerprint for job in jobs)
        return compute(self, images, jobs, directory, watch)

    monkeypatch.setattr(LocalEngine, "compute", record)
    for _ in range(2):
        extract(replace(config, retry_skipped=True))
        assert not [*(tmp_path / "store").rglob("retry-*")]
    assert len(set(fingerprints)) == 2


def test_killed_retry_is_deleted_by_the_next_run_without_retry(
    tmp_path, network, fail_reading, monkeypatch
) -> None:
    config = make_dataset(tmp_path)
    fail_reading(3, error=OSError("HTTP 404"))
    before = extract(config)
    fail_reading()
    use(StoppingBackbone(1, KeyboardInterrupt()), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        extract(replace(config, retry_skipped=True))
    assert (features_dir(config) / RETRIED).exists()
    assert extract(config) == before
    assert not (features_dir(config) / RETRIED).exists()


def test_failures_of_an_interrupted_run_are_tried_again_by_the_next(
    tmp_path, network, fail_reading, monkeypatch
) -> None:
    config = make_dataset(tmp_path)
    fail_reading(3)

    class Stopping(FakeBackbone):
        def __call__(self, pixels):  # type: ignore[no-untyped-def]
            if self.num_images >= 2 * SHARD_SIZE:
                raise KeyboardInterrupt
            return super().__call__(pixels)

    use(Stopping(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        extract(config)
    fail_reading()
    use(network, monkeypatch)
    assert extract(config).skipped == ()
    assert len(read_all(config)) == NUM_IMAGES


def test_failure_of_every_image_of_a_shard_computes_it_again(
    tmp_path, network, fail_reading
) -> None:
    config = make_dataset(tmp_path)
    fail_reading(*range(SHARD_SIZE))
    assert extract(config).counts["num_skipped"] == SHARD_SIZE
    fail_reading()
    assert extract(config).skipped == ()
    assert len(read_all(config)) == NUM_IMAGES


def test_shard_of_an_earlier_version_is_computed_again(tmp_path, network, fail_reading) -> None:
    """They had `retry` in place of the fingerprint."""
    from showtell.features.shards import write_shard

    config = make_dataset(tmp_path)
    fail_reading(4)
    extract(config)
    path = features_dir(config) / "part-00000.h5"
    write_shard(path, replace(read_shard(path), fingerprint="retry"))
    fail_reading()
    network.num_images = 0
    assert extract(config).skipped == ()
    assert network.num_images == SHARD_SIZE


def recompute(config: FeaturesConfig, *names: str) -> Manifest:
    return extract(replace(config, recompute=[*names]))


def test_one_shard_is_computed_again(tmp_path, network) -> None:
    config = make_dataset(tmp_path)
    extract(config)
    before, network.num_images = contents(config), 0
    manifest = recompute(config, "part-00001")
    assert network.num_images == SHARD_SIZE
    assert contents(config) == before
    network.scale = 2.0  # the features of this shard change, those of others do not
    recompute(config, "part-00001.h5", "part-00002")
    after = contents(config)
    assert [after[name] == before[name] for name in sorted(after)] == [True, False, False]
    assert "recompute" not in manifest.command
    network.num_images = 0
    extract(config)
    assert network.num_images == 0


def test_unknown_shard_is_an_error_that_names_the_others(tmp_path, network) -> None:
    config = make_dataset(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"--recompute must name a shard, part-00000 to part-00002, got 'part-00003'",
    ):
        recompute(config, "part-00003")
    assert network.num_loads == 0
