"""The stage `features`: run the frozen network over every image once and cache its features.

Each shard stores a fingerprint of everything it was computed from, so that only missing, damaged or
outdated shards are computed. If the folder already holds finished features, the new shards are
collected in `.next/` and replace the old ones at the end.
"""

import platform
import shutil
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..pipeline.layout import IMAGES_INPUT
from ..pipeline.stage.checksums import checksums_of
from ..pipeline.stage.command_line import command_line, command_of
from ..pipeline.stage.console import print_note
from ..pipeline.stage.errors import ConfigError, DatasetError, ShowTellError
from ..pipeline.stage.files import locked
from ..pipeline.stage.manifest import Manifest
from ..pipeline.stage.options import require
from ..pipeline.stage.stopwatch import Stopwatch
from ..pipeline.stage.urls import require_bucket
from .config import FeaturesConfig
from .encoders.registry import AUTO, check_weights, find_family
from .engines.engine import Engine
from .engines.local import LocalEngine
from .layout import absolute_weights, features_dir
from .manifest import describe_features, describe_network, is_up_to_date, read_manifest
from .plan import (
    ImageList,
    ShardJob,
    Skipped,
    find_files,
    find_finished,
    list_images,
    plan_shards,
    shard_names,
)
from .pooled_files import MAPPED
from .reading.broken_images import MISSING
from .remote_shards import delete_shard, fetch_shards, list_files
from .retry import RETRIED, find_retries, retry_images
from .summary import describe_counts, print_summary

STAGING = ".next"


def extract(config: FeaturesConfig) -> Manifest:
    """Run the frozen network over every image of a prepared dataset and cache its features.

    Raises:
        MissingArtifactError: the dataset is not prepared.
        DatasetError: none of the images can be read.
        ConfigError: the encoder, the weights or the device is unknown.
        WeightsError: the weights cannot be downloaded or verified, or do not fit the encoder.
        ShowTellError: the disk is full, or another process writes the same features.
    """
    started = time.perf_counter()
    # Checked before the folder is created, so that a typo leaves no folder behind.
    check_weights(config.encoder, config.weights)
    images = list_images(config)
    require_shards(config, images)
    config = resolve_auto_weights(config, images)
    directory = features_dir(config)
    done = read_manifest(directory)
    config = keep_extras(config, done)
    # Checked before `locked`, which writes a file: a folder that is up to date may be read-only.
    is_repaired = config.recompute or (config.retry_skipped and done is not None and done.skipped)
    if done is not None and not is_repaired and is_up_to_date(done, directory, config, images):
        remove_leftovers(directory, done)
        counts = describe_counts(done) + (", none skipped" if config.retry_skipped else "")
        print_note(f"features: {directory} is up to date ({counts})")
        return done
    with locked(directory), pillow_warnings_ignored():
        require_images_still_exist(done, directory, images)
        manifest = compute_features(config, images, directory, started)
    print_summary(directory, manifest)
    return manifest


def resolve_auto_weights(config: FeaturesConfig, images: ImageList) -> FeaturesConfig:
    """Replace `--weights auto` by the weights to use.

    If the dataset already has features from weights that `auto` may choose, those weights are used.
    Otherwise the encoder's family takes cached weights, or else downloads some.
    """
    if config.weights != AUTO:
        return config
    family = find_family(config.encoder)
    for weights in family.auto_choices(config.encoder):
        chosen = replace(config, weights=weights)
        if read_manifest(features_dir(chosen)) is not None:
            return chosen
    require_readable(any(images.stamps), images, MISSING, config)  # before a long download
    return replace(config, weights=family.choose_auto(config.encoder))


def keep_extras(config: FeaturesConfig, done: Manifest | None) -> FeaturesConfig:
    """Return the options, extended to keep the views and grid features that already exist."""
    if done is None:
        return config
    views = max(config.views, done.config.get("views", 1))
    grid = config.grid or done.config.get("grid", False)
    return replace(config, views=views, grid=grid)


def require_images_still_exist(done: Manifest | None, directory: Path, images: ImageList) -> None:
    """Check that every image with features still exists before the features are replaced.

    Raises:
        DatasetError: naming the first missing image.
    """
    if done is None or done.inputs.get(IMAGES_INPUT) != images.sha256:
        return
    skipped = {name for name, _ in done.skipped}
    stamps = zip(images.file_names, images.stamps, strict=True)
    missing = [name for name, stamp in stamps if stamp is None and name not in skipped]
    if missing:
        raise DatasetError(
            f"{images.source}: {len(missing)} of the {len(images)} images no longer exist, e.g. "
            f"{missing[0]}. {directory} still has their features and was not changed. Put the "
            f"images back, or delete that folder to compute the features of the remaining images."
        )


