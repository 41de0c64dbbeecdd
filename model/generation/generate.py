"""Features to captions: run batches of images through a model, by beam search or sampling."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.text.vocab import Vocab
from ..decoders.base import Decoder
from ..decoders.precision import Precision
from ..decoders.state import S, StepModel
from .beam import beam_search
from .hypothesis import Hypothesis
from .options import DecodingOptions
from .sampling import sample_captions

MAX_BATCH_SIZE = 500  # images decoded together
MAX_ROWS = 2500  # beams, or draws, of all images decoded together

# One batch of images: (B, D) or (B, P, D) for a decoder; one such tensor per ensemble member.
Features = Tensor | Sequence[Tensor]


class CaptionModel(StepModel[S], Protocol[S]):
    """A model that can encode images: a `Decoder` or an `Ensemble`."""

    training: bool

    def init_state(self, features: Any) -> S:
        """Return the state before BOS, one row per image."""
        ...

    def train(self, mode: bool = True) -> object:
        """Set train or eval mode, as `nn.Module.train`."""
        ...


def decode_captions(
    model: CaptionModel[S],
    vocab: Vocab,
    batches: Iterable[Features],
    precision: Precision,
    options: DecodingOptions,
) -> Iterator[list[str]]:
    """Yield the best caption of each image, batch by batch; see `decode`."""
    for found in decode(model, batches, precision, options):
        yield [vocab.decode(hypotheses[0].token_ids) for hypotheses in found]


def decode(
    model: CaptionModel[S],
    batches: Iterable[Features],
    precision: Precision,
    options: DecodingOptions,
    generator: torch.Generator | None = None,
) -> Iterator[list[list[Hypothesis]]]:
    """Yield the captions of each image, best first, batch by batch.

    Args:
        model: its mode is set to eval here and restored at the end.
        batches: features on any device; moved batch by batch.
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
                state = model.init_state(_move(batch, precision.device))
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
) -> Iterator[Tensor]:
    """Yield the decoder's features of (N,) store rows in order: (B, D), or (B, P, D) grids."""
    for batch in rows.split(batch_size):
        if decoder.uses_grid:
            yield store.gather_grid(batch, torch.full_like(batch, view))
        else:
            yield store.gather(batch, torch.full_like(batch, view))


def iterate_members(
    decoders: Sequence[Decoder],
    stores: Sequence[FeatureStore],
    rows: Sequence[Tensor],
    batch_size: int = MAX_BATCH_SIZE,
    num_views: int = 1,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the features of the same images for each member of `join_decoders`."""
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
