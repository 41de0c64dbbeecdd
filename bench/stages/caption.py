"""Benchmark of `showtell caption DIR --output FILE`: images/s, beside the features stage."""

import tempfile
from dataclasses import replace
from pathlib import Path

from ...features.device import keep_freed_memory
from ...model.runs.find import find_run
from ...pipeline.stage.stopwatch import Stopwatch
from ...serving.captioner import decoding_options
from ...serving.load import load
from ...serving.outputs import Outputs
from ...serving.stream import caption_stream
from ..config import BenchConfig
from ..extraction import Extraction, repeat_images
from ..measurement import Measurement

SHARD_SIZE = 256


def measure(config: BenchConfig) -> Measurement:
    """Caption images of a dataset with its newest run, after computing their features."""
    keep_freed_memory()
    captioner = load(find_run(config.data, config.run, config.dataset), data=config.data)
    config = replace(config, features=captioner.run.features)
    extraction = Extraction.load(config, config.dataset, SHARD_SIZE)
    wanted = max(1, round(config.seconds * extraction.network_rate(config.seconds / 4)))
    images = repeat_images(extraction.images, min(wanted, len(extraction.images)))
    paths = [images.files.locate(name) for name in images.file_names]
    with tempfile.TemporaryDirectory() as work:
        watch = Stopwatch()
        for _ in extraction.run(images, Path(work), watch):
            pass
        features_rate = len(images) / watch.seconds

        options = decoding_options(captioner.decoding, {})
        watch = Stopwatch()
        with Outputs.open(Path(work) / "captions.jsonl", None, "bench", "bench") as outputs:
            missing = outputs.find_missing(paths)
            outputs.start()
            for batch in caption_stream(captioner, missing, options, watch=watch):
                with watch.part("write"):
                    outputs.write(batch)
        rate, shares = len(missing) / watch.seconds, watch.shares()
    return Measurement(
        throughput=rate,
        unit="images/s",
        limit=features_rate,
        limited_by="the features stage, on the same images",
        shares=shares,
        details={"num_images": len(missing), "beam": options.beam},
    )
