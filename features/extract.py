"""The stage `features`: a frozen network over every image once, cached in shards.

A shard carries the fingerprint of all that it was computed from, so a run redoes only shards that
are missing, damaged, or of other images, weights or options. Where the folder already holds
finished features, their successors are staged in `.next/` and take their place at the end.
"""

import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..pipeline.layout import IMAGES_INPUT
from ..pipeline.stage.console import format_bytes, format_seconds, print_note, print_table
from ..pipeline.stage.errors import DatasetError
from ..pipeline.stage.files import hash_file, hash_json, locked
from ..pipeline.stage.manifest import Manifest
from ..pipeline.stage.stopwatch import Stopwatch
from .config import FeaturesConfig
from .device import choose_device, choose_precision, keep_freed_memory, precision_name
from .encoders.backbone import load_backbone
from .encoders.weights import FILE_SUFFIXES, check_weights
from .grids import grid_name
from .plan import RETRY, ImageList, ShardJob, find_finished, list_images, plan_shards
from .runner import compute_shards
from .store import kept_precision

VERSION = 1
STAGING = ".next"
NUM_SHOWN = 3
EXTRAS = (("views", "num_views"), ("grid places", "grid_places"))  # in the summary: its count


def features_dir(config: FeaturesConfig) -> Path:
    """`data/<dataset>/features/<encoder>-<weights>`, and `-<image size>` where one is given."""
    name = f"{config.encoder}-{weights_label(config.weights)}"
    if config.image_size is not None:
        name += f"-{config.image_size}"
    return config.dataset_dir / "features" / name


def weights_label(weights: str) -> str:
    """Name of the weights in paths: as typed, or the stem of the file."""
    return Path(weights).stem if is_file_name(weights) else weights


def absolute_weights(weights: str) -> str:
    """The weights as a run keeps them: a file must be found from any folder."""
    return str(Path(weights).resolve()) if is_file_name(weights) else weights


def is_file_name(weights: str) -> bool:
    """Whether `--weights` gives a file and not a name."""
    return Path(weights).suffix in FILE_SUFFIXES


def extract(config: FeaturesConfig) -> Manifest:
    """Run the frozen network over every image of a prepared dataset and cache its features.

    Raises:
        MissingArtifactError: the dataset is not prepared.
        DatasetError: not one image can be read.
        ConfigError: there is no such encoder or device.
        WeightsError: the weights cannot be had, or do not fit.
        ShowTellError: the disk is full, or another process writes the same features.
    """
    started = time.perf_counter()
    # Before the folder is made: a misspelt name must not leave one behind.
    check_weights(config.encoder, config.weights)
    images = list_images(config)
    directory = features_dir(config)
    with locked(directory), without_pillow_warnings():
        done = Manifest.read(directory)
        config = keep_extras(config, done)
        if done is not None and is_up_to_date(done, directory, config, images):
            print_note(f"features: {directory} is up to date ({describe_counts(done)})")
            return done
        refuse_vanished(done, directory, images)
        manifest = compute(config, images, directory, started)
    print_summary(directory, manifest)
    return manifest


def keep_extras(config: FeaturesConfig, done: Manifest | None) -> FeaturesConfig:
    """Ask for no fewer views than the folder already has, for its grids, and by `auto` for int8."""
    if done is None:
        return config
    views = max(config.views, done.config.get("views", 1))
    grid = config.grid or done.config.get("grid", False)
    precision = config.precision
    if precision == "auto":
        precision = kept_precision(done) or precision
    return replace(config, views=views, grid=grid, precision=precision)


def is_up_to_date(
    done: Manifest, directory: Path, config: FeaturesConfig, images: ImageList
) -> bool:
    """Whether nothing is left to do; loads no weights and decodes nothing."""
    # `auto` has no opinion: features computed elsewhere in another precision are as good, and
    # where they are in int8, they stay so.
    precision = done.config.get("precision") if config.precision == "auto" else config.precision
    inputs = describe_inputs(images, config, named_sha256=done.inputs.get("weights", ""))
    if not any(images.stamps):
        # The images were deleted afterwards: their features are what is left of them.
        inputs["images"] = done.inputs.get("images", "")
    return done.matches(directory, VERSION, describe_config(config, str(precision)), inputs)


