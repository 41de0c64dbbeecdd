"""Runs the network over the images of many shards: reader → backbone → writer, all at once."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from ..pipeline.config import FeaturesConfig
from ..pipeline.console import ProgressLine
from ..pipeline.errors import ShowTellError
from ..pipeline.manifest import Stopwatch
from .backbone import Backbone
from .images import read_spans
from .plan import ImageList, ShardJob, Skipped
from .shards import FeatureShard, write_shard


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
