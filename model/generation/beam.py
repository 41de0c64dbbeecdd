"""Batched beam search with any `StepModel`: all beams of all images advance together.

Letters in shapes: N images in the batch, G groups, K beams per image and group, V vocabulary, T
tokens so far, C candidates.
"""

from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from ...pipeline.text.vocab import EOS, PAD
from ..decoders.state import S, StepModel
from ..kernels.padding import unfinished_rows
from ..kernels.topk import topk
from .constraints import next_log_probs
from .hypothesis import Hypothesis, rank_hypotheses
from .options import DecodingOptions

# The batch shrinks in steps of four images, so that matrix products come in few sizes.
KEEP_MULTIPLE = 4


@torch.no_grad()
def beam_search(
    decoder: StepModel[S], state: S, options: DecodingOptions
) -> list[list[Hypothesis]]:
    """Return the best captions of each image.

    At each step, the K best continuations that do not end with EOS survive. Continuations that end
    with EOS become hypotheses if they are among the K best of all. An image with K hypotheses in
    each group is finished and leaves the batch. Captions are forced to end after `max_length`
    tokens, so that each image gets at least one hypothesis.

    With `beam_groups` G > 1, each group of K beams is a search of its own, and the groups choose
    their tokens one after another at each step. A group subtracts `diversity` from the
    log-probability of a token for each beam of an earlier group that chose the token at this step.
    The penalty only affects the ranking inside the group. EOS is never penalised.

    Args:
        decoder: in eval mode.
        state: from `decoder.init_state(features)`, one row per image.
        options: `beam` is G·K; 1 is greedy search. With `length_penalty` 0, hypotheses are ranked
            by probability alone, which favours short captions.

    Returns:
        The distinct hypotheses of each image, best first: at least one, at most G·K.

    Source: diverse beam search with Hamming diversity, Vijayakumar et al. 2016, arXiv:1610.02424.
    """
    num_images = len(state)
    results: list[list[Hypothesis]] = [[] for _ in range(num_images)]
    if not num_images:
        return results
    start = decoder.start_tokens(num_images)[:, None]
    # (N,) the index in `results` of each image in the batch; -1 once the image is finished.
    active = torch.arange(num_images, device=start.device)
    groups = [_Group(start, options) for _ in range(options.beam_groups)]
    if len(groups) > 1:
        state = state.select(active, start.new_zeros(num_images, len(groups)))
    for _ in range(options.length_limit + 1):
        last_tokens = _join([group.last_tokens for group in groups])  # (N, G·K)
        token_ids = _join([group.token_ids for group in groups])
        logits, state = decoder.step(last_tokens.flatten(), state)
        log_probs = next_log_probs(logits, token_ids.flatten(0, 1), options)
        parents = _advance(groups, log_probs.view(*last_tokens.shape, -1), options.diversity)

        is_done = torch.stack([group.is_done() for group in groups]).all(0)
        leaving = (is_done & (active >= 0)).nonzero()[:, 0]
        if len(leaving):
            found = zip(*(group.finished.hypotheses(leaving) for group in groups), strict=True)
            for image, hypotheses in zip(active[leaving].tolist(), found, strict=True):
                results[image] = rank_hypotheses(chain.from_iterable(hypotheses))
            active[leaving] = -1
        kept = unfinished_rows(is_done, KEEP_MULTIPLE)
        if not len(kept):
            break
        state = state.select(kept, parents[kept])
        if len(kept) < len(is_done):
            active = active[kept]
            for group in groups:
                group.keep(kept)
    return results


