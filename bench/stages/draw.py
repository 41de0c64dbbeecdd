"""Generate the dataset of COCO's size that the other stages of `--coco-scale` use."""

import time

from .. import coco_scale
from ..config import BenchConfig
from ..measurement import Measurement


def measure(config: BenchConfig) -> Measurement:
    """Generate the dataset; it has no limit to compare with."""
    started = time.perf_counter()
    num_captions = coco_scale.generate(config.data, config.scale)
    seconds = time.perf_counter() - started
    return Measurement(
        throughput=num_captions / seconds,
        unit="captions/s",
        limit=num_captions / seconds,
        limited_by="nothing: it is not a stage",
        shares={"draw": 1.0},
        details={"seconds": seconds},
    )
