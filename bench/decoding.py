"""Benchmark of beam search: cached features and a decoder → captions."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ..features.device import keep_freed_memory
from ..features.store import FeatureStore, find_features
from ..model.decoders.base import Decoder
from ..model.decoders.config import DecoderConfig
from ..model.decoders.precision import Precision
from ..model.decoders.state import DecoderState
from ..model.generation.generate import MAX_BATCH_SIZE, decode, iterate_features
from ..model.generation.options import DecodingOptions
from ..model.runs.run import RunConfig, find_run, load_run, run_names
from ..pipeline.captions import read_images
from ..pipeline.layout import IMAGES_PARQUET
from ..pipeline.stage.errors import MissingArtifactError
from .config import BenchConfig
from .figures import Figures
from .limits import Shape, count_flops, time_products

BEAM = 5
NUM_ALONE = 20  # images that are also searched one by one


def bench_decode(config: BenchConfig) -> Figures:
    """Beam search over the val images of a dataset by its newest run, beside the matrix rate."""
    keep_freed_memory()
    precision = Precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    run, _, decoder = load_run(find_plain_run(config), precision.device)
    store = FeatureStore.load(find_features(config.dataset_dir, run.features))
    image_ids = read_images(config.captions_dir / IMAGES_PARQUET).select("val")
    rows = store.rows(image_ids[store.has(image_ids).numpy()])
    options = DecodingOptions(beam=BEAM)
    counted = Counted(decoder)

    def seconds_for(rows: Tensor, batch_size: int) -> float:
        started = time.perf_counter()
        batches = iterate_features(decoder, store, rows, batch_size)
        for _ in decode(counted, batches, precision, options):
            pass
        return time.perf_counter() - started

    seconds_for(rows, MAX_BATCH_SIZE)  # warms up
    num_rows = counted.num_rows  # each pass has as many
    num_words, num_states = counted.num_words, counted.num_states
    seconds, count = 0.0, 0
    while not count or seconds < config.seconds:
        seconds += seconds_for(rows, MAX_BATCH_SIZE)
        count += 1
    rate = count * len(rows) / seconds
    alone = len(rows[:NUM_ALONE]) / seconds_for(rows[:NUM_ALONE], 1)
    rows_of_step = MAX_BATCH_SIZE * BEAM
    words_of_step, states_of_step = (
        round(rows_of_step * part / num_rows) for part in (num_words, num_states)
    )
    shapes = products_of(decoder.config, rows_of_step, words_of_step, states_of_step)
    plain_shapes = products_of(decoder.config, rows_of_step, rows_of_step, rows_of_step)
    limit, plain_limit = (
        rows_of_step / time_products(each, precision.device, precision.dtype) * len(rows) / num_rows
        for each in (shapes, plain_shapes)
    )
    return Figures(
        throughput=rate,
        unit="images/s",
        limit=limit,
        limited_by="its matrix products alone",
        shares={"products": rate / limit, "search": 1 - rate / limit},
        details={
            "images_per_second_alone": alone,
            "flops_per_image": count_flops(shapes) / rows_of_step * num_rows / len(rows),
            "ratio_with_products_of_each_beam": rate / plain_limit,
            "words_of_step": words_of_step,
            "states_of_step": states_of_step,
            "rows_of_step": rows_of_step,
        },
    )


def find_plain_run(config: BenchConfig) -> Path:
    """The run that is named, or the newest of the dataset that looks at no grid.

    Raises:
        MissingArtifactError: there is none.
    """
    if config.run is None:
        for name in reversed(run_names(config.data, config.dataset)):
            run_dir = find_run(config.data, name)
            if RunConfig.read(run_dir).decoder.attention == "none":
                return run_dir
    run_dir = find_run(config.data, config.run, config.dataset)
    if RunConfig.read(run_dir).decoder.attention != "none":
        raise MissingArtifactError(
            f"{run_dir} looks at grids, whose products are not counted here. Name another with "
            f"--run, or run 'showtell train --dataset {config.dataset}' first."
        )
    return run_dir


class Counted(nn.Module):
    """A decoder that counts the rows of its steps, and the words and states that they share."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder, self.num_rows, self.num_words, self.num_states = decoder, 0, 0, 0
        self.init_state, self.start_tokens = decoder.init_state, decoder.start_tokens

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """As the decoder's."""
        self.num_rows += len(token_ids)
        on_cpu = token_ids.device.type == "cpu"  # where rows with the same word read it once
        self.num_words += len(token_ids.unique()) if on_cpu else len(token_ids)
        self.num_states += state.hidden[0].shape[1]
        return self.decoder.step(token_ids, state)


def products_of(
    config: DecoderConfig, num_rows: int, num_words: int, num_states: int
) -> list[Shape]:
    """Matrix products of one step of a decoder without attention.

    Args:
        config: of the decoder.
        num_rows: beams of all images.
        num_words: that are read for them.
        num_states: from which they go on.
    """
    width = {"gru": 3, "lstm": 4, "rnn": 1}[config.cell] * config.hidden_size
    return [
        (num_words, config.embed_size, width),
        (num_states, config.hidden_size, width),
        (num_rows, config.embed_size, config.vocab_size),
    ]
