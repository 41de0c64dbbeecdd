"""The probability of each word of the captions, and where the decoder attended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...features.device import choose_device, keep_freed_memory
from ...model.decoders.ensemble import join_decoders
from ...model.decoders.precision import Precision
from ...model.decoders.registry import decoder_class
from ...model.evaluation.members import load_members
from ...model.generation.explain import TokenScores, explain
from ...model.generation.generate import iterate_members
from ...model.runs.run import load_run
from ...pipeline.stage.console import ProgressLine
from ...pipeline.text.vocab import Vocab
from .results import Results

BATCH_SIZE = 100  # images
MIN_LOG_PROB = -99.0  # of a word that the model never writes: JSON has no infinity
# Each attention weight becomes one of 64 characters, as a share of the largest weight of its word.
LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@dataclass(frozen=True)
class Token:
    """A word or piece of a caption, or its end.

    Attributes:
        text: with a space in front if it starts a word; empty for the end of the caption.
        log_prob: in nats.
        attention: the weights of the P grid cells as characters of `LEVELS`, row by row from the
            top left, relative to the largest; empty without attention.
        attended: sum of the weights; the rest belongs to the sentinel of adaptive attention.
    """

    text: str
    log_prob: float
    attention: str
    attended: float


def score_tokens(results: Results, vocab: Vocab, device_name: str) -> dict[int, list[Token]]:
    """Compute the tokens of every caption of an evaluation from the cached features.

    The probabilities are those of the evaluation's model: averaged over the members of an ensemble
    and over views. The attention is that of the first member that has one, on the whole image.

    Raises:
        MissingArtifactError: a run or its features are missing.
        DamagedFileError: a file is damaged.
        MismatchError: the features are not those of the run.
    """
    keep_freed_memory()
    options = results.manifest.config
    num_views = options.get("views", 1)
    members = load_members(results.data, results.members, results.dataset, num_views)
    # `explain` returns the attention of the first member.
    members.sort(key=lambda member: not decoder_class(member.run.decoder).uses_grid)
    precision = Precision(options.get("precision", "auto"), choose_device(device_name))
    decoders = [load_run(member.run_dir, precision.device)[2] for member in members]
    model: Any = join_decoders(decoders, num_views)

    image_ids = np.array(list(results.captions), np.int64)
    rows = [member.store.rows(image_ids) for member in members]
    stores = [member.store for member in members]
    words = [member.words for member in members]
    batches = iterate_members(decoders, stores, rows, BATCH_SIZE, num_views, words)
    tokens: dict[int, list[Token]] = {}
    with ProgressLine("probabilities", len(image_ids), "img") as progress:
        for inputs in batches:
            ids = image_ids[len(tokens) : len(tokens) + BATCH_SIZE].tolist()
            captions = [vocab.encode(vocab.words_of(results.captions[i])) for i in ids]
            with precision.autocast(), torch.no_grad():
                state = model.init_state(*inputs.to(precision.device))
                scores = explain(model, state, [[caption] for caption in captions])
            for image_id, caption, (found,) in zip(ids, captions, scores, strict=True):
                tokens[image_id] = _tokens_of(caption, vocab, found)
            progress.advance(len(ids))
    return tokens


def _tokens_of(token_ids: Sequence[int], vocab: Vocab, scores: TokenScores) -> list[Token]:
    space = "" if vocab.unit == "pieces" else " "
    texts = [*(f"{space}{vocab.words[token_id]}" for token_id in token_ids), ""]
    weights = scores.attention
    return [
        Token(
            text,
            max(float(scores.log_probs[i]), MIN_LOG_PROB),
            "" if weights is None else quantize(weights[i]),
            0.0 if weights is None else float(weights[i].sum()),
        )
        for i, text in enumerate(texts)
    ]


def quantize(weights: NDArray[np.float32]) -> str:
    """Return (P,) non-negative weights as characters of `LEVELS`, relative to the largest."""
    weights = np.nan_to_num(weights)
    levels = np.rint(weights / max(float(weights.max()), 1e-12) * (len(LEVELS) - 1)).astype(int)
    return "".join(LEVELS[level] for level in levels)