def compute_features(
    config: FeaturesConfig, images: ImageList, directory: Path, started: float
) -> Manifest:
    """Compute the missing shards, publish all shards and return the new manifest.

    Args:
        config: the stage's options.
        images: all images of the dataset.
        directory: the features folder, locked by this process.
        started: `time.perf_counter()` at the start of the stage.
    """
    require_readable(any(images.stamps), images, MISSING, config)
    with open_engine(config) as engine:
        return compute_with(engine, images, directory, started)


def compute_with(engine: Engine, images: ImageList, directory: Path, started: float) -> Manifest:
    """Compute the missing shards with an engine, as `compute_features` does."""
    config, network = engine.config, engine.network

    jobs = plan_shards(config, images, describe_network(config, network))
    done = read_manifest(directory)
    staging = directory / STAGING if done else directory
    grid_shape = (network.num_cells, network.grid_dim) if config.grid else None
    kept = [job for job in jobs if not config.is_recomputed(job.name)]
    found = find_files(kept, directory, staging, done, network.feature_dim, grid_shape)
    skipped = {name: images_of for name, (_, images_of) in found.items()}
    todo = [job for job in jobs if job.name not in skipped]
    remove_outdated(config, jobs, {path for path, _ in found.values()}, staging)
    stored = [job for job in todo if not config.is_recomputed(job.name)]
    if config.store is not None and todo:
        require_bucket(config.store)
    if config.store is not None and fetch_shards(config, stored, staging):
        fetched = find_finished(stored, staging, staging, None, network.feature_dim, grid_shape)
        print_note(f"features: {len(fetched)} of {len(stored)} shards are in {config.store}")
        skipped |= fetched
        todo = [job for job in todo if job.name not in fetched]
    retries = find_retries(engine, images, [job for job in jobs if job.name in skipped], skipped)
    watch = Stopwatch()
    for job, unreadable in engine.compute(images, todo, staging, watch):
        skipped[job.name] = unreadable
    num_computed = sum(len(job) for job in todo)
    if done is None or todo or staging.exists() or not retries:
        work = describe_work(engine, watch, num_computed)
        done = finish(engine, images, jobs, skipped, staging, directory, work, started)
    if retries:
        staging = directory / STAGING
        skipped |= retry_images(engine, images, retries, directory, staging, watch)
        num_tried = sum(len(retry.positions) for retry in retries)
        work = describe_work(engine, watch, num_computed + num_tried)
        manifest = finish(engine, images, jobs, skipped, staging, directory, work, started)
        print_note(
            f"features: {len(done.skipped) - len(manifest.skipped):,} of {num_tried:,} images that "
            "were skipped could be read now"
        )
        done = manifest
    shutil.rmtree(directory / RETRIED, ignore_errors=True)
    return done


def describe_work(engine: Engine, watch: Stopwatch, num_computed: int) -> dict[str, Any]:
    """Return the details of this run for the manifest."""
    return {
        "device": str(engine.device),
        "num_computed": num_computed,
        "images_per_second": num_computed / max(watch.seconds, 1e-9),
        "shares": watch.shares(),
    }


def finish(
    engine: Engine,
    images: ImageList,
    jobs: Sequence[ShardJob],
    skipped: Mapping[str, Skipped],
    staging: Path,
    directory: Path,
    work: dict[str, Any],
    started: float,
) -> Manifest:
    """Publish all shards and write their manifest.

    Args:
        engine: its config and its network made the features.
        images: all images of the dataset.
        jobs: all shards.
        skipped: name of each shard → its skipped images.
        staging: folder with new shards.
        directory: the features folder.
        work: from `describe_work`.
        started: `time.perf_counter()` at the start of the stage.
    """
    config = engine.config
    manifest = describe_features(config, images, engine.network, jobs, skipped)
    reason = manifest.skipped[0][1] if manifest.skipped else ""
    require_readable(len(manifest.skipped) < len(images), images, reason, config)
    names = [name for job in jobs for name in list_files(config, job.name)]
    publish(names, staging, directory)
    manifest = replace(
        manifest,
        outputs={name: (directory / name).stat().st_size for name in names},
        # Without grids, which take minutes to read: the shard has a checksum of each row.
        checksums=checksums_of(directory, [job.name for job in jobs]),
        command=command_of("features", repair_config(config)),
        seconds=time.perf_counter() - started,
        details=manifest.details | work,
    ).write(directory)
    remove_stale(directory, manifest)
    return manifest


