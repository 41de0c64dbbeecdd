"""Benchmark of one epoch at COCO's size: captions/s, beside the decoder's matrix products."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ...model.config import TrainConfig
from ...model.decoders.config import DecoderConfig
from ...model.runs.layout import LOG_NAME
from ...model.train import train
from ...model.training.data import load_training_data
from ...model.training.trainer import Trainer
from ..config import BenchConfig
from ..decoder_products import training_products
from ..limits import Shape, time_products
from ..measurement import Measurement

# Decoder config, number of images and caption lengths of a step → shapes of its matrix products.
Products = Callable[[DecoderConfig, int, list[int]], list[Shape]]

RUN = "epoch"
GPU_BATCH_SIZE = 1024  # captions; a GPU would idle between smaller steps


def measure(config: BenchConfig) -> Measurement:
    """Run `showtell train --epochs 1`, from start to end."""
    options = TrainConfig(
        data=config.data, dataset=config.dataset, run=RUN, epochs=1, batch_size=batch_size()
    )
    return measure_epoch(options, training_products, "its matrix products alone")


def measure_epoch(options: TrainConfig, products: Products, limited_by: str) -> Measurement:
    """Train a run of one epoch from start to end.

    Args:
        options: options of `showtell train`; an existing run of that name is replaced.
        products: returns the shapes of a step's matrix products.
        limited_by: what limits the throughput.
    """
    run_dir = options.data / "runs" / str(options.run)
    shutil.rmtree(run_dir, ignore_errors=True)
    started = time.perf_counter()
    manifest = train(options)
    seconds = time.perf_counter() - started
    trainer = Trainer(options, load_training_data(options), options.data / "bench" / "run")
    return Measurement(
        throughput=manifest.counts["num_captions"] / manifest.seconds,
        unit="captions/s",
        limit=products_rate(trainer, products),
        limited_by=limited_by,
        shares={"epoch": manifest.seconds / seconds, "start": 1 - manifest.seconds / seconds},
        details={
            "batch_size": options.batch_size,
            "num_steps": manifest.counts["num_steps"],
            "seconds": seconds,
            "seconds_of_epoch": manifest.seconds,
            "seconds_of_validation": read_validation_seconds(run_dir),
        },
    )


def batch_size() -> int:
    """Return the captions per step that suit the device."""
    return GPU_BATCH_SIZE if torch.cuda.is_available() else TrainConfig.batch_size


def products_rate(trainer: Trainer, products: Products) -> float:
    """Return the captions/s of the matrix products of one batch."""
    batches = trainer.batches.plan_epoch(0)
    batch = trainer.batches.gather(batches[len(batches) // 2])
    lengths = batch.lengths.tolist()
    shapes = products(trainer.decoder.config, len(batch.image_rows), lengths)
    precision = trainer.precision
    return len(lengths) / time_products(shapes, precision.device, precision.dtype)


def read_validation_seconds(run_dir: Path) -> float:
    """Return the time of a run's last validation, in seconds."""
    last = (run_dir / LOG_NAME).read_text("utf-8").splitlines()[-1]
    return float(json.loads(last)["val_seconds"])
