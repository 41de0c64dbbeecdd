"""Benchmark of what the features stage keeps in memory as its images become more."""

import io
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..features.config import FeaturesConfig
from ..features.device import keep_freed_memory
from ..features.encoders.backbone import Backbone
from ..features.encoders.caffe import caffe_transform
from ..features.plan import ImageList, plan_shards
from ..features.runner import compute_shards
from ..pipeline.datasets.image_files import ImageFiles
from ..pipeline.stage.stopwatch import Stopwatch
from .caching import measure_decoding
from .config import BenchConfig
from .figures import Figures, peak_memory

FEW, MANY = 1_000, 100_000
IMAGE_SIZE = 32


class IdleNetwork:
    """Stands where the frozen network does, and gives features without looking."""

    transform = caffe_transform()
    feature_dim, num_cells = 2048, 0

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 → (B, D) float32."""
        return torch.rand(len(pixels), self.feature_dim)


def bench_memory(config: BenchConfig) -> Figures:
    """The features stage over few and then many drawn images, with a network that costs nothing.

    What it holds of the network and of a batch does not depend on their number; all else is here.
    """
    keep_freed_memory()  # as the stage does
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        write_images(root)
        run_stage(config, root, FEW)
        few = peak_memory()
        seconds, shares = run_stage(config, root, MANY)
        many = peak_memory()
        decoding = measure_decoding(draw_list(root, FEW), IdleNetwork.transform)
    return Figures(
        throughput=MANY / seconds,
        unit="images/s",
        limit=decoding,
        limited_by="the decoding of JPEGs alone",
        shares=shares,
        details={
            f"peak_bytes_of_{FEW}_images": few,
            f"peak_bytes_of_{MANY}_images": many,
            "growth": many / few - 1,
        },
    )


def run_stage(config: BenchConfig, root: Path, count: int) -> tuple[float, dict[str, float]]:
    """Read so many images and write their shards: the seconds, and each part's share of them."""
    options = FeaturesConfig(data=config.data, dataset=config.dataset)
    images, watch = draw_list(root, count), Stopwatch()
    jobs, idle = plan_shards(options, images, ["bench"]), cast(Backbone, IdleNetwork())
    shards = root / f"shards-{count}"
    shards.mkdir()
    started = time.perf_counter()
    for _ in compute_shards(options, images, jobs, idle, torch.device("cpu"), shards, watch):
        pass
    return time.perf_counter() - started, watch.shares()


def write_images(root: Path) -> None:
    """Draw a hundred small pictures of noise."""
    generator = np.random.default_rng(0)
    for number in range(100):
        pixels = generator.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG")
        (root / f"{number}.jpg").write_bytes(content.getvalue())


def draw_list(root: Path, count: int) -> ImageList:
    """So many images, each with a name and a stamp of its own text as in a real list."""
    return ImageList(
        files=ImageFiles(root),
        source=str(root),
        sha256="drawn",
        image_ids=np.arange(count),
        file_names=[f"{number % 100}.jpg" for number in range(count)],
        stamps=[f"{number} bytes" for number in range(count)],
    )
