"""Benchmark of beam search: cached features and a decoder → captions."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ..features.device import keep_freed_memory
from ..features.store import FeatureStore, find_features
from ..model.checkpoint import RunConfig, find_run, load_run, run_names
from ..model.decoder import Decoder, DecoderConfig
from ..model.decoding import BATCH_SIZE, decode, iterate_features
from ..model.precision import Precision
from ..model.state import DecoderState
from ..pipeline.captions import read_images
from ..pipeline.config import BenchConfig, DecodingOptions
from ..pipeline.errors import MissingArtifactError
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
    image_ids = read_images(config.captions_dir / "images.parquet").select("val")
    rows = store.rows(image_ids[store.has(image_ids).numpy()])
    options = DecodingOptions(beam=BEAM)
    counted = Counted(decoder)

    def seconds_for(rows: Tensor, batch_size: int) -> float:
        started = time.perf_counter()
        batches = iterate_features(decoder, store, rows, batch_size)
        for _ in decode(counted, batches, precision, options):
            pass
        return time.perf_counter() - started

    seconds_for(rows, BATCH_SIZE)  # warms up
    num_rows, num_words = counted.num_rows, counted.num_words  # each pass has as many
    seconds, count = 0.0, 0
    while not count or seconds < config.seconds:
        seconds += seconds_for(rows, BATCH_SIZE)
        count += 1
    rate = count * len(rows) / seconds
    alone = len(rows[:NUM_ALONE]) / seconds_for(rows[:NUM_ALONE], 1)
    rows_of_step = BATCH_SIZE * BEAM
    words_of_step = round(rows_of_step * num_words / num_rows)
    shapes = products_of(decoder.config, rows_of_step, words_of_step)
    limit_rows = rows_of_step / time_products(shapes, precision.device, precision.dtype)
    compute = num_rows / limit_rows / (seconds / count)
    return Figures(
        throughput=rate,
        unit="images/s",
        limit=limit_rows * len(rows) / num_rows,
        limited_by="its matrix products alone",
        shares={"products": compute, "search": 1 - compute},
        details={
            "images_per_second_alone": alone,
            "flops_per_image": count_flops(shapes) / rows_of_step * num_rows / len(rows),
            "words_of_step": words_of_step,
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
    """A decoder that counts the rows of its steps, and the words that it reads for them."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder, self.num_rows, self.num_words = decoder, 0, 0
        self.init_state, self.start_tokens = decoder.init_state, decoder.start_tokens

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """As the decoder's."""
        self.num_rows += len(token_ids)
        on_cpu = token_ids.device.type == "cpu"  # where rows with the same word read it once
        self.num_words += len(token_ids.unique()) if on_cpu else len(token_ids)
        return self.decoder.step(token_ids, state)


def products_of(config: DecoderConfig, num_rows: int, num_words: int) -> list[Shape]:
    """Matrix products of one step of a decoder without attention.

    Args:
        config: of the decoder.
        num_rows: beams of all images.
        num_words: that are read for them.
    """
    width = {"gru": 3, "lstm": 4, "rnn": 1}[config.cell] * config.hidden_size
    return [
        (num_words, config.embed_size, width),
        (num_rows, config.hidden_size, width),
        (num_rows, config.embed_size, config.vocab_size),
    ]
