"""Benchmark of the training loop: captions/s, beside the decoder's matrix products."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count

import torch
from torch import Tensor

from ...model.config import TrainConfig
from ...model.training.batches import CaptionBatch
from ...model.training.data import load_training_data
from ...model.training.trainer import Trainer
from ..config import BenchConfig
from ..decoder_products import training_products
from ..limits import count_flops, time_products
from ..measurement import Measurement, peak_memory

WARM_UP_STEPS = 5


def measure(config: BenchConfig) -> Measurement:
    """Train the default decoder on a dataset's features for some steps."""
    options = TrainConfig(data=config.data, dataset=config.dataset, features=config.features)
    trainer = Trainer(options, load_training_data(options), config.data / "bench" / "run")
    trainer.decoder.train()
    batches = plan_batches(trainer)
    warm_up = TimedSteps(trainer)
    for _ in range(WARM_UP_STEPS):
        warm_up.step(next(batches))
    steps = TimedSteps(trainer)
    batch = steps.step(next(batches))
    first_peak = peak_memory()  # data, weights, optimizer, and the largest step
    while steps.seconds <= config.seconds:
        steps.step(next(batches))
    peak = peak_memory()
    started = time.perf_counter()
    trainer.decode_validation()
    validation_s = time.perf_counter() - started
    epoch_s = len(trainer.batches) * steps.seconds / steps.num_steps

    shapes = training_products(
        trainer.decoder.config, len(batch.image_rows), batch.lengths.tolist()
    )
    products_s = time_products(shapes, trainer.precision.device, trainer.precision.dtype)
    # Captions of average length with as many tokens as this batch.
    num_captions = len(batch.nonpad) * steps.num_captions / steps.num_tokens
    return Measurement(
        throughput=steps.num_captions / steps.seconds,
        unit="captions/s",
        limit=num_captions / products_s,
        limited_by="its matrix products alone",
        shares={part: seconds / steps.seconds for part, seconds in steps.parts.items()},
        details={
            "seconds_per_step": steps.seconds / steps.num_steps,
            "validation_share_of_epoch": validation_s / (epoch_s + validation_s),
            "peak_bytes_of_first_steps": first_peak,
            "peak_growth_after_them": peak / first_peak - 1,
            "flops_per_caption": count_flops(shapes) / num_captions,
        },
    )


def plan_batches(trainer: Trainer) -> Iterator[Tensor]:
    """Yield the batches of endless epochs, after the one with the most tokens.

    With the largest batch first, memory that grows later is not what a step needs.
    """
    batches = trainer.batches
    largest = max(batches.plan_epoch(0), key=lambda batch: int(batches.lengths[batch].sum()))
    epochs = (batches.plan_epoch(epoch) for epoch in count())
    return chain([largest], chain.from_iterable(epochs))


class TimedSteps:
    """Training steps with the time of each of their parts.

    Attributes:
        parts: part of a step → seconds in all.
        num_steps: number of steps so far.
        num_captions: number of captions in them.
        num_tokens: number of non-padding tokens in them.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.parts = dict.fromkeys(("gather", "forward", "backward", "optimizer"), 0.0)
        self.num_steps = self.num_captions = self.num_tokens = 0

    @property
    def seconds(self) -> float:
        """Time of all steps, in seconds."""
        return sum(self.parts.values())

    def step(self, positions: Tensor) -> CaptionBatch:
        """Train on the captions at these positions."""
        trainer = self.trainer
        with self._timed("gather"):
            batch, share = trainer.group.gather_part(trainer.batches, positions)
        with self._timed("forward"), trainer.precision.autocast():
            loss = trainer.loss_of(trainer.decoder, batch, share)
        with self._timed("backward"):
            trainer.precision.scaler.scale(loss).backward()
        if trainer.group.size > 1:
            with self._timed("exchange"):
                trainer.group.sum_gradients(trainer.decoder.parameters())
        with self._timed("optimizer"):
            trainer.step_optimizer()
        self.num_steps += 1
        self.num_captions += len(positions)
        self.num_tokens += len(batch.nonpad)
        return batch

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part, including the work it started on the GPU."""
        device, started = self.trainer.precision.device, time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - started