def open_engine(config: FeaturesConfig) -> AbstractContextManager[Engine]:
    """Return the engine that `--engine` names, with the network loaded, to use in a `with` block.

    Raises:
        ConfigError: Ray is not installed, or an option is invalid.
        WeightsError: the weights cannot be downloaded or verified, or do not fit.
    """
    if config.engine == "local":
        return nullcontext(LocalEngine.load(config))
    try:
        from .engines.ray import RayEngine
    except ImportError as error:
        raise ConfigError(
            f"--engine ray needs the library Ray, which cannot be imported ({error}). Run pip "
            "install 'showtell[ray]'. If there is no Ray for Python "
            f"{platform.python_version()} yet, use an earlier Python, or --engine local."
        ) from None
    return RayEngine.open(config)


def require_shards(config: FeaturesConfig, images: ImageList) -> None:
    """Check the names in `--recompute`.

    Raises:
        ConfigError: there is no such shard.
    """
    names = [Path(name).stem for name in shard_names(config, images)]
    for name in config.recompute or ():
        require(
            Path(name).stem in names,
            f"--recompute must name a shard, {names[0]} to {names[-1]}, got {name!r}.",
        )


def remove_outdated(
    config: FeaturesConfig, jobs: Sequence[ShardJob], kept: Collection[Path], staging: Path
) -> None:
    """Delete the shards in the staging folder that are not kept, so that none is published.

    They may belong to other options, or be without their grid files. Of shards to recompute, no
    engine may find an earlier copy.
    """
    for job in jobs:
        if staging / job.name not in kept:
            delete_shard(config, staging / job.name)


def require_readable(
    is_readable: bool, images: ImageList, reason: str, config: FeaturesConfig
) -> None:
    """Refuse a dataset if none of its images can be read.

    Raises:
        DatasetError: naming the folder, one image and its reason.
    """
    if not is_readable:
        example = f", e.g. {images.file_names[0]}: {reason}" if images.file_names else ""
        prepare = command_line(config.data, "prepare", "--dataset", config.dataset)
        raise DatasetError(
            f"{images.source}: none of the {len(images)} images can be read{example}. Put the "
            f"images there, or run '{prepare} --source DIR', where DIR is their folder."
        )


def repair_config(config: FeaturesConfig) -> FeaturesConfig:
    """Return the options that make these features again, from any folder and without a cluster."""
    weights = absolute_weights(config.weights)
    return replace(config, weights=weights, engine="local", address=None)


def publish(names: Sequence[str], staging: Path, directory: Path) -> None:
    """Move the staged files into the features folder."""
    for name in names:
        if (staging / name).exists():
            (staging / name).replace(directory / name)


def find_stale(directory: Path, manifest: Manifest) -> list[Path]:
    """Return the shards that the manifest does not list, and copies of such Parquet shards."""
    stale = [path for path in directory.glob("part-*") if path.name not in manifest.outputs]
    copies = (directory / MAPPED).glob("part-*")
    return stale + [path for path in copies if f"{path.stem}.parquet" not in manifest.outputs]


def remove_stale(directory: Path, manifest: Manifest) -> None:
    """Delete shards that the manifest does not list, and the staging folder."""
    for path in find_stale(directory, manifest):
        path.unlink(missing_ok=True)
    shutil.rmtree(directory / STAGING, ignore_errors=True)


def remove_leftovers(directory: Path, manifest: Manifest) -> None:
    """Delete what a run left that was killed right after it wrote the manifest, or in a retry.

    Shards in the staging folder are kept: they belong to an interrupted run with other options.
    Does nothing in a read-only folder, or while another process computes these features.
    """
    folders = directory / STAGING, directory / RETRIED
    if find_stale(directory, manifest) or any(folder.exists() for folder in folders):
        with suppress(ShowTellError, OSError), locked(directory):
            if read_manifest(directory) == manifest:
                for path in find_stale(directory, manifest):
                    path.unlink(missing_ok=True)
                shutil.rmtree(directory / RETRIED, ignore_errors=True)
                (directory / STAGING).rmdir()  # fails if it holds shards


@contextmanager
def pillow_warnings_ignored() -> Iterator[None]:
    """Ignore Pillow's warnings about unusual but readable files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
