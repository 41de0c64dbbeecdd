"""Benchmark of image decoding by number of workers: does it keep up with the network?

Python's lock lets about two threads decode at once, so threads and processes are compared.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ...features.device import keep_freed_memory
from ...features.plan import ImageList
from ...features.reading.batches import count_cores
from ...pipeline.stage.console import print_table
from ...pipeline.stage.stopwatch import Stopwatch
from ..config import BenchConfig
from ..extraction import DECODING_BATCH, Extraction, decode_images, repeat_images
from ..measurement import Measurement

GPU_SHARD_SIZE, CPU_SHARD_SIZE = 1024, 64  # images
MIN_SHARDS, MIN_BATCHES = 3, 4
FIRST_GUESS = 500.0  # images/s of one worker; decides how many images are decoded
HEADER = ("workers", "threads", "processes", "features stage")


def measure(config: BenchConfig) -> Measurement:
    """Measure decoding alone and the whole stage with 1, 2, 4, … workers, up to the cores."""
    keep_freed_memory()
    seconds = config.seconds / 5  # there are many measurements
    extraction = Extraction.load(config, config.dataset, CPU_SHARD_SIZE)
    if extraction.device.type == "cuda":
        extraction = replace(
            extraction, options=replace(extraction.options, shard_size=GPU_SHARD_SIZE)
        )
    network = extraction.network_rate(seconds)
    rates = {"network_alone": network}
    threads, processes, watch = FIRST_GUESS, FIRST_GUESS / 2, Stopwatch()
    for count in worker_counts(count_cores()):
        threads = decoding_rate_of(extraction, threads * seconds, count, in_processes=False)
        processes = decoding_rate_of(extraction, 2 * processes * seconds, count, in_processes=True)
        fastest = min(network, max(threads, processes))
        watch = Stopwatch()
        stage = extraction_rate_of(extraction, fastest * seconds, count, watch)
        rates |= {
            f"threads_{count}": threads,
            f"processes_{count}": processes,
            f"features_{count}": stage,
        }
    print_rates(rates)
    return Measurement(
        throughput=stage,
        unit="images/s",
        limit=network,
        limited_by="the network alone",
        shares=watch.shares(),
        details=rates,
    )


def worker_counts(num_cores: int) -> list[int]:
    """Return 1, 2, 4, … and the number of cores itself."""
    return sorted({1 << power for power in range(num_cores.bit_length())} | {num_cores})


def decoding_rate_of(
    extraction: Extraction, num_images: float, num_workers: int, *, in_processes: bool
) -> float:
    """Return the images/s of decoding alone, once the workers have started."""
    num_batches = max(MIN_BATCHES, round(num_images / DECODING_BATCH))
    images = repeat_images(extraction.images, num_batches * DECODING_BATCH)
    batches = decode_images(
        images,
        extraction.backbone.transform,
        num_workers=num_workers,
        in_processes=in_processes,
    )
    next(batches)
    started = time.perf_counter()
    for _ in batches:
        pass
    return (num_batches - 1) * DECODING_BATCH / (time.perf_counter() - started)


def extraction_rate_of(
    extraction: Extraction, num_images: float, num_workers: int, watch: Stopwatch
) -> float:
    """Return the images/s of the whole stage, once its first shard is complete."""
    size = extraction.options.shard_size
    num_shards = max(MIN_SHARDS, round(num_images / size))
    images: ImageList = repeat_images(extraction.images, num_shards * size)
    options = replace(extraction.options, num_workers=num_workers)
    with tempfile.TemporaryDirectory() as work:
        shards = replace(extraction, options=options).run(images, Path(work), watch)
        next(shards)
        started = time.perf_counter()
        num_done = sum(shards)
    return num_done / (time.perf_counter() - started)


def print_rates(rates: dict[str, float]) -> None:
    """Print a row of images/s for each number of workers."""
    counts = [name.removeprefix("threads_") for name in rates if name.startswith("threads_")]
    kinds = ("threads", "processes", "features")
    rows = [(count, *(f"{rates[f'{kind}_{count}']:,.0f}" for kind in kinds)) for count in counts]
    print_table(f"images/s; the network alone {rates['network_alone']:,.0f}", rows, HEADER)
