"""The stage `features`: reader → backbone → writer, where one shard is one unit of work.

A shard carries the fingerprint of all that it was computed from, so a run redoes only shards that
are missing, damaged, or of other images, weights or options. Where the folder already holds
finished features, their successors are staged in `.next/` and take their place at the end.
"""

import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..pipeline.config import FeaturesConfig
from ..pipeline.console import ProgressLine, format_bytes, format_seconds, print_note, print_table
from ..pipeline.errors import DatasetError, ShowTellError
from ..pipeline.manifest import Manifest, Stopwatch, hash_file, hash_json, locked
from .backbone import Backbone, load_backbone
from .device import PRECISIONS, choose_device, choose_precision
from .images import read_spans
from .plan import RETRY, ImageList, ShardJob, Skipped, find_finished, list_images, plan_shards
from .shards import FeatureShard, write_shard

VERSION = 1
STAGING = ".next"
NUM_SHOWN = 3


def features_dir(config: FeaturesConfig) -> Path:
    """`data/<dataset>/features/<encoder>-<weights>`."""
    return config.dataset_dir / "features" / f"{config.encoder}-{weights_label(config.weights)}"


def weights_label(weights: str) -> str:
    """Name of the weights in paths: as typed, or the stem of the file."""
    return Path(weights).stem if Path(weights).is_file() else weights


def extract(config: FeaturesConfig) -> Manifest:
    """Run the frozen network over every image of a prepared dataset and cache its features.

    Raises:
        MissingArtifactError: the dataset is not prepared.
        DatasetError: not one image can be read.
        ConfigError, WeightsError: from choosing the device or loading the network.
        ShowTellError: the disk is full, or another process writes the same features.
    """
    started = time.perf_counter()
    images = list_images(config)
    directory = features_dir(config)
    with locked(directory), without_pillow_warnings():
        done = Manifest.read(directory)
        if done is not None and is_up_to_date(done, directory, config, images):
            print_note(
                f"features: {directory} is up to date ({done.counts['num_images']:,} images)"
            )
            return done
        manifest = compute(config, images, directory, started)
    print_summary(directory, manifest)
    return manifest


def is_up_to_date(
    done: Manifest, directory: Path, config: FeaturesConfig, images: ImageList
) -> bool:
    """Whether nothing is left to do; loads no weights and decodes nothing."""
    # `auto` has no opinion: features computed elsewhere in another precision are as good.
    precision = done.config.get("precision") if config.precision == "auto" else config.precision
    inputs = describe_inputs(images, config, named_sha256=done.inputs.get("weights", ""))
    if not any(images.stamps):
        # The images were deleted afterwards: their features are what is left of them.
        inputs["images"] = done.inputs.get("images", "")
    return done.matches(directory, VERSION, describe_config(config, str(precision)), inputs)


def describe_config(config: FeaturesConfig, precision: str) -> dict[str, Any]:
    """The options on which the features depend."""
    return {
        "encoder": config.encoder,
        "weights": weights_label(config.weights),
        "image_size": config.image_size,
        "precision": precision,
        "format": config.format,
        "shard_size": config.shard_size,
    }


