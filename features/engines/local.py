"""Compute feature shards on this machine: reading, network and writing run in parallel.

The other engines run this one on each of their machines.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from ...pipeline.stage.command_line import command_line
from ...pipeline.stage.console import ProgressLine
from ...pipeline.stage.errors import ShowTellError
from ...pipeline.stage.stopwatch import Stopwatch
from ..config import FeaturesConfig
from ..device import choose_device, choose_precision, keep_freed_memory, precision_name
from ..encoders.backbone import Backbone, load_backbone
from ..encoders.network import NetworkInfo
from ..grids import GridWriter, grid_name
from ..plan import ImageList, ShardJob, Skipped
from ..reading.batches import ImageBatch, read_batches
from ..remote_shards import delete_shard, put_shard
from ..shards import FeatureShard, find_finite, write_shard
from .engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalEngine(Engine):
    """The network in this process.

    Attributes:
        config: the stage's options, with the precision used.
        backbone: the frozen network.
        device: where it runs.
        keeps_files: whether a shard stays in its folder once it is in the store.
    """

    config: FeaturesConfig
    backbone: Backbone
    device: torch.device
    keeps_files: bool = True

    @classmethod
    def load(cls, config: FeaturesConfig) -> Self:
        """Load the network; with `--grid`, check that it has grid features.

        Raises:
            ConfigError: an option is invalid, or the network has no grid features for `--grid`.
            WeightsError: the weights cannot be downloaded or verified, or do not fit.
        """
        device = choose_device(config.device)
        precision = precision_name(choose_precision(config.precision, device))
        config = replace(config, precision=precision)
        if device.type == "cpu":
            keep_freed_memory()
        backbone = load_backbone(
            config.encoder, config.weights, config.image_size, device, config.precision
        )
        if config.grid:
            backbone.require_grid()
        return cls(config, backbone, device)

    @property
    def network(self) -> NetworkInfo:
        """The network without its weights."""
        return NetworkInfo.of(self.backbone)

    def compute(
        self,
        images: ImageList,
        jobs: Sequence[ShardJob],
        directory: Path,
        watch: Stopwatch,
    ) -> Generator[tuple[ShardJob, Skipped], None, None]:
        """Compute shards as `Engine.compute` does.

        Images are decoded ahead of the network, and another thread writes the files. Memory use is
        constant: only the pooled features of the current shard are kept, and grid features are
        written batch by batch.

        Args:
            images: all images of the dataset.
            jobs: the shards to compute.
            directory: where the shards are written.
            watch: measures the time spent waiting for `read`, `model` and `write`.
        """
        config, backbone = self.config, self.backbone
        reader = read_batches(
            images.files,
            images.image_ids,
            images.file_names,
            backbone.transform,
            [span for job in jobs for span in job.batches(self.batch_size)],
            config.num_workers,
            for_gpu=self.device.type == "cuda",
            num_views=config.views,
            max_pixels=config.max_pixels,
            members=images.members,
        )
        num_finished = len(images) - sum(len(job) for job in jobs)
        progress = ProgressLine("features", total=len(images), unit="img", start=num_finished)
        # Entered first: unfinished grid files are removed after the writing thread has ended.
        with (
            ExitStack() as unfinished,
            closing(reader),
            ThreadPoolExecutor(1, "write") as pool,
            progress,
        ):
            writer = BackgroundWriter(pool, watch)
            for job in jobs:
                path = directory / job.name
                grids = start_grids(config, backbone, path)
                if grids is not None:
                    unfinished.callback(grids.discard)
                shard = compute_shard(job, self, reader, grids, writer, progress)
                shard = replace(shard, fingerprint=job.final_fingerprint(shard.skipped, images))
                writer.submit(write_files, self, path, shard, grids)
                yield job, shard.skipped
            writer.wait()

    @property
    def batch_size(self) -> int:
        """Images per batch: `--batch-size` divided by the number of views."""
        return max(1, self.config.batch_size // self.config.views)

    def encode(self, batch: ImageBatch) -> tuple[torch.Tensor, npt.NDArray[np.float16] | None]:
        """Run the network over the views of B images; B may be 0.

        Returns:
            pooled: (B, V, D) float32, on the network's device. A GPU may still be computing it.
            grid: (B, V, P, G) float16; None without `--grid`, or if B is 0.
        """
        pixels = batch.pixels.to(self.device, non_blocking=True)
        shape = (len(batch.image_ids), self.config.views)
        if not len(pixels):
            return torch.empty((*shape, self.backbone.feature_dim), device=self.device), None
        if not self.config.grid:
            return self.backbone(pixels).unflatten(0, shape), None
        pooled, cells = self.backbone.pool_and_grid(pixels)
        grid = cells.unflatten(0, shape).half().cpu().numpy()
        require_finite(grid, batch.image_ids, self.config)
        return pooled.unflatten(0, shape), grid


class BackgroundWriter:
    """A thread that writes files, one at a time.

    Args:
        pool: an executor with one thread.
        watch: measures the time spent waiting for writes, under the name `write`.
    """

    def __init__(self, pool: Executor, watch: Stopwatch) -> None:
        self.pool, self.watch = pool, watch
        self.pending: Future[None] | None = None

    def submit(self, write: Callable[..., None], *args: Any) -> None:
        """Wait for the previous write, then start `write(*args)`.

        If the previous write failed, its exception is raised here.
        """
        self.wait()
        self.pending = self.pool.submit(write, *args)

    def wait(self) -> None:
        """Wait for the last write. If it failed, its exception is raised here."""
        with self.watch.part("write"):
            if self.pending is not None:
                self.pending.result()


def compute_shard(
    job: ShardJob,
    engine: LocalEngine,
    reader: Generator[ImageBatch, None, None],
    grids: GridWriter | None,
    writer: BackgroundWriter,
    progress: ProgressLine,
) -> FeatureShard:
    """Encode the images of one shard and start writing its grid features.

    Returns:
        The shard, still without the checksums of its grid file.
    """
    watch, ids, outputs = writer.watch, [], []
    skipped: list[tuple[int, str]] = []
    for start, stop in job.batches(engine.batch_size):
        with watch.part("read"):
            batch = next(reader)
        with watch.part("model"), torch.inference_mode():
            pooled, grid = engine.encode(batch)
            outputs.append(pooled)
        if grids is not None and grid is not None:
            writer.submit(grids.append, grid)
        ids.append(batch.image_ids)
        skipped += batch.skipped
        progress.advance(stop - start, watch.shares())
    with watch.part("model"):
        values = torch.cat(outputs).half().cpu().numpy()  # (N, V, D)
    image_ids = np.concatenate(ids)
    require_finite(values, image_ids, engine.config)
    return FeatureShard(
        image_ids=image_ids,
        features=np.ascontiguousarray(values[:, 0]),
        skipped=tuple(skipped),
        fingerprint=job.fingerprint,
        views=np.ascontiguousarray(values[:, 1:]) if engine.config.views > 1 else None,
    )


def start_grids(config: FeaturesConfig, backbone: Backbone, path: Path) -> GridWriter | None:
    """Return a writer for the grid file of the shard at `path`, or None without `--grid`."""
    if not config.grid:
        return None
    row_shape = (config.views, backbone.num_cells, backbone.grid_dim)
    return GridWriter(path.with_name(grid_name(path.name)), row_shape)


def write_files(
    engine: LocalEngine, path: Path, shard: FeatureShard, grids: GridWriter | None
) -> None:
    """Write the grid file, then the shard, so that a shard on disk always has its grid file."""
    if grids is not None:
        shard = replace(shard, grid_crc32=grids.publish())
    write_shard(path, shard)
    logger.info("%s is written", put_shard(engine.config, path))
    if not engine.keeps_files:
        delete_shard(engine.config, path)


def require_finite(
    values: npt.NDArray[np.float16], image_ids: npt.NDArray[np.int64], config: FeaturesConfig
) -> None:
    """Check that the features of N images, (N, …), are finite.

    Raises:
        ShowTellError: naming the first image whose features are not finite.
    """
    finite = find_finite(values)
    if not finite.all():
        raise ShowTellError(
            f"The float16 features of image {image_ids[~finite][0]} from {config.encoder} with "
            f"{config.weights} weights are not finite. Run "
            f"'{command_line(config.data, 'features', '--dataset', config.dataset)}' again with "
            f"--precision fp32 or other --weights."
        )
