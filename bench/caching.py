"""Benchmarks of the features stage, and of reading what it has written."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ..features.backbone import load_backbone
from ..features.device import choose_device, keep_freed_memory
from ..features.images import read_batches
from ..features.plan import ImageList, list_images, plan_shards
from ..features.runner import compute_shards, measure_bare_rate
from ..features.store import FeatureStore, find_features, mending_command
from ..pipeline.config import BenchConfig, FeaturesConfig
from ..pipeline.manifest import Manifest, Stopwatch
from .figures import Figures
from .limits import time_reading

SHARD_SIZE = 256


def bench_features(config: BenchConfig) -> Figures:
    """The features stage over some images, beside the network alone and the decoding alone."""
    keep_freed_memory()
    device = choose_device("auto")
    directory = find_features(config.dataset_dir, config.features)
    done = Manifest.require(directory, mending_command(directory))
    options = FeaturesConfig(
        data=config.data,
        dataset=config.dataset,
        encoder=done.config["encoder"],
        weights=done.details["weights"],
        image_size=done.config["image_size"],
        shard_size=SHARD_SIZE,
    )
    backbone = load_backbone(
        options.encoder, options.weights, options.image_size, device, options.precision
    )
    images = list_images(options)
    reader = read_batches(
        images.files, images.image_ids, images.file_names, backbone.transform, options.batch_size
    )
    batch = next(reader)
    reader.close()
    bare = measure_bare_rate(backbone, batch.pixels.to(device), config.seconds)
    num_images = min(len(images), SHARD_SIZE * max(1, round(config.seconds * bare / SHARD_SIZE)))
    some = first_images(images, num_images)

    started = time.perf_counter()
    for _ in read_batches(
        some.files, some.image_ids, some.file_names, backbone.transform, options.batch_size
    ):
        pass
    decoding = num_images / (time.perf_counter() - started)

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as work:
        jobs = plan_shards(options, some, ["bench"])
        for _ in compute_shards(options, some, jobs, backbone, device, Path(work), watch):
            pass
    seconds, shares = watch.seconds, watch.shares()
    return Figures(
        throughput=num_images / seconds,
        unit="images/s",
        limit=min(bare, decoding),
        limited_by="the network alone" if bare < decoding else "the decoding of JPEGs alone",
        shares=shares,
        details={"network_alone": bare, "decoding_alone": decoding, "num_images": num_images},
    )


def first_images(images: ImageList, count: int) -> ImageList:
    """The first so many of a list."""
    return replace(
        images,
        image_ids=images.image_ids[:count],
        file_names=images.file_names[:count],
        stamps=images.stamps[:count],
    )


def bench_shards(config: BenchConfig) -> Figures:
    """Loading cached features, beside a plain sequential read of the same bytes."""
    directory = find_features(config.dataset_dir, config.features)
    paths = sorted(path for path in directory.glob("part-*") if ".grid" not in path.name)
    num_bytes = sum(path.stat().st_size for path in paths)
    reading = time_reading(paths)
    started = time.perf_counter()
    store = FeatureStore.load(directory)
    loading = time.perf_counter() - started
    return Figures(
        throughput=num_bytes / loading / 1e6,
        unit="MB/s",
        limit=num_bytes / reading / 1e6,
        limited_by="a sequential read of the files",
        shares={"read": min(1.0, reading / loading), "check and copy": 1 - reading / loading},
        details={"num_bytes": num_bytes, "num_images": len(store.image_ids)},
    )
