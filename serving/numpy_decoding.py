"""Beam search and `explain` with NumPy, for decoders that run outside torch.

They return the same as `beam.py` and `explain.py` in `model/generation`, for one group of beams.
Letters in shapes: N images in the batch, K beams and M captions per image, V vocabulary, T tokens
so far, C candidates, P grid cells.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..model.generation.hypothesis import Hypothesis, rank_hypotheses
from ..model.generation.options import DecodingOptions
from ..pipeline.text.vocab import BOS, EOS

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# What a decoder keeps from one token to the next, by name.
State = Mapping[str, Floats]


class StepModel(Protocol):
    """What beam search needs of a decoder."""

    def step(self, token_ids: Ints, state: State) -> tuple[Floats, State, Floats | None]:
        """Advance every row by one token.

        Args:
            token_ids: (N, K), the previous tokens; BOS at first.
            state: of the same rows.

        Returns:
            log_probs: (N, K, V) of the next tokens, −inf for tokens that are never written.
            state: the next state.
            attention: (N, K, P), the weights of the grid cells; None without attention.
        """
        ...

    def select(self, state: State, images: Ints, parents: Ints) -> State:
        """Return the state for some of the images, with rows chosen by `parents`.

        Args:
            state: of N images with K rows each.
            images: (N',), indices of the images to keep, increasing.
            parents: (N', K'). Each new row continues this row (0 to K - 1) of its image.
        """
        ...


CHUNKS = 32  # rows of the table in `largest`

T = TypeVar("T", bound=np.generic)


def beam_search(
    decoder: StepModel, state: State, num_images: int, options: DecodingOptions
) -> list[list[Hypothesis]]:
    """Return the best captions of each image; see `beam_search` in `model/generation/beam.py`.

    Args:
        decoder: the model.
        state: before the first token, with one row per image.
        num_images: N.
        options: beam, length penalty, lengths and repeated n-grams are used.

    Returns:
        The distinct hypotheses of each image, best first: at least one, at most K.
    """
    found: list[list[Hypothesis]] = [[] for _ in range(num_images)]
    images = np.arange(num_images)  # the images still in the batch
    # One beam per image at first: K equal beams would give every candidate K times.
    last = np.full((num_images, 1), BOS)
    totals = np.zeros((num_images, 1), np.float32)  # log-probabilities; −inf marks a dead beam
    written = np.empty((num_images, 1, 0), np.int64)
    for length in range(options.length_limit + 1 if num_images else 0):
        log_probs, state, _ = decoder.step(last, state)
        apply_rules(log_probs, written, options)
        # Of 2K candidates at most K end, one per beam, so that at least K can continue.
        scores, parents, tokens = best_continuations(log_probs, totals, 2 * options.beam)
        is_end = tokens == EOS
        divisor = np.float32((length + 1) ** options.length_penalty)
        for row, rank in np.argwhere(is_end & (scores > -np.inf)):
            if rank < options.beam:
                ids = tuple(written[row, parents[row, rank]].tolist())
                log_prob = scores[row, rank]
                found[images[row]].append(
                    Hypothesis(ids, float(log_prob), float(log_prob / divisor))
                )
        scores[is_end] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, : options.beam]
        totals, parents, last = take(scores, order), take(parents, order), take(tokens, order)
        written = np.concatenate([take(written, parents), last[:, :, None]], 2)

        is_full = np.array([len(found[image]) >= options.beam for image in images])
        kept = np.flatnonzero(~is_full & (totals[:, 0] > -np.inf))
        if not len(kept):
            break
        state = decoder.select(state, kept, parents[kept])
        images, last, totals, written = images[kept], last[kept], totals[kept], written[kept]
    return [rank_hypotheses(hypotheses)[: options.beam] for hypotheses in found]


def explain(
    decoder: StepModel, state: State, found: Sequence[Sequence[Hypothesis]]
) -> list[list[tuple[Floats, Floats | None]]]:
    """Read finished captions again, one token at a time.

    Args:
        decoder: the model.
        state: before the first token, with one row per image.
        found: the captions of each image.

    Returns:
        For each caption of T tokens: (T + 1,) log-probabilities of the tokens and the EOS after
        them, and (T + 1, P) attention weights; None without attention.
    """
    longest = max(len(caption.token_ids) for of_image in found for caption in of_image)
    targets = np.full((len(found), max(map(len, found)), longest + 1), EOS)  # (N, M, T + 1)
    for image, of_image in enumerate(found):
        for rank, caption in enumerate(of_image):
            targets[image, rank, : len(caption.token_ids)] = caption.token_ids
    rows = np.zeros(targets.shape[:2], np.int64)
    state, tokens = decoder.select(state, np.arange(len(found)), rows), np.full_like(rows, BOS)
    scores, maps = [], []
    for target in np.moveaxis(targets, 2, 0):
        log_probs, state, attention = decoder.step(tokens, state)
        scores.append(np.take_along_axis(log_probs, target[:, :, None], 2))
        maps.append(attention)
        tokens = target
    all_scores = np.concatenate(scores, 2)
    all_maps = None if maps[0] is None else np.stack(cast(list[Floats], maps), 2)

    def of_caption(image: int, rank: int, length: int) -> tuple[Floats, Floats | None]:
        attention = None if all_maps is None else all_maps[image, rank, :length]
        return all_scores[image, rank, :length], attention

    return [
        [of_caption(image, rank, len(h.token_ids) + 1) for rank, h in enumerate(of_image)]
        for image, of_image in enumerate(found)
    ]


def apply_rules(log_probs: Floats, written: Ints, options: DecodingOptions) -> None:
    """Set the log-probabilities of forbidden tokens to −inf, in place.

    The rules are those of `next_log_probs` in `model/generation/constraints.py`.

    Args:
        log_probs: (N, K, V).
        written: (N, K, T), the tokens so far.
        options: `max_length`, `min_length` and `no_repeat_ngram` are used.
    """
    length, ngram = written.shape[2], options.no_repeat_ngram
    if length >= options.length_limit:
        log_probs[..., :EOS] = log_probs[..., EOS + 1 :] = -np.inf
        return
    end = log_probs[..., EOS].copy()
    if length < options.min_length:
        log_probs[..., EOS] = -np.inf
    if ngram and length >= ngram:
        ngrams = sliding_window_view(written, ngram, 2)  # (N, K, T − n + 1, n)
        last = written[:, :, None, length - ngram + 1 :]
        image, beam, start = np.nonzero((ngrams[..., :-1] == last).all(3))
        log_probs[image, beam, ngrams[image, beam, start, -1]] = -np.inf
        if length < options.min_length:  # a caption that no word may follow ends
            is_stuck = log_probs.max(2) == -np.inf
            log_probs[..., EOS] = np.where(is_stuck, end, log_probs[..., EOS])


def best_continuations(
    log_probs: Floats, totals: Floats, num_candidates: int
) -> tuple[Floats, Ints, Ints]:
    """Return the C best continuations of the beams of each image, best first.

    Args:
        log_probs: (N, K, V), log-probabilities of the next token.
        totals: (N, K), log-probabilities of the beams so far.
        num_candidates: C, reduced to K·V if there are no more continuations.

    Returns:
        scores: (N, C), log-probabilities of the candidates.
        parents: (N, C), the beam that each candidate continues.
        tokens: (N, C), the last token of each candidate.
    """
    num_images, num_beams, vocab_size = log_probs.shape
    continued = (log_probs + totals[:, :, None]).reshape(num_images, -1)
    scores, index = largest(continued, min(num_candidates, num_beams * vocab_size))
    return scores, index // vocab_size, index % vocab_size


def largest(values: Floats, count: int) -> tuple[Floats, Ints]:
    """Return the `count` largest values of each row of (N, W), largest first, and their indices.

    Each row is laid out as a table. Only the columns with the largest maxima can contain the
    largest values, so that a partial sort of the maxima replaces that of all values.
    """
    num_rows, num_values = values.shape
    width = num_values // CHUNKS
    index = np.tile(np.arange(num_values), (num_rows, 1))
    if width > count:
        table = values[:, : CHUNKS * width].reshape(num_rows, CHUNKS, width)
        columns = np.argpartition(table.max(1), -count, axis=1)[:, -count:]
        inside = np.arange(CHUNKS)[:, None] * width + columns[:, None]  # (N, CHUNKS, count)
        rest = index[:, CHUNKS * width :]
        index = np.concatenate([inside.reshape(num_rows, -1), rest], 1)
    candidates = take(values, index)
    order = np.lexsort((index, -candidates))[:, :count]
    return take(candidates, order), take(index, order)


def take(values: NDArray[T], index: Ints) -> NDArray[T]:
    """Select entries per image: (N, K, …) by (N, C) → (N, C, …)."""
    return values[np.arange(len(values))[:, None], index]