def _advance(groups: list["_Group"], log_probs: Tensor, diversity: float) -> Tensor:
    """Let each group choose its next tokens, one group after the other.

    Args:
        groups: changed in place.
        log_probs: (N, G·K, V), log-probabilities of the next token.
        diversity: penalty of a token for each beam of an earlier group that chose it.

    Returns:
        (N, G·K') int64. Each new beam continues this beam (0 to G·K - 1) of its image.
    """
    if len(groups) == 1:
        return groups[0].advance(log_probs)
    num_images, num_beams, vocab_size = log_probs.shape
    times_chosen = log_probs.new_zeros(num_images, vocab_size)
    parents = []
    for g, group_log_probs in enumerate(log_probs.chunk(len(groups), 1)):
        group = groups[g]
        chosen = group.advance(group_log_probs, diversity * times_chosen)
        parents.append(chosen + g * num_beams // len(groups))
        group.retire(group.is_done())
        is_alive = (group.log_probs > -torch.inf).float()
        times_chosen.scatter_add_(1, group.last_tokens, is_alive)
    return torch.cat(parents, 1)


class _Group:
    """One group: its live beams and finished hypotheses of all images.

    Attributes:
        log_probs: (N, K) float32, log-probability of each beam so far; −inf marks a dead beam.
        token_ids: (N, K, T) int64, tokens of each beam.
        last_tokens: (N, K) int64, the last token of each beam; BOS at first.
        finished: the hypotheses that have ended.
    """

    def __init__(self, start: Tensor, options: DecodingOptions) -> None:
        # Start with one beam per image: K equal beams would give every candidate K times.
        self.last_tokens = start
        self.log_probs = torch.zeros_like(start, dtype=torch.float32)
        self.token_ids = start[:, :, None][:, :, :0]
        self.beam_size = options.beam // options.beam_groups
        self.length_penalty = options.length_penalty
        self.finished = _Finished(len(start), self.beam_size, options.length_limit, start.device)

    def advance(self, token_log_probs: Tensor, penalties: Tensor | None = None) -> Tensor:
        """Choose the next token of each beam.

        Args:
            token_log_probs: (N, K, V), log-probabilities of the next token.
            penalties: (N, V), subtracted for the ranking only; None for no penalty.

        Returns:
            (N, K') int64. Each new beam continues this beam (0 to K - 1) of the group.
        """
        beam_size, length = self.beam_size, self.token_ids.shape[2]
        # Of 2K candidates at most K end, one per beam, so that at least K can continue.
        rank_scores, log_probs, parents, tokens = _best_continuations(
            token_log_probs, self.log_probs, penalties, 2 * beam_size
        )
        token_ids = _gather_rows(self.token_ids, parents)
        is_end = tokens == EOS
        end_log_probs = log_probs.masked_fill(~is_end, -torch.inf)[:, :beam_size]
        scores = end_log_probs / (length + 1) ** self.length_penalty
        self.finished.add(scores, end_log_probs, token_ids[:, :beam_size])

        live = rank_scores.masked_fill(is_end, -torch.inf)
        best, order = live.topk(min(beam_size, live.shape[1]), 1)
        self.log_probs = (
            best if penalties is None else log_probs.gather(1, order).where(best > -torch.inf, best)
        )
        self.last_tokens = tokens.gather(1, order)
        self.token_ids = torch.cat(
            [_gather_rows(token_ids, order), self.last_tokens[:, :, None]], 2
        )
        return parents.gather(1, order)

    def is_done(self) -> Tensor:
        """Return (N,) bool: whether an image has all K hypotheses, or no live beam left."""
        return self.finished.is_full() | (self.log_probs[:, 0] == -torch.inf)

    def retire(self, images: Tensor) -> None:
        """Mark the beams of some images as dead; `images` is an (N,) bool mask."""
        self.log_probs = self.log_probs.masked_fill(images[:, None], -torch.inf)

    def keep(self, images: Tensor) -> None:
        """Keep only the images at these indices, (N',) int64."""
        self.finished.keep(images)
        self.last_tokens, self.log_probs = self.last_tokens[images], self.log_probs[images]
        self.token_ids = self.token_ids[images]


class _Finished:
    """The K best hypotheses of every image so far.

    Attributes:
        scores: (N, K) float32, best first; −inf marks an empty slot.
        log_probs: (N, K) float32.
        lengths: (N, K) int64, tokens without EOS.
        token_ids: (N, K, max_length) int64, padded with PAD.
    """

    def __init__(
        self, num_images: int, beam_size: int, max_length: int, device: torch.device
    ) -> None:
        self.scores = torch.full((num_images, beam_size), -torch.inf, device=device)
        self.log_probs = self.scores.clone()
        self.lengths = torch.zeros_like(self.scores, dtype=torch.long)
        self.token_ids = torch.full((num_images, beam_size, max_length), PAD, device=device)

    def add(self, scores: Tensor, log_probs: Tensor, token_ids: Tensor) -> None:
        """Add candidates of the same length T, and keep the K best hypotheses.

        Args:
            scores: (N, C); candidates with −inf are ignored.
            log_probs: (N, C).
            token_ids: (N, C, T).
        """
        beam_size, max_length = self.token_ids.shape[1:]
        length = token_ids.shape[2]
        token_ids = F.pad(token_ids, (0, max_length - length), value=PAD)
        lengths = torch.full_like(log_probs, length, dtype=torch.long)
        self.scores, best = torch.cat([self.scores, scores], 1).topk(beam_size, 1)
        self.log_probs = torch.cat([self.log_probs, log_probs], 1).gather(1, best)
        self.lengths = torch.cat([self.lengths, lengths], 1).gather(1, best)
        self.token_ids = _gather_rows(torch.cat([self.token_ids, token_ids], 1), best)

    def is_full(self) -> Tensor:
        """Return (N,) bool: whether an image has all its K hypotheses."""
        return self.scores[:, -1] > -torch.inf

    def keep(self, images: Tensor) -> None:
        """Keep only the images at these indices, (N',) int64."""
        self.scores, self.log_probs = self.scores[images], self.log_probs[images]
        self.lengths, self.token_ids = self.lengths[images], self.token_ids[images]

    def hypotheses(self, images: Tensor) -> list[list[Hypothesis]]:
        """Return the hypotheses of the images at these indices, best first."""
        fields = (self.scores, self.log_probs, self.lengths, self.token_ids)
        return [
            [
                Hypothesis(tuple(tokens[:length]), log_prob, score)
                for score, log_prob, length, tokens in zip(*image, strict=True)
                if score > -torch.inf
            ]
            for image in zip(*(field[images].tolist() for field in fields), strict=True)
        ]


def _best_continuations(
    token_log_probs: Tensor, log_probs: Tensor, penalties: Tensor | None, num_candidates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the C best continuations of the beams of each image.

    Args:
        token_log_probs: (N, K, V) float32, log-probabilities of the next token.
        log_probs: (N, K), log-probabilities of the beams so far.
        penalties: (N, V), subtracted for the ranking only; None for no penalty.
        num_candidates: C, reduced to K·V if there are no more continuations.

    Returns:
        rank_scores: (N, C), log-probabilities minus penalties, descending.
        log_probs: (N, C), log-probabilities of the candidates.
        parents: (N, C) int64, the beam that each candidate continues.
        tokens: (N, C) int64, the last token of each candidate.
    """
    vocab_size = token_log_probs.shape[2]
    totals = token_log_probs + log_probs[:, :, None]
    penalized = totals if penalties is None else totals - penalties[:, None]
    num_candidates = min(num_candidates, penalized.shape[1] * vocab_size)
    rank_scores, index = topk(penalized.flatten(1), num_candidates)
    best = rank_scores if penalties is None else totals.flatten(1).gather(1, index)
    return rank_scores, best, index // vocab_size, index % vocab_size


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate the beams of all groups: (N, K, …) each → (N, G·K, …)."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Select rows per image: (N, K, T) by (N, C) → (N, C, T)."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))
