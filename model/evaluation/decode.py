"""Decode a split with one run or an ensemble, and re-rank the captions."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from ...pipeline.stage.console import ProgressLine
from ...pipeline.text.vocab import Vocab
from ..config import EvalConfig
from ..decoders.base import Decoder
from ..decoders.ensemble import join_decoders
from ..decoders.precision import Precision
from ..generation.consensus import Consensus
from ..generation.generate import (
    CaptionModel,
    choose_batch_size,
    decode,
    iterate_members,
)
from ..generation.hypothesis import Hypothesis, rank_hypotheses
from ..retrieval.search import mean_features
from ..runs.run import load_run
from .members import Member
from .plan import Evaluation, ImageIds


def decode_split(
    evaluation: Evaluation, image_ids: ImageIds, precision: Precision
) -> tuple[Vocab, dict[int, list[Hypothesis]]]:
    """Decode the images of a split.

    Args:
        evaluation: the runs and their options.
        image_ids: (N,) int64, images that have features.
        precision: the number format and device to compute in.

    Returns:
        The vocabulary, and image_id → at most `n_best` captions, best first.
    """
    config, stores = evaluation.config, [member.store for member in evaluation.members]
    loaded = [load_run(member.run_dir, precision.device) for member in evaluation.members]
    vocab, decoders = loaded[0][1], [decoder for _, _, decoder in loaded]
    pairs = list(zip(decoders, evaluation.members, strict=True))
    ensembles = [[pair] for pair in pairs] if config.pool else [pairs]
    searches = [_search(config, ensemble, image_ids, precision, vocab) for ensemble in ensembles]
    consensus = None
    if config.consensus:
        consensus = Consensus.load(
            evaluation.captions_dir,
            stores,
            config.views,
            config.consensus,
            config.consensus_precision,
        )
    found: list[list[Hypothesis]] = []
    with ProgressLine("decode", len(image_ids), "img") as line:
        for batches in zip(*searches, strict=True):
            batch = batches[0] if len(batches) == 1 else [*map(_pool, *batches)]
            if consensus is not None:
                ids = image_ids[len(found) : len(found) + len(batch)]
                batch = consensus.rank(mean_features(stores, ids, config.views), batch, vocab, ids)
            found += [hypotheses[: config.n_best] for hypotheses in batch]
            line.advance(len(batch))
    return vocab, dict(zip(image_ids.tolist(), found, strict=True))


def _search(
    config: EvalConfig,
    ensemble: Sequence[tuple[Decoder, Member]],
    image_ids: ImageIds,
    precision: Precision,
    vocab: Vocab,
) -> Iterator[list[list[Hypothesis]]]:
    """Yield the captions that decoders find together, batch by batch."""
    decoders, members = zip(*ensemble, strict=True)
    stores = [member.store for member in members]
    rows = [store.rows(image_ids) for store in stores]
    words = [member.words for member in members]
    model: CaptionModel[Any] = join_decoders(decoders, config.views)
    batch_size = config.batch_size or choose_batch_size(config)
    batches = iterate_members(decoders, stores, rows, batch_size, config.views, words)
    return decode(model, batches, precision, config.for_unit(vocab.unit))


def _pool(*found: list[Hypothesis]) -> list[Hypothesis]:
    """Merge the captions of several searches; equal captions keep their highest score."""
    ascending = sorted(chain.from_iterable(found), key=lambda hypothesis: hypothesis.score)
    return rank_hypotheses(ascending)  # keeps the last of equal captions
