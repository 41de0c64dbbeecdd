"""Parts of the features stage, set up for measuring: image lists, the frozen network, decoding."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..features.config import FeaturesConfig
from ..features.device import choose_device
from ..features.encoders.backbone import Backbone, load_backbone
from ..features.engines.local import LocalEngine
from ..features.plan import ImageList, list_images, plan_shards
from ..features.reading.batches import ImageBatch, read_batches, split_into_batches
from ..features.reading.transform import Transform
from ..features.store import find_features
from ..pipeline.stage.artifacts import require_stage
from ..pipeline.stage.errors import DatasetError, MissingArtifactError
from ..pipeline.stage.stopwatch import Stopwatch
from .config import BenchConfig

DECODING_BATCH = 64  # images


@dataclass(frozen=True)
class Extraction:
    """The features stage on one dataset, with the network loaded.

    Attributes:
        options: of the stage.
        backbone: the frozen network.
        device: where it runs.
        images: the dataset's images whose files exist.
    """

    options: FeaturesConfig
    backbone: Backbone
    device: torch.device
    images: ImageList

    @classmethod
    def load(cls, config: BenchConfig, dataset: str, shard_size: int) -> "Extraction":
        """Load the network that made the features of `config.dataset`, for images of `dataset`."""
        device = choose_device("auto")
        directory = find_features(config.dataset_dir, config.features)
        done = require_stage(directory, check_content=False)
        options = FeaturesConfig(
            data=config.data,
            dataset=dataset,
            encoder=done.config["encoder"],
            weights=done.details["weights"],
            image_size=done.config["image_size"],
            shard_size=shard_size,
        )
        backbone = load_backbone(
            options.encoder, options.weights, options.image_size, device, options.precision
        )
        return cls(options, backbone, device, existing_images(options))

    def network_rate(self, seconds: float) -> float:
        """Return the images/s of the network alone."""
        images = repeat_images(self.images, self.options.batch_size)
        batch = next(decode_images(images, self.backbone.transform, len(images)))
        return network_rate(self.backbone, batch.pixels.to(self.device), seconds)

    def run(self, images: ImageList, folder: Path, watch: Stopwatch) -> Iterator[int]:
        """Compute features of `images` into `folder`, yielding the number of images per shard."""
        jobs = plan_shards(self.options, images, ["bench"])
        engine = LocalEngine(self.options, self.backbone, self.device)
        for job, _ in engine.compute(images, jobs, folder, watch):
            yield len(job)


def network_rate(backbone: Backbone, pixels: torch.Tensor, seconds: float) -> float:
    """Return the images/s of the network alone, on one batch that is in memory already.

    Args:
        backbone: the frozen network.
        pixels: (B, 3, H, W) uint8, on the network's device.
        seconds: how long to measure, after one pass to warm up.
    """
    num_images = 0
    with torch.inference_mode():
        backbone(pixels).cpu()
        watch = Stopwatch()
        while watch.seconds < seconds:
            backbone(pixels).cpu()  # waits for the device
            num_images += len(pixels)
    return num_images / watch.seconds


def existing_images(options: FeaturesConfig) -> ImageList:
    """Return the images of a dataset whose files exist.

    Raises:
        MissingArtifactError: no file exists.
    """
    images = list_images(options)
    positions = [i for i, stamp in enumerate(images.stamps) if stamp is not None]
    if not positions:
        raise MissingArtifactError(
            f"None of the {len(images):,} images of {options.dataset} exists under "
            f"{images.source}. Restore them, or name the other stages to measure only those."
        )
    return images.select(positions)


def repeat_images(images: ImageList, count: int) -> ImageList:
    """Return `count` images: those of a list, repeated in order, with new ids."""
    repeated = images.select([i % len(images) for i in range(count)])
    return replace(repeated, image_ids=np.arange(count))


def decode_images(
    images: ImageList,
    transform: Transform,
    batch_size: int = DECODING_BATCH,
    num_workers: int | None = None,
    in_processes: bool | None = None,
) -> Generator[ImageBatch, None, None]:
    """Decode images in batches, by default with the workers of the features stage."""
    if in_processes is None:
        in_processes = torch.cuda.is_available()
    return read_batches(
        images.files,
        images.image_ids,
        images.file_names,
        transform,
        split_into_batches(0, len(images), batch_size),
        num_workers,
        for_gpu=in_processes,
        members=images.members,
    )


def decoding_rate(images: ImageList, transform: Transform) -> float:
    """Return the images/s that are read, decoded and resized, without a network.

    Raises:
        DatasetError: an image is unreadable.
    """
    started = time.perf_counter()
    for batch in decode_images(images, transform):
        for _, reason in batch.skipped:
            raise DatasetError(f"{images.source}: an image cannot be measured: {reason}.")
    return len(images) / (time.perf_counter() - started)
