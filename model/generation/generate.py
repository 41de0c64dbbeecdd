"""Features → captions: batches of images through a model, by beam search or by drawing."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.text.vocab import Vocab
from ..decoders.decoder import Decoder
from ..decoders.precision import Precision
from ..decoders.state import S, StepModel
from .beam import beam_search
from .hypothesis import Hypothesis
from .options import DecodingOptions
from .sampling import sample_captions

BATCH_SIZE = 500  # images that are decoded together
ROWS_TOGETHER = 2500  # beams, or draws, of all of them

# What a model looks at in one batch: (B, D) of a decoder; of an ensemble, those of each member.
Features = Tensor | Sequence[Tensor]


class CaptionModel(StepModel[S], Protocol[S]):
    """What can be shown images: a `Decoder`, or an `Ensemble`."""

    training: bool

    def init_state(self, features: Any) -> S:
        """The state before BOS, a row for each image."""
        ...

    def train(self, mode: bool = True) -> object:
        """Set the mode of a module."""
        ...


def decode_captions(
    model: CaptionModel[S],
    vocab: Vocab,
    batches: Iterable[Features],
    precision: Precision,
    options: DecodingOptions,
) -> Iterator[list[str]]:
    """Yield the best caption of each image, a batch of images at a time; see `decode`."""
    for found in decode(model, batches, precision, options):
        yield [vocab.decode(hypotheses[0].token_ids) for hypotheses in found]


def decode(
    model: CaptionModel[S],
    batches: Iterable[Features],
    precision: Precision,
    options: DecodingOptions,
    generator: torch.Generator | None = None,
) -> Iterator[list[list[Hypothesis]]]:
    """Yield the captions of each image, best first, a batch of images at a time.

    Args:
        model: any mode; put into eval mode here, and back after.
        batches: features on any device, which are moved batch by batch.
        precision: of the arithmetic, and the device.
        options: how to decode; each image gets at least one and at most `num_candidates` captions.
        generator: of a draw that goes on; default a new one from the options' seed.
    """
    was_training = model.training
    model.train(False)
    generator = generator or torch.Generator().manual_seed(options.seed)
    try:
        for batch in batches:
            # Not inference_mode, in which autocast would cast the weights anew for every word.
            with precision.autocast(), torch.no_grad():
                state = model.init_state(_move(batch, precision.device))
                if options.sample:
                    found = sample_captions(model, state, options, generator)
                else:
                    found = beam_search(model, state, options)
            yield [hypotheses[: options.num_candidates] for hypotheses in found]
    finally:
        model.train(was_training)


def choose_batch_size(options: DecodingOptions) -> int:
    """Images to decode together: on a CPU as fast as more; a wide beam takes no more memory."""
    rows = options.n_best if options.sample else options.beam
    return max(1, min(BATCH_SIZE, ROWS_TOGETHER // rows))


def iterate_features(
    decoder: Decoder,
    store: FeatureStore,
    rows: Tensor,
    batch_size: int = BATCH_SIZE,
    view: int = 0,
) -> Iterator[Tensor]:
    """Yield what a decoder sees of these (N,) rows, in their order: (B, D), or (B, P, D) grids."""
    for batch in rows.split(batch_size):
        if decoder.looks_at_grid:
            yield store.gather_grid(batch, torch.full_like(batch, view))
        else:
            yield store.views[batch, view]


def iterate_members(
    decoders: Sequence[Decoder],
    stores: Sequence[FeatureStore],
    rows: Sequence[Tensor],
    batch_size: int = BATCH_SIZE,
    num_views: int = 1,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield what each member of `join_decoders` sees of the same images."""
    members = [
        iterate_features(*member, batch_size, view)
        for member in zip(decoders, stores, rows, strict=True)
        for view in range(num_views)
    ]
    return zip(*members, strict=True)


def _move(features: Features, device: torch.device) -> Features:
    if isinstance(features, Tensor):
        return features.to(device)
    return tuple(member.to(device) for member in features)
