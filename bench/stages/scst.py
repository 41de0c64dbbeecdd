"""Benchmark of one epoch of self-critical training at COCO's size: captions/s, beside its products.

The throughput counts the captions of the dataset, as in `epoch`; SCST samples as many itself.
"""

from ...model.config import TrainConfig
from ...model.decoders.config import DecoderConfig
from ...model.presets import TRAIN_PRESETS
from ..config import BenchConfig
from ..decoder_products import decoding_products, training_products
from ..limits import Shape
from ..measurement import Measurement
from . import epoch

RUN = "scst"


def measure(config: BenchConfig) -> Measurement:
    """Run `showtell train --preset self-critical --epochs 1` from the run of the stage `epoch`."""
    preset = TRAIN_PRESETS["self-critical"] | {"views": 1, "epochs": 1}
    options = TrainConfig(
        data=config.data,
        dataset=config.dataset,
        run=RUN,
        init=epoch.RUN,
        batch_size=epoch.batch_size(),
        **preset,
    )
    limited_by = "its matrix products alone, if samples are as long as the captions"
    return epoch.measure_epoch(options, scst_products, limited_by)


def scst_products(config: DecoderConfig, num_images: int, lengths: list[int]) -> list[Shape]:
    """Return the matrix products of a step: sampling, policy gradient and cross-entropy."""
    sampling: list[Shape] = []
    for step in range(max(lengths)):
        num_rows = sum(length > step for length in lengths)
        sampling += decoding_products(config, num_rows, num_rows, num_rows)
    return sampling + 2 * training_products(config, num_images, lengths)
