"""Benchmark of beam search: images/s from cached features, beside the decoder's matrix products."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ...features.device import keep_freed_memory
from ...features.store import FeatureStore, find_features
from ...model.decoders.base import Decoder
from ...model.decoders.precision import Precision
from ...model.decoders.registry import decoder_class
from ...model.decoders.state import DecoderState
from ...model.generation.generate import MAX_BATCH_SIZE, decode, iterate_features
from ...model.generation.options import DecodingOptions
from ...model.runs.find import find_run, run_names
from ...model.runs.run import RunConfig, load_run
from ...pipeline.captions import read_images
from ...pipeline.layout import IMAGES_PARQUET
from ...pipeline.stage.command_line import command_line
from ...pipeline.stage.errors import MissingArtifactError
from ..config import BenchConfig
from ..decoder_products import decoding_products
from ..limits import count_flops, time_products
from ..measurement import Measurement

BEAM = 5
NUM_SINGLE = 20  # images that are also decoded one at a time


def measure(config: BenchConfig) -> Measurement:
    """Decode the val images of a dataset with its newest run, repeatedly."""
    keep_freed_memory()
    precision = Precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    run, _, decoder = load_run(find_plain_run(config), precision.device)
    store = FeatureStore.load(find_features(config.dataset_dir, run.features))
    image_ids = read_images(config.captions_dir / IMAGES_PARQUET).select("val")
    rows = store.rows(image_ids[store.has(image_ids).numpy()])
    counting = CountingDecoder(decoder)

    def time_decoding(rows: Tensor, batch_size: int) -> float:
        started = time.perf_counter()
        batches = iterate_features(decoder, store, rows, batch_size)
        for _ in decode(counting, batches, precision, DecodingOptions(beam=BEAM)):
            pass
        return time.perf_counter() - started

    time_decoding(rows, MAX_BATCH_SIZE)  # warm-up; every pass has the same rows, words and states
    num_rows, num_words, num_states = counting.num_rows, counting.num_words, counting.num_states
    seconds, num_passes = 0.0, 0
    while not num_passes or seconds < config.seconds:
        seconds += time_decoding(rows, MAX_BATCH_SIZE)
        num_passes += 1
    throughput = num_passes * len(rows) / seconds
    single_s = time_decoding(rows[:NUM_SINGLE], 1)

    step_rows = MAX_BATCH_SIZE * BEAM
    step_words, step_states = (
        round(step_rows * count / num_rows) for count in (num_words, num_states)
    )
    shapes = decoding_products(decoder.config, step_rows, step_words, step_states)
    separate_shapes = decoding_products(decoder.config, step_rows, step_rows, step_rows)
    limit, separate_limit = (
        step_rows / time_products(each, precision.device, precision.dtype) * len(rows) / num_rows
        for each in (shapes, separate_shapes)
    )
    return Measurement(
        throughput=throughput,
        unit="images/s",
        limit=limit,
        limited_by="its matrix products alone",
        shares={"products": throughput / limit, "search": 1 - throughput / limit},
        details={
            "images_per_second_alone": len(rows[:NUM_SINGLE]) / single_s,
            "flops_per_image": count_flops(shapes) / step_rows * num_rows / len(rows),
            "ratio_with_products_of_each_beam": throughput / separate_limit,
            "words_of_step": step_words,
            "states_of_step": step_states,
            "rows_of_step": step_rows,
        },
    )


def find_plain_run(config: BenchConfig) -> Path:
    """Return the folder of `--run`, or of the dataset's newest run without attention or neighbours.

    Raises:
        MissingArtifactError: there is no such run.
    """
    if config.run is None:
        for name in reversed(run_names(config.data, config.dataset)):
            run_dir = find_run(config.data, name)
            if is_plain(RunConfig.read(run_dir)):
                return run_dir
    run_dir = find_run(config.data, config.run, config.dataset)
    if not is_plain(RunConfig.read(run_dir)):
        raise MissingArtifactError(
            f"{run_dir} uses attention or neighbours, which this benchmark does not cover. Name "
            f"another run with --run, or run "
            f"'{command_line(config.data, 'train', '--dataset', config.dataset)}' first."
        )
    return run_dir


def is_plain(run: RunConfig) -> bool:
    """Return whether a decoder uses neither attention nor neighbours."""
    return not decoder_class(run.decoder).uses_grid and not run.decoder.neighbours


class CountingDecoder(nn.Module):
    """A decoder that counts the rows of its steps, and their distinct words and states."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder, self.num_rows, self.num_words, self.num_states = decoder, 0, 0, 0
        self.init_state, self.start_tokens = decoder.init_state, decoder.start_tokens

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Advance every row by one token, like `Decoder.step`."""
        self.num_rows += len(token_ids)
        # Only on a CPU do rows with the same input word share its product.
        on_cpu = token_ids.device.type == "cpu"
        self.num_words += len(token_ids.unique()) if on_cpu else len(token_ids)
        self.num_states += state.hidden[0].shape[1]
        return self.decoder.step(token_ids, state)
