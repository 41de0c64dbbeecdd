"""Benchmark of the training loop: cached features and captions → steps."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import torch

from ..model.config import TrainConfig
from ..model.decoders.config import DecoderConfig
from ..model.runs.layout import LOG_NAME
from ..model.train import Trainer, train
from ..model.training.data import load_training_data
from .config import BenchConfig
from .figures import Figures, peak_memory
from .limits import Shape, count_flops, time_products

WARM_UP_STEPS = 5
GPU_BATCH_SIZE = 1024  # of an epoch; a GPU would idle between steps of fewer captions


def bench_train(config: BenchConfig) -> Figures:
    """Steps of the default decoder on a dataset's features, beside the matrix rate."""
    options = TrainConfig(data=config.data, dataset=config.dataset, features=config.features)
    trainer = Trainer(options, load_training_data(options), config.data / "bench" / "run")
    device, decoder = trainer.precision.device, trainer.decoder.train()
    parts = dict.fromkeys(("gather", "forward", "backward", "optimizer"), 0.0)
    num_steps, num_captions, num_tokens = 0, 0, 0
    shapes, tokens_of_shapes, of_one_step = list[Shape](), 1, 1
    epochs = (trainer.batches.plan_epoch(epoch) for epoch in count())
    # The largest step comes first: what memory grows by after it is not what a step needs.
    largest = max(
        trainer.batches.plan_epoch(0), key=lambda p: int(trainer.batches.lengths[p].sum())
    )
    for step, positions in enumerate(chain([largest], chain.from_iterable(epochs))):
        if step == WARM_UP_STEPS:
            parts = dict.fromkeys(parts, 0.0)
            num_steps, num_captions, num_tokens = 0, 0, 0
        with timed(parts, "gather", device):
            batch = trainer.batches.gather(positions)
        with timed(parts, "forward", device), trainer.precision.autocast():
            loss = trainer.loss_of(decoder, batch)
        with timed(parts, "backward", device):
            trainer.precision.scaler.scale(loss).backward()
        with timed(parts, "optimizer", device):
            trainer.step_optimizer()
        num_steps += 1
        num_captions += len(positions)
        num_tokens += len(batch.nonpad)
        if step == WARM_UP_STEPS:
            # Features, tokens, weights, optimizer, and what a step needs, in a fresh process.
            of_one_step = peak_memory()
            shapes = products_of(decoder.config, len(positions), batch.lengths.tolist())
            tokens_of_shapes = len(batch.nonpad)
        if step >= WARM_UP_STEPS and sum(parts.values()) > config.seconds:
            break
    seconds, in_the_end = sum(parts.values()), peak_memory()
    started = time.perf_counter()
    trainer.decode_validation()
    validation = time.perf_counter() - started
    epoch = len(trainer.batches) * seconds / num_steps
    captions_per_token = num_captions / num_tokens
    spent = time_products(shapes, device, trainer.precision.dtype)
    limit = tokens_of_shapes * captions_per_token / spent
    return Figures(
        throughput=num_captions / seconds,
        unit="captions/s",
        limit=limit,
        limited_by="its matrix products alone",
        shares={name: spent / seconds for name, spent in parts.items()},
        details={
            "seconds_per_step": seconds / num_steps,
            "validation_share_of_epoch": validation / (epoch + validation),
            "peak_bytes_of_first_steps": of_one_step,
            "peak_growth_after_them": in_the_end / of_one_step - 1,
            "flops_per_caption": count_flops(shapes) / tokens_of_shapes / captions_per_token,
        },
    )


def bench_epoch(config: BenchConfig) -> Figures:
    """One whole epoch by the train stage, its start and validation included."""
    options = TrainConfig(data=config.data, dataset=config.dataset, run="epoch", epochs=1)
    if torch.cuda.is_available():
        options = replace(options, batch_size=GPU_BATCH_SIZE)
    shutil.rmtree(config.data / "runs" / "epoch", ignore_errors=True)
    started = time.perf_counter()
    manifest = train(options)
    whole = time.perf_counter() - started
    trainer = Trainer(options, load_training_data(options), config.data / "bench" / "run")
    positions = trainer.batches.plan_epoch(0)
    batch = trainer.batches.gather(positions[len(positions) // 2])
    lengths = batch.lengths.tolist()
    shapes = products_of(trainer.decoder.config, len(lengths), lengths)
    num_captions = manifest.counts["num_captions"]
    limit = len(lengths) / time_products(shapes, trainer.precision.device, trainer.precision.dtype)
    return Figures(
        throughput=num_captions / manifest.seconds,
        unit="captions/s",
        limit=limit,
        limited_by="its matrix products alone",
        shares={"epoch": manifest.seconds / whole, "start": 1 - manifest.seconds / whole},
        details={
            "batch_size": options.batch_size,
            "seconds": whole,
            "seconds_of_epoch": manifest.seconds,
            "seconds_of_validation": read_validation_seconds(config.data / "runs" / "epoch"),
        },
    )


def read_validation_seconds(run_dir: Path) -> float:
    """Seconds that the last validation of a run took, by its log."""
    last = (run_dir / LOG_NAME).read_text("utf-8").splitlines()[-1]
    return float(json.loads(last)["val_seconds"])


@contextmanager
def timed(parts: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Add the time spent in the block, and the work on the GPU that it began, to a part."""
    started = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    parts[name] += time.perf_counter() - started


def products_of(config: DecoderConfig, num_images: int, lengths: list[int]) -> list[Shape]:
    """Matrix products of a step of a decoder without attention, forward and backward.

    Args:
        config: of the decoder.
        num_images: B, one for each caption.
        lengths: (B,) words of each caption with BOS.
    """
    gates = {"gru": 3, "lstm": 4, "rnn": 1}[config.cell]
    num_tokens = sum(lengths)
    going = [sum(length > step for length in lengths) for step in range(max(lengths))]
    embed_size, hidden_size = config.embed_size, config.hidden_size
    width = gates * hidden_size
    # Nothing asks for the gradient of the features, nor of the state before the image.
    ends = [(num_images, config.feature_dim, embed_size), (num_images, hidden_size, width)]
    whole = [(num_images + num_tokens, embed_size, width)]
    whole += [(num_tokens, embed_size, config.vocab_size)]
    steps = [(rows, hidden_size, width) for rows in going]
    # The recurrent matrix gets its gradient from all steps in one product.
    together = [(num_tokens, hidden_size, width)]
    of_weights = [(depth, rows, columns) for rows, depth, columns in ends + whole + together]
    of_inputs = [(rows, columns, depth) for rows, depth, columns in whole + steps]
    return ends + whole + steps + of_weights + of_inputs