def find_vanished(done: Manifest, images: ImageList) -> list[str]:
    """Images that have features, or were tried, and are no longer there."""
    if done.inputs.get(IMAGES_INPUT) != images.sha256:
        return []
    skipped = {name for name, _ in done.skipped}
    names = zip(images.file_names, images.stamps, strict=True)
    return [name for name, stamp in names if stamp is None and name not in skipped]


def refuse_vanished(done: Manifest | None, directory: Path, images: ImageList) -> None:
    """Refuse to replace features that could not be computed again.

    Raises:
        DatasetError: naming the first image that is gone.
    """
    gone = find_vanished(done, images) if done is not None else []
    if gone:
        raise DatasetError(
            f"{images.source}: {len(gone)} of the {len(images)} images are gone, e.g. {gone[0]}; "
            f"{directory} still has their features and stays as it is. Put the images back, or "
            f"delete that folder to compute the features of what is left."
        )


def describe_config(config: FeaturesConfig, precision: str) -> dict[str, Any]:
    """The options on which the features depend; extras only where there are any."""
    return describe_extras(config) | {
        "encoder": config.encoder,
        "weights": weights_label(config.weights),
        "image_size": config.image_size,
        "precision": precision,
        "format": config.format,
        "shard_size": config.shard_size,
    }


def describe_extras(config: FeaturesConfig) -> dict[str, Any]:
    """The options for what is cached beside the features of the pictures themselves.

    Empty where there is nothing, as before there were any: caches of then stay valid.
    """
    views = {"views": config.views} if config.views > 1 else {}
    return views | ({"grid": True} if config.grid else {})


def describe_inputs(images: ImageList, config: FeaturesConfig, named_sha256: str) -> dict[str, str]:
    """Name → fingerprint of everything that the features are computed from.

    Args:
        images: of the dataset.
        config: its weights are hashed where they are a file.
        named_sha256: of weights that have a name; what a name stands for never changes.
    """
    is_file = is_file_name(config.weights)
    return {
        IMAGES_INPUT: images.sha256,
        "images": hash_json(images.stamps),
        "weights": hash_file(Path(config.weights)) if is_file else named_sha256,
    }


def compute(config: FeaturesConfig, images: ImageList, directory: Path, started: float) -> Manifest:
    """Compute the shards that are not there yet, then publish them all with a new manifest.

    Args:
        config: the stage's options.
        images: of the dataset.
        directory: of the features, held by this process.
        started: `time.perf_counter()` at the start of the stage.
    """
    require_any(any(images.stamps), images, "there is no such file")
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    dtype = choose_precision(config.precision, device)
    precision = precision_name(dtype)
    backbone = load_backbone(config.encoder, config.weights, config.image_size, device, precision)
    if config.grid:
        backbone.require_grid()
    transform = backbone.transform.describe()

    network = [VERSION, config.encoder, backbone.weights_sha256, transform, precision]
    if extras := describe_extras(config):
        network.append(extras)
    jobs = plan_shards(config, images, network)
    staging = directory / STAGING if Manifest.read(directory) else directory
    grid_places = backbone.grid_places if config.grid else None
    skipped = find_finished(jobs, (directory, staging), backbone.feature_dim, grid_places)
    todo = [job for job in jobs if job.name not in skipped]
    watch = Stopwatch()
    for job, unreadable in compute_shards(config, images, todo, backbone, device, staging, watch):
        skipped[job.name] = unreadable
    num_read = sum(len(job) for job in todo)
    rate, shares = num_read / max(watch.seconds, 1e-9), watch.shares()

    names = dict(zip(images.image_ids.tolist(), images.file_names, strict=True))
    left_out = [(names[image_id], why) for job in jobs for image_id, why in skipped[job.name]]
    require_any(len(left_out) < len(images), images, left_out[0][1] if left_out else "")
    stored = {job.name: job.final_fingerprint(skipped[job.name], images) for job in jobs}
    inputs = describe_inputs(images, config, backbone.weights_sha256)
    if RETRY in stored.values():
        inputs["images"] += f" {RETRY}"  # so that the next run is not up to date
    names_of_files = [name for job in jobs for name in list_files(config, job)]
    publish(names_of_files, staging, directory)
    manifest = Manifest(
        stage="features",
        version=VERSION,
        config=describe_config(config, precision),
        inputs=inputs,
        outputs={name: (directory / name).stat().st_size for name in names_of_files},
        counts={
            "num_images": len(images) - len(left_out),
            "num_skipped": len(left_out),
            "feature_dim": backbone.feature_dim,
            "num_shards": len(jobs),
            **({"num_views": config.views} if config.views > 1 else {}),
            **({"grid_places": backbone.grid_places} if config.grid else {}),
        },
        skipped=tuple(left_out),
        seconds=time.perf_counter() - started,
        details={
            "source": images.source,
            "weights": absolute_weights(config.weights),
            "backbone": backbone.name,
            "transform": transform,
            "device": str(device),
            "num_computed": num_read,
            "images_per_second": rate,
            "shares": shares,
            "fingerprints": stored,
        },
    ).write(directory)
    remove_stale(directory, manifest)
    return manifest


