"""The stage `features`: run the frozen network over every image once and cache its features.

Each shard stores a fingerprint of everything it was computed from, so that only missing, damaged or
outdated shards are computed. If the folder already holds finished features, the new shards are
collected in `.next/` and replace the old ones at the end.
"""

import platform
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from ..pipeline.layout import IMAGES_INPUT
from ..pipeline.stage.checksums import checksums_of
from ..pipeline.stage.command_line import command_line, command_of
from ..pipeline.stage.console import format_bytes, format_seconds, print_note, print_table
from ..pipeline.stage.errors import ConfigError, DatasetError, ShowTellError
from ..pipeline.stage.files import locked
from ..pipeline.stage.manifest import Manifest
from ..pipeline.stage.stopwatch import Stopwatch
from .config import FeaturesConfig
from .encoders.registry import AUTO, check_weights, find_family
from .engines.engine import Engine
from .engines.local import LocalEngine
from .layout import absolute_weights, features_dir
from .manifest import describe_features, describe_network, is_up_to_date, read_manifest
from .plan import ImageList, find_finished, list_images, plan_shards
from .pooled_files import MAPPED
from .reading.broken_images import MISSING
from .remote_shards import fetch_shards, list_files

STAGING = ".next"
NUM_SKIPPED_SHOWN = 3
OPTIONAL_COUNTS = {
    "views": "num_views",
    "grid cells": "grid_places",
    "grid width": "grid_dim",
}  # label → key in the manifest


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
    config = resolve_auto_weights(config, images)
    directory = features_dir(config)
    done = read_manifest(directory)
    config = keep_extras(config, done)
    # Checked before `locked`, which writes a file: a folder that is up to date may be read-only.
    if done is not None and is_up_to_date(done, directory, config, images):
        remove_leftovers(directory, done)
        print_note(f"features: {directory} is up to date ({describe_counts(done)})")
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
    width, limit = network.feature_dim, config.max_pixels
    skipped = find_finished(jobs, directory, staging, done, width, grid_shape, limit)
    todo = [job for job in jobs if job.name not in skipped]
    if config.store is not None and fetch_shards(config, todo, staging):
        fetched = find_finished(todo, staging, staging, None, width, grid_shape, limit)
        print_note(f"features: {len(fetched)} of {len(todo)} shards are in {config.store}")
        skipped |= fetched
        todo = [job for job in todo if job.name not in fetched]
    watch = Stopwatch()
    for job, unreadable in engine.compute(images, todo, staging, watch):
        skipped[job.name] = unreadable
    num_computed = sum(len(job) for job in todo)
    details = {
        "device": str(engine.device),
        "num_computed": num_computed,
        "images_per_second": num_computed / max(watch.seconds, 1e-9),
        "shares": watch.shares(),
    }

    manifest = describe_features(config, images, network, jobs, skipped)
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
        details=manifest.details | details,
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
    """Delete what a run left that was killed right after it wrote the manifest.

    Shards in the staging folder are kept: they belong to an interrupted run with other options.
    Does nothing in a read-only folder, or while another process computes these features.
    """
    if find_stale(directory, manifest) or (directory / STAGING).exists():
        with suppress(ShowTellError, OSError), locked(directory):
            if read_manifest(directory) == manifest:
                for path in find_stale(directory, manifest):
                    path.unlink(missing_ok=True)
                (directory / STAGING).rmdir()  # fails if it holds shards


@contextmanager
def pillow_warnings_ignored() -> Iterator[None]:
    """Ignore Pillow's warnings about unusual but readable files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def describe_counts(manifest: Manifest) -> str:
    """Return the counts as text, e.g. `8,000 images, 6 views, 49 grid cells`."""
    counts = manifest.counts
    labels = {"images": "num_images", **OPTIONAL_COUNTS}
    return ", ".join(f"{counts[key]:,} {label}" for label, key in labels.items() if key in counts)


def print_summary(directory: Path, manifest: Manifest) -> None:
    """Print the summary table of the finished stage."""
    counts, details = manifest.counts, manifest.details
    shares = "  ".join(f"{name} {share:.0%}" for name, share in details["shares"].items())
    rows = [
        ("images", f"{counts['num_images']:,}"),
        ("skipped", f"{counts['num_skipped']:,}"),
        *(("", f"{name}: {reason}") for name, reason in manifest.skipped[:NUM_SKIPPED_SHOWN]),
        ("feature width", f"{counts['feature_dim']:,} ({details['backbone']})"),
        *((label, f"{counts[key]:,}") for label, key in OPTIONAL_COUNTS.items() if key in counts),
        ("precision", manifest.config["precision"]),
        ("shards", f"{counts['num_shards']:,}"),
        ("computed now", f"{details['num_computed']:,}"),
        ("speed", f"{details['images_per_second']:,.1f} images/s  {shares}"),
        ("time", format_seconds(manifest.seconds)),
        ("size", format_bytes(sum(manifest.outputs.values()))),
        ("path", str(directory)),
    ]
    print_table("features", rows)
