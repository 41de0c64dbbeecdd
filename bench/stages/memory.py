"""Benchmark of the memory of `showtell features`: does it grow with the number of images?

The network is left out: it and the batches take the same memory whatever the number of images.
Images as large as the default `--max-pixels` allows, and larger ones, are decoded first.
"""

import io
import itertools
import math
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...features.config import FeaturesConfig
from ...features.device import keep_freed_memory
from ...features.encoders.backbone import Backbone
from ...features.encoders.caffe import caffe_transform
from ...features.plan import ImageList
from ...features.reading.limits import MAX_PIXELS
from ...pipeline.images.image_files import ImageFiles
from ...pipeline.stage.stopwatch import Stopwatch
from ..config import BenchConfig
from ..extraction import Extraction, decode_images, decoding_rate
from ..measurement import Measurement, forget_peak_memory, peak_memory

FEW, MANY = 1_000, 100_000  # images
NUM_FILES, IMAGE_SIZE = 100, 32
HUGE_MODES = ("I;16", "RGBA", "L")
HUGE_SIZES = (math.isqrt(MAX_PIXELS), 13_000)  # pixels; the second is refused
HUGE_WORKERS = 16


class NoNetwork:
    """Takes the place of the frozen network and returns random features."""

    transform = caffe_transform()
    feature_dim, num_cells, grid_dim = 2048, 0, 0

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return (B, D) float32 for (B, 3, H, W) uint8."""
        return torch.rand(len(pixels), self.feature_dim)


def measure(config: BenchConfig) -> Measurement:
    """Run the stage on a few images, then on many, and compare the peak memory."""
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        # In a process of its own, because freed memory stays with a process.
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            huge = pool.submit(read_huge_images, root / "huge").result()
        keep_freed_memory()  # as the stage does
        write_images(root)
        run_stage(config, root, FEW)
        few = peak_memory()
        seconds, shares = run_stage(config, root, MANY)
        many = peak_memory()
        decoding = decoding_rate(make_image_list(root, FEW), NoNetwork.transform)
    return Measurement(
        throughput=MANY / seconds,
        unit="images/s",
        limit=decoding,
        limited_by="the decoding of JPEGs alone",
        shares=shares,
        details={
            f"peak_bytes_of_{FEW}_images": few,
            f"peak_bytes_of_{MANY}_images": many,
            "growth": many / few - 1,
            "peak_bytes_of_huge_images": huge,
        },
    )


def run_stage(config: BenchConfig, root: Path, count: int) -> tuple[float, dict[str, float]]:
    """Run the stage on `count` images.

    Returns:
        seconds: the time it took.
        shares: part of the stage → share of that time.
    """
    options = FeaturesConfig(data=config.data, dataset=config.dataset)
    images = make_image_list(root, count)
    extraction = Extraction(options, cast(Backbone, NoNetwork()), torch.device("cpu"), images)
    shards, watch = root / f"shards-{count}", Stopwatch()
    shards.mkdir()
    started = time.perf_counter()
    for _ in extraction.run(images, shards, watch):
        pass
    return time.perf_counter() - started, watch.shares()


def write_images(root: Path) -> None:
    """Write small JPEG files of random pixels."""
    generator = np.random.default_rng(0)
    for number in range(NUM_FILES):
        pixels = generator.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG")
        (root / f"{number}.jpg").write_bytes(content.getvalue())


def read_huge_images(root: Path) -> int:
    """Draw huge images, decode them with `HUGE_WORKERS` workers, and return the peak memory."""
    keep_freed_memory()
    root.mkdir()
    kinds = list(itertools.product(HUGE_SIZES, HUGE_MODES))
    for number, (size, mode) in enumerate(kinds):
        Image.new(mode, (size, size)).save(root / f"{number}.png")
    forget_peak_memory()
    images = make_image_list(root, 2 * HUGE_WORKERS, len(kinds), "png")
    batches = decode_images(images, NoNetwork.transform, 1, HUGE_WORKERS, in_processes=False)
    num_skipped = sum(len(batch.skipped) for batch in batches)
    assert 0 < num_skipped < len(images), num_skipped
    return peak_memory()


def make_image_list(
    root: Path, count: int, num_files: int = NUM_FILES, suffix: str = "jpg"
) -> ImageList:
    """Return a list of `count` images; every name and stamp is a string of its own."""
    return ImageList(
        files=ImageFiles(root),
        source=str(root),
        sha256="drawn",
        image_ids=np.arange(count),
        file_names=[f"{number % num_files}.{suffix}" for number in range(count)],
        stamps=[f"{number} bytes" for number in range(count)],
    )