def require_any(found: bool, images: ImageList, reason: str) -> None:
    """Refuse a dataset of which no image can be used.

    Raises:
        DatasetError: naming the folder, an image and what is wrong with it.
    """
    if not found:
        example = f", e.g. {images.file_names[0]}: {reason}" if images.file_names else ""
        raise DatasetError(
            f"{images.source}: none of the {len(images)} images can be read{example}. Put them "
            "there, or name the folder they are in with 'showtell prepare --source DIR'."
        )


def list_files(config: FeaturesConfig, job: ShardJob) -> list[str]:
    """Names of the files of a shard; the grid file before the shard that vouches for it."""
    return [grid_name(job.name), job.name] if config.grid else [job.name]


def publish(names: Sequence[str], staging: Path, directory: Path) -> None:
    """Put the staged files in the place of their predecessors."""
    for name in names:
        if (staging / name).exists():
            (staging / name).replace(directory / name)


def remove_stale(directory: Path, manifest: Manifest) -> None:
    """Delete the files of an earlier layout or format, and the staging folder."""
    for path in directory.glob("part-*"):
        if path.name not in manifest.outputs:
            path.unlink(missing_ok=True)
    shutil.rmtree(directory / STAGING, ignore_errors=True)


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Keep Pillow's remarks on odd but readable files out of the progress line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def describe_counts(manifest: Manifest) -> str:
    """`8,000 images`, and where there are more: `, 6 views, 49 grid places`."""
    counts = manifest.counts
    known = [(name, key) for name, key in (("images", "num_images"), *EXTRAS) if key in counts]
    parts = [f"{counts[key]:,} {name}" for name, key in known]
    return ", ".join(parts + ([precision] if (precision := kept_precision(manifest)) else []))


def print_summary(directory: Path, manifest: Manifest) -> None:
    """Print the table that ends the stage."""
    counts, details = manifest.counts, manifest.details
    shares = "  ".join(f"{name} {share:.0%}" for name, share in details["shares"].items())
    rows = [
        ("images", f"{counts['num_images']:,}"),
        ("skipped", f"{counts['num_skipped']:,}"),
        *(("", f"{name}: {reason}") for name, reason in manifest.skipped[:NUM_SHOWN]),
        ("feature width", f"{counts['feature_dim']:,} ({details['backbone']})"),
        *((name, f"{counts[key]:,}") for name, key in EXTRAS if key in counts),
        ("precision", manifest.config["precision"]),
        ("shards", f"{counts['num_shards']:,}"),
        ("computed now", f"{details['num_computed']:,}"),
        ("speed", f"{details['images_per_second']:,.1f} images/s  {shares}"),
        ("time", format_seconds(manifest.seconds)),
        ("size", format_bytes(sum(manifest.outputs.values()))),
        ("path", str(directory)),
    ]
    print_table("features", rows)
