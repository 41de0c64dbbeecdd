"""Benchmark of `showtell features`: images/s, beside the network alone and decoding alone."""

import tempfile
from pathlib import Path

from ...features.device import keep_freed_memory
from ...pipeline.stage.stopwatch import Stopwatch
from ..config import BenchConfig
from ..extraction import Extraction, decoding_rate, repeat_images
from ..measurement import Measurement

SHARD_SIZE = 256


def measure(config: BenchConfig) -> Measurement:
    """Measure the stage on the dataset's own images."""
    return measure_on(config, config.dataset)


def measure_on(config: BenchConfig, dataset: str) -> Measurement:
    """Measure the stage on images of `dataset`, with the network of `config.dataset`."""
    keep_freed_memory()
    extraction = Extraction.load(config, dataset, SHARD_SIZE)
    network = extraction.network_rate(config.seconds)
    num_images = SHARD_SIZE * max(1, round(config.seconds * network / SHARD_SIZE))
    images = repeat_images(extraction.images, num_images)
    decoding = decoding_rate(images, extraction.backbone.transform)

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as work:
        for _ in extraction.run(images, Path(work), watch):
            pass
    seconds, shares = watch.seconds, watch.shares()
    return Measurement(
        throughput=num_images / seconds,
        unit="images/s",
        limit=min(network, decoding),
        limited_by="the network alone" if network < decoding else "the decoding of JPEGs alone",
        shares=shares,
        details={
            "network_alone": network,
            "decoding_alone": decoding,
            "num_images": num_images,
            "num_files": min(num_images, len(extraction.images)),
        },
    )
