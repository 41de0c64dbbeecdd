"""Benchmark of `showtell features --engine ray` on this machine, beside `--engine local`.

Both are timed from the start to the last file, so Ray's figure contains its start: measure it with
10,000 images. Then a quarter of the images is measured with 1, 2, 4, … workers, each with one core
or one GPU, once the first shard is complete.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ...features.device import keep_freed_memory
from ...features.engines.engine import Engine
from ...features.engines.local import LocalEngine
from ...features.extract import open_engine
from ...features.plan import ImageList, plan_shards
from ...features.reading.batches import count_cores
from ...pipeline.stage.stopwatch import Stopwatch
from ..config import BenchConfig
from ..extraction import Extraction, repeat_images
from ..measurement import Measurement
from .workers import worker_counts

SHARD_SIZE, SMALL_SHARD_SIZE, MIN_SHARDS = 256, 64, 4
SECONDS_TO_TRY = 1.0


def measure(config: BenchConfig) -> Measurement:
    """Measure the stage with Ray and with the local engine, on the same images."""
    keep_freed_memory()
    extraction = Extraction.load(config, config.dataset, SHARD_SIZE)
    count = config.num_images or round(config.seconds * extraction.network_rate(SECONDS_TO_TRY))
    size = SHARD_SIZE if count >= SHARD_SIZE * MIN_SHARDS else SMALL_SHARD_SIZE
    options = replace(extraction.options, shard_size=size)
    images = repeat_images(extraction.images, max(count, size * MIN_SHARDS))

    watch = Stopwatch()
    compute(LocalEngine.load(options), images)
    local, watch = len(images) / watch.seconds, Stopwatch()
    with open_engine(replace(options, engine="ray")) as engine:
        opened = watch.seconds
        compute(engine, images, watch)
        total, shares = watch.seconds, watch.shares()
        fewer = images.part(0, max(len(images) // 4, size * MIN_SHARDS))
        rates = {
            f"workers_{number}": compute(with_workers(engine, number), fewer)
            for number in worker_counts(count_cores())
        }
    return Measurement(
        throughput=len(images) / total,
        unit="images/s",
        limit=local,
        limited_by="the local engine",
        shares=shares | {"start of Ray": opened / total},
        details={"num_images": len(images), "seconds_to_start": opened, **rates},
    )


def with_workers(engine: Engine, number: int) -> Engine:
    """Return an engine of Ray with this number of workers, each with one core or one GPU."""
    from ...features.engines.ray import RayEngine
    from ...features.engines.ray_cluster import Resources

    assert isinstance(engine, RayEngine)
    resources = Resources(number, 1, 0)
    if engine.resources.num_gpus:
        resources = replace(engine.resources, num_actors=min(number, engine.resources.num_actors))
    weights = replace(engine.weights, config=resources.set_in(engine.config))
    return replace(engine, resources=resources, weights=weights)


def compute(engine: Engine, images: ImageList, watch: Stopwatch | None = None) -> float:
    """Compute features of all images; return the images/s once the first shard is complete."""
    jobs = plan_shards(engine.config, images, ["bench"])
    with tempfile.TemporaryDirectory() as folder:
        shards = engine.compute(images, jobs, Path(folder), watch or Stopwatch())
        next(shards)
        started = time.perf_counter()
        num_done = sum(len(job) for job, _ in shards)
    return num_done / (time.perf_counter() - started)
