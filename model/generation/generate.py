"""Features to captions: run batches of images through a model, by beam search or sampling."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.text.vocab import Vocab
from ..decoders.base import Decoder
from ..decoders.inputs import Inputs, Words
from ..decoders.precision import Precision
from ..decoders.state import S, StepModel
from .beam import beam_search
from .hypothesis import Hypothesis
from .options import DecodingOptions
from .sampling import sample_captions

MAX_BATCH_SIZE = 500  # images decoded together
MAX_ROWS = 2500  # beams, or draws, of all images decoded together


class CaptionModel(StepModel[S], Protocol[S]):
    """A model that can encode images: a `Decoder` or an `Ensemble`."""

    training: bool

    def init_state(self, features: Any, words: Any = None) -> S:
        """Return the state before BOS, one row per image."""
        ...

    def train(self, mode: bool = True) -> object:
        """Set train or eval mode, as `nn.Module.train`."""
        ...


def decode_captions(
    model: CaptionModel[S],
    vocab: Vocab,
    batches: Iterable[Inputs],
    precision: Precision,
    options: DecodingOptions,
) -> Iterator[list[str]]:
    """Yield the best caption of each image, batch by batch; see `decode`."""
    for found in decode(model, batches, precision, options):
        yield [vocab.decode(hypotheses[0].token_ids) for hypotheses in found]


def decode(
    model: CaptionModel[S],
    batches: Iterable[Inputs],
    precision: Precision,
    options: DecodingOptions,
    generator: torch.Generator | None = None,
) -> Iterator[list[list[Hypothesis]]]:
    """Yield the captions of each image, best first, batch by batch.

    Args:
        model: its mode is set to eval here and restored at the end.
        batches: on any device; moved batch by batch.
        precision: the arithmetic, and the device.
        options: each image gets at least one and at most `num_candidates` captions.
        generator: for sampling across several calls; default a new one with the options' seed.
    """
    was_training = model.training
    model.train(False)
    generator = generator or torch.Generator().manual_seed(options.seed)
    try:
        for batch in batches:
            # no_grad, because under inference_mode autocast would cast the weights for every token.
            with precision.autocast(), torch.no_grad():
                state = model.init_state(*batch.to(precision.device))
                if options.sample:
                    found = sample_captions(model, state, options, generator)
                else:
                    found = beam_search(model, state, options)
            yield [hypotheses[: options.num_candidates] for hypotheses in found]
    finally:
        model.train(was_training)


def choose_batch_size(options: DecodingOptions) -> int:
    """Return how many images to decode together; fewer for wide beams, to bound the memory."""
    rows = options.n_best if options.sample else options.beam
    return max(1, min(MAX_BATCH_SIZE, MAX_ROWS // rows))


def iterate_features(
    decoder: Decoder,
    store: FeatureStore,
    rows: Tensor,
    batch_size: int = MAX_BATCH_SIZE,
    view: int = 0,
    words: Words | None = None,
) -> Iterator[Inputs]:
    """Yield what a decoder reads of the images at (N,) store rows, in order.

    Args:
        decoder: whose features these are.
        store: the features.
        rows: (N,) int64.
        batch_size: images in a batch.
        view: of each image.
        words: of all images in the store, for a decoder that uses them.
    """
    read = store.gather_grid if decoder.uses_grid else store.gather
    for batch in rows.split(batch_size):
        yield Inputs(read(batch, torch.full_like(batch, view)), words and words.take(batch))


def iterate_members(
    decoders: Sequence[Decoder],
    stores: Sequence[FeatureStore],
    rows: Sequence[Tensor],
    batch_size: int = MAX_BATCH_SIZE,
    num_views: int = 1,
    words: Sequence[Words | None] | None = None,
) -> Iterator[Inputs]:
    """Yield what the model of `join_decoders` reads of the same images."""
    words = words or [None] * len(decoders)
    members = [
        iterate_features(decoder, store, own_rows, batch_size, view, own_words)
        for decoder, store, own_rows, own_words in zip(decoders, stores, rows, words, strict=True)
        for view in range(num_views)
    ]
    return members[0] if len(members) == 1 else map(Inputs.of_members, zip(*members, strict=True))
