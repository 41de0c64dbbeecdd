"""Runs the network over the images of many shards: reader → backbone → writer, all at once."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..pipeline.stage.console import ProgressLine
from ..pipeline.stage.errors import ShowTellError
from ..pipeline.stage.stopwatch import Stopwatch
from .config import FeaturesConfig
from .encoders.backbone import Backbone
from .grids import GridWriter, grid_name
from .plan import ImageList, ShardJob, Skipped
from .reading.batches import ImageBatch, read_spans
from .shards import FeatureShard, find_finite, write_shard


def compute_shards(
    config: FeaturesConfig,
    images: ImageList,
    jobs: Sequence[ShardJob],
    backbone: Backbone,
    device: torch.device,
    directory: Path,
    watch: Stopwatch,
) -> Iterator[tuple[ShardJob, Skipped]]:
    """Compute and write shards: pictures are decoded ahead, across shards too, and a thread writes.

    Memory stays flat: only pooled features wait for the end of their shard, grids are written batch
    by batch.

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
    batch_size = max(1, config.batch_size // config.views)
    reader = read_spans(
        images.files,
        images.image_ids,
        images.file_names,
        backbone.transform,
        [span for job in jobs for span in job.batches(batch_size)],
        config.num_workers,
        for_gpu=device.type == "cuda",
        num_views=config.views,
    )
    done = len(images) - sum(len(job) for job in jobs)
    progress = ProgressLine("features", total=len(images), unit="img", start=done)
    # Half-written grids are removed after the thread that writes them has ended.
    with (
        ExitStack() as unfinished,
        closing(reader),
        ThreadPoolExecutor(1, "write") as pool,
        progress,
    ):
        behind = WriteBehind(pool, watch)
        for job in jobs:
            grids = start_grids(config, backbone, directory / job.name)
            if grids is not None:
                unfinished.callback(grids.discard)
            ids, outputs = [], []
            skipped: list[tuple[int, str]] = []
            for start, stop in job.batches(batch_size):
                with watch.part("read"):
                    batch = next(reader)
                with watch.part("model"), torch.inference_mode():
                    # Not waited for: a GPU still computes while the next batch is fetched.
                    pixels = batch.pixels.to(device, non_blocking=True)
                    pooled, grid = look(config, backbone, batch, pixels)
                    outputs.append(pooled)
                if grids is not None and grid is not None:
                    behind.submit(grids.append, grid)
                ids.append(batch.image_ids)
                skipped += batch.skipped
                progress.advance(stop - start, watch.shares())
            with watch.part("model"):
                values = torch.cat(outputs).half().cpu().numpy()  # (N, V, D)
            image_ids = np.concatenate(ids)
            require_finite(values, image_ids, config)
            shard = FeatureShard(
                image_ids=image_ids,
                features=np.ascontiguousarray(values[:, 0]),
                skipped=tuple(skipped),
                fingerprint=job.final_fingerprint(tuple(skipped), images),
                views=np.ascontiguousarray(values[:, 1:]) if config.views > 1 else None,
            )
            behind.submit(write_files, directory / job.name, shard, grids)
            yield job, shard.skipped
        behind.wait()


class WriteBehind:
    """Writes in another thread, one write at a time, and counts the time spent waiting for it.

    Args:
        pool: of one thread.
        watch: takes the waiting time as `write`.
    """

    def __init__(self, pool: Executor, watch: Stopwatch) -> None:
        self.pool, self.watch = pool, watch
        self.writing: Future[None] | None = None

    def submit(self, write: Callable[..., None], *args: Any) -> None:
        """Begin `write(*args)` when the write before has ended; raises what that has raised."""
        self.wait()
        self.writing = self.pool.submit(write, *args)

    def wait(self) -> None:
        """Wait for the last write; raises what it has raised."""
        with self.watch.part("write"):
            if self.writing is not None:
                self.writing.result()


def start_grids(config: FeaturesConfig, backbone: Backbone, path: Path) -> GridWriter | None:
    """Begin the grid file beside the shard at `path`, where grids are wanted."""
    if not config.grid:
        return None
    row_shape = (config.views, backbone.grid_places, backbone.feature_dim)
    return GridWriter(path.with_name(grid_name(path.name)), row_shape)


def look(
    config: FeaturesConfig, backbone: Backbone, batch: ImageBatch, pixels: torch.Tensor
) -> tuple[torch.Tensor, npt.NDArray[np.float16] | None]:
    """Run the network over the views of a batch of pictures.

    Args:
        config: the stage's options.
        backbone: the frozen network.
        batch: of B pictures; B may be 0.
        pixels: (B·V, 3, H, W) uint8, those of the batch on the network's device.

    Returns:
        pooled: (B, V, D) float32, on the network's device.
        grid: (B, V, R, D) float16; None where it is not wanted, or B is 0.
    """
    shape = (len(batch.image_ids), config.views)
    if not len(pixels):
        return torch.empty((*shape, backbone.feature_dim), device=pixels.device), None
    if not config.grid:
        return backbone(pixels).unflatten(0, shape), None
    pooled, places = backbone.pool_and_grid(pixels)
    grid = places.unflatten(0, shape).half().cpu().numpy()
    require_finite(grid, batch.image_ids, config)
    return pooled.unflatten(0, shape), grid


def write_files(path: Path, shard: FeatureShard, grids: GridWriter | None) -> None:
    """Write a shard; its grids come first, so that a shard never vouches for what is not there."""
    if grids is not None:
        shard = replace(shard, grid_crc32=grids.publish())
    write_shard(path, shard)


def require_finite(
    values: npt.NDArray[np.float16], image_ids: npt.NDArray[np.int64], config: FeaturesConfig
) -> None:
    """Refuse features (N, …) of N images that overflowed.

    Raises:
        ShowTellError: naming the first such image.
    """
    finite = find_finite(values)
    if not finite.all():
        raise ShowTellError(
            f"{config.encoder} with {config.weights} gives features of image "
            f"{image_ids[~finite][0]} that are not finite float16 numbers. Run 'showtell "
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