def describe_inputs(images: ImageList, config: FeaturesConfig, named_sha256: str) -> dict[str, str]:
    """Name → fingerprint of everything that the features are computed from.

    Args:
        images: of the dataset.
        config: its weights are hashed where they are a file.
        named_sha256: of weights that have a name; what a name stands for never changes.
    """
    path = Path(config.weights)
    return {
        "captions/images.parquet": images.sha256,
        "images": hash_json(images.stamps),
        "weights": hash_file(path) if path.is_file() else named_sha256,
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
    dtype = choose_precision(config.precision, device)
    precision = next(name for name, known in PRECISIONS.items() if known == dtype)
    backbone = load_backbone(config.encoder, config.weights, config.image_size, device, precision)
    transform = backbone.transform.describe()

    network = [VERSION, config.encoder, backbone.weights_sha256, transform, precision]
    jobs = plan_shards(config, images, network)
    staging = directory / STAGING if Manifest.read(directory) else directory
    skipped = find_finished(jobs, (directory, staging), backbone.feature_dim)
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
    publish(jobs, staging, directory)
    manifest = Manifest(
        stage="features",
        version=VERSION,
        config=describe_config(config, precision),
        inputs=inputs,
        outputs={job.name: (directory / job.name).stat().st_size for job in jobs},
        counts={
            "num_images": len(images) - len(left_out),
            "num_skipped": len(left_out),
            "feature_dim": backbone.feature_dim,
            "num_shards": len(jobs),
        },
        skipped=tuple(left_out),
        seconds=time.perf_counter() - started,
        details={
            "source": images.source,
            "weights": config.weights,
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


def compute_shards(
    config: FeaturesConfig,
    images: ImageList,
    jobs: Sequence[ShardJob],
    backbone: Backbone,
    device: torch.device,
    directory: Path,
    watch: Stopwatch,
) -> Iterator[tuple[ShardJob, Skipped]]:
    """Compute and write shards: threads decode ahead, also across shards, and another one writes.

    Args:
        config: the stage's options.
        images: of the dataset.
        jobs: the shards to compute.
        backbone: the frozen network.
        device: where it runs.
        directory: where the shards go.
        watch: takes the time spent waiting for `read`, `model` and `write`.

    Yields:
        Each job with its skipped images; all are written when the iterator ends.
    """
    reader = read_spans(
        images.files,
        images.image_ids,
        images.file_names,
        backbone.transform,
        [span for job in jobs for span in job.batches(config.batch_size)],
        config.num_workers,
        pin_memory=device.type == "cuda",
    )
    done = len(images) - sum(len(job) for job in jobs)
    progress = ProgressLine("features", total=len(images), unit="img", start=done)
    with closing(reader), ThreadPoolExecutor(1, "write") as writer, progress:
        writing: Future[None] | None = None
        for job in jobs:
            ids, outputs = [], []
            skipped: list[tuple[int, str]] = []
            for start, stop in job.batches(config.batch_size):
                with watch.part("read"):
                    batch = next(reader)
                with watch.part("model"), torch.inference_mode():
                    # Not waited for: a GPU still computes while the next batch is fetched.
                    pixels = batch.pixels.to(device, non_blocking=True)
                    nothing = torch.empty((0, backbone.feature_dim), device=device)
                    outputs.append(backbone(pixels) if len(pixels) else nothing)
                ids.append(batch.image_ids)
                skipped += batch.skipped
                progress.advance(stop - start, watch.shares())
            with watch.part("model"):
                features = torch.cat(outputs).half().cpu().numpy()
            fingerprint = job.final_fingerprint(tuple(skipped), images)
            shard = FeatureShard(np.concatenate(ids), features, tuple(skipped), fingerprint)
            require_finite(shard, config)
            with watch.part("write"):
                if writing is not None:
                    writing.result()
                writing = writer.submit(write_shard, directory / job.name, shard)
            yield job, shard.skipped
        with watch.part("write"):
            if writing is not None:
                writing.result()


def require_finite(shard: FeatureShard, config: FeaturesConfig) -> None:
    """Refuse features that overflowed.

    Raises:
        ShowTellError: naming the first such image.
    """
    finite = np.isfinite(shard.features).all(axis=1)
    if not finite.all():
        raise ShowTellError(
            f"{config.encoder} with {config.weights} gives features of image "
            f"{shard.image_ids[~finite][0]} that are not finite float16 numbers. Run 'showtell "
            "features' again with --precision fp32 or other --weights."
        )


def publish(jobs: Sequence[ShardJob], staging: Path, directory: Path) -> None:
    """Put the staged shards in the place of their predecessors."""
    for job in jobs:
        if (staging / job.name).exists():
            (staging / job.name).replace(directory / job.name)


def remove_stale(directory: Path, manifest: Manifest) -> None:
    """Delete the shards of an earlier layout or format, and what killed runs have left."""
    for path in [*directory.glob("part-*"), *directory.glob(".part-*.partial.*")]:
        if path.name not in manifest.outputs:
            path.unlink(missing_ok=True)
    shutil.rmtree(directory / STAGING, ignore_errors=True)


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Keep Pillow's remarks on odd but readable files out of the progress line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def print_summary(directory: Path, manifest: Manifest) -> None:
    """Print the table that ends the stage."""
    counts, details = manifest.counts, manifest.details
    shares = "  ".join(f"{name} {share:.0%}" for name, share in details["shares"].items())
    rows = [
        ("images", f"{counts['num_images']:,}"),
        ("skipped", f"{counts['num_skipped']:,}"),
        *(("", f"{name}: {reason}") for name, reason in manifest.skipped[:NUM_SHOWN]),
        ("feature width", f"{counts['feature_dim']:,} ({details['backbone']})"),
        ("shards", f"{counts['num_shards']:,}"),
        ("computed now", f"{details['num_computed']:,}"),
        ("speed", f"{details['images_per_second']:,.1f} images/s  {shares}"),
        ("time", format_seconds(manifest.seconds)),
        ("size", format_bytes(sum(manifest.outputs.values()))),
        ("path", str(directory)),
    ]
    print_table("features", rows)


def measure_bare_rate(backbone: Backbone, pixels: torch.Tensor, seconds: float = 5.0) -> float:
    """Measure how fast the network is by itself, on one batch already in memory.

    Args:
        backbone: the frozen network.
        pixels: (B, 3, H, W) uint8, on the network's device.
        seconds: to measure for, after one pass to warm up.

    Returns:
        Images per second, the bound of what `extract` can reach.
    """
    num_images = 0
    with torch.inference_mode():
        backbone(pixels).cpu()
        watch = Stopwatch()
        while watch.seconds < seconds:
            backbone(pixels).cpu()  # waits for the device
            num_images += len(pixels)
    return num_images / watch.seconds
