"""Benchmark of one epoch of self-critical training at COCO's size: captions/s, beside its products.

The throughput counts the captions of the dataset, as in `epoch`; SCST samples as many itself.
"""

import shutil
import time

from ...model.config import TrainConfig
from ...model.decoders.config import DecoderConfig
from ...model.presets import TRAIN_PRESETS
from ...model.train import Trainer, train
from ...model.training.data import load_training_data
from ..config import BenchConfig
from ..decoder_products import decoding_products, training_products
from ..limits import Shape, time_products
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
    run_dir = config.data / "runs" / RUN
    shutil.rmtree(run_dir, ignore_errors=True)
    started = time.perf_counter()
    manifest = train(options)
    seconds = time.perf_counter() - started
    trainer = Trainer(options, load_training_data(options), config.data / "bench" / "run")
    return Measurement(
        throughput=manifest.counts["num_captions"] / manifest.seconds,
        unit="captions/s",
        limit=products_rate(trainer),
        limited_by="its matrix products alone, if samples are as long as the captions",
        shares={"epoch": manifest.seconds / seconds, "start": 1 - manifest.seconds / seconds},
        details={
            "batch_size": options.batch_size,
            "num_steps": manifest.counts["num_steps"],
            "seconds": seconds,
            "seconds_of_epoch": manifest.seconds,
            "seconds_of_validation": epoch.read_validation_seconds(run_dir),
        },
    )


def products_rate(trainer: Trainer) -> float:
    """Return the captions/s of the matrix products of one batch."""
    batches = trainer.batches.plan_epoch(0)
    batch = trainer.batches.gather(batches[len(batches) // 2])
    lengths = batch.lengths.tolist()
    shapes = scst_products(trainer.decoder.config, len(batch.image_rows), lengths)
    precision = trainer.precision
    return len(lengths) / time_products(shapes, precision.device, precision.dtype)


def scst_products(config: DecoderConfig, num_images: int, lengths: list[int]) -> list[Shape]:
    """Return the matrix products of a step: sampling, policy gradient and cross-entropy."""
    sampling: list[Shape] = []
    for step in range(max(lengths)):
        num_rows = sum(length > step for length in lengths)
        sampling += decoding_products(config, num_rows, num_rows, num_rows)
    return sampling + 2 * training_products(config, num_images, lengths)
