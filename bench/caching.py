"""Benchmarks of the features stage, and of reading what it has written."""

import tempfile
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch

from ..features.config import FeaturesConfig
from ..features.device import choose_device, keep_freed_memory
from ..features.encoders.backbone import Backbone, load_backbone
from ..features.encoders.caffe import caffe_transform
from ..features.plan import ImageList, list_images, plan_shards
from ..features.reading.batches import ImageBatch, read_batches, split_into_batches
from ..features.reading.transform import Transform
from ..features.runner import compute_shards
from ..features.store import FeatureStore, features_command, find_features
from ..pipeline.datasets.image_files import ImageFiles
from ..pipeline.stage.errors import ConfigError, DatasetError, MissingArtifactError
from ..pipeline.stage.manifest import Manifest
from ..pipeline.stage.stopwatch import Stopwatch
from .config import BenchConfig
from .figures import Figures
from .limits import time_reading

SHARD_SIZE = 256
FULL_SIZE = ("coco2017", "coco2014", "coco-karpathy")  # photographs about 640 pixels wide
NUM_DECODED, NUM_ZIPPED = 1024, 256


def bench_features(config: BenchConfig) -> Figures:
    """The features stage over some images, beside the network alone and the decoding alone."""
    return measure_features(config, config.dataset)


def bench_features_coco(config: BenchConfig) -> Figures:
    """The same on COCO's photographs, in their full size, and how fast they come out of a zip.

    Raises:
        MissingArtifactError: no dataset of COCO is prepared.
    """
    for dataset in FULL_SIZE:
        if Manifest.read(config.data / dataset / "captions") is not None:
            images = present_images(FeaturesConfig(data=config.data, dataset=dataset))
            rates = compare_sources(images)
            figures = measure_features(config, dataset)
            return replace(figures, details=figures.details | rates)
    raise MissingArtifactError(
        f"{config.data} holds no prepared dataset of COCO. Run 'showtell prepare --dataset "
        f"coco2017' with --source DIR, or after 'showtell download --dataset coco2017'."
    )


def measure_features(config: BenchConfig, dataset: str) -> Figures:
    """The features stage over images of a dataset, with the network of `config.dataset`."""
    keep_freed_memory()
    device = choose_device("auto")
    directory = find_features(config.dataset_dir, config.features)
    done = Manifest.require(directory, features_command(directory))
    options = FeaturesConfig(
        data=config.data,
        dataset=dataset,
        encoder=done.config["encoder"],
        weights=done.details["weights"],
        image_size=done.config["image_size"],
        shard_size=SHARD_SIZE,
    )
    backbone = load_backbone(
        options.encoder, options.weights, options.image_size, device, options.precision
    )
    images = present_images(options)
    warm = repeat_images(images, options.batch_size)
    batch = next(read_some(warm, backbone.transform, options.batch_size))
    bare = measure_bare_rate(backbone, batch.pixels.to(device), config.seconds)
    rates = {"network_alone": bare}
    try:
        in_bytes = load_backbone(
            options.encoder, options.weights, options.image_size, device, "int8"
        )
    except ConfigError:
        pass  # neither every device nor every network is for int8
    else:
        rates["network_alone_int8"] = measure_bare_rate(in_bytes, batch.pixels, config.seconds)
    num_images = SHARD_SIZE * max(1, round(config.seconds * bare / SHARD_SIZE))
    some = repeat_images(images, num_images)
    decoding = measure_decoding(some, backbone.transform)

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
        details={
            **rates,
            "decoding_alone": decoding,
            "num_images": num_images,
            "num_files": min(num_images, len(images)),
        },
    )


def measure_bare_rate(backbone: Backbone, pixels: torch.Tensor, seconds: float) -> float:
    """Measure the speed of the network alone, on one batch that is in memory already.

    Args:
        backbone: the frozen network.
        pixels: (B, 3, H, W) uint8, on the network's device.
        seconds: how long to measure, after one pass to warm up.

    Returns:
        Images per second: the upper bound for the features stage.
    """
    num_images = 0
    with torch.inference_mode():
        backbone(pixels).cpu()
        watch = Stopwatch()
        while watch.seconds < seconds:
            backbone(pixels).cpu()  # waits for the device
            num_images += len(pixels)
    return num_images / watch.seconds


def present_images(options: FeaturesConfig) -> ImageList:
    """The images of a dataset whose files are still there.

    Raises:
        MissingArtifactError: none is.
    """
    images = list_images(options)
    there = [place for place, stamp in enumerate(images.stamps) if stamp is not None]
    if not there:
        raise MissingArtifactError(
            f"none of the {len(images):,} images of {options.dataset} is under {images.source} any "
            f"more. Bring them back, or bench the other stages by their names."
        )
    return replace(
        images,
        image_ids=images.image_ids[there],
        file_names=[images.file_names[place] for place in there],
        stamps=[images.stamps[place] for place in there],
    )


def compare_sources(images: ImageList) -> dict[str, float]:
    """Images/s decoded from a folder and from a zip for 224×224, of the first files of a list."""
    names = images.file_names[:NUM_ZIPPED]
    rates = {}
    with tempfile.TemporaryDirectory() as work:
        for kind in ("folder", "zip"):
            root = Path(work) / kind
            root.mkdir()
            for name in names:
                content, top = images.files.read(name), name.partition("/")[0]
                if kind == "folder":
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / name).write_bytes(content)
                else:
                    with ZipFile(root / f"{top}.zip", "a") as archive:
                        archive.writestr(name, content)
            same = replace(images, files=ImageFiles(root), file_names=names)
            same = repeat_images(same, NUM_DECODED)
            rates[f"decoding_from_{kind}"] = measure_decoding(same, caffe_transform())
    return rates


def measure_decoding(images: ImageList, transform: Transform) -> float:
    """Images per second that are read, decoded and scaled, with no network behind.

    Raises:
        DatasetError: one of them cannot be read.
    """
    started = time.perf_counter()
    for batch in read_some(images, transform, 64):
        for _, reason in batch.skipped:
            raise DatasetError(f"an image of {images.source} cannot be measured: it {reason}.")
    return len(images) / (time.perf_counter() - started)


def read_some(
    images: ImageList, transform: Transform, batch_size: int
) -> Generator[ImageBatch, None, None]:
    """Read a list's images in batches, as the features stage does on this machine."""
    return read_batches(
        images.files,
        images.image_ids,
        images.file_names,
        transform,
        split_into_batches(0, len(images), batch_size),
        for_gpu=torch.cuda.is_available(),
    )


def repeat_images(images: ImageList, count: int) -> ImageList:
    """So many images of a list, from its first on and round again; their ids are new."""
    places = [place % len(images.file_names) for place in range(count)]
    return replace(
        images,
        image_ids=np.arange(count),
        file_names=[images.file_names[place] for place in places],
        stamps=[images.stamps[place] for place in places],
    )


def bench_shards(config: BenchConfig) -> Figures:
    """Loading cached features, beside a plain sequential read of the same bytes."""
    directory = find_features(config.dataset_dir, config.features)
    paths = sorted(path for path in directory.glob("part-*") if ".grid" not in path.name)
    num_bytes = sum(path.stat().st_size for path in paths)
    reading = time_reading(paths)
    FeatureStore.load(directory)  # imports what reads the format
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
