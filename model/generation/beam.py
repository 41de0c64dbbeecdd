"""Beam search over any decoder's `step`: all beams of all images in one batch.

Letters in shapes: N images still searched, K beams (of a group), G groups, V vocabulary, T words so
far, C candidates.
"""

from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from ...pipeline.text.vocab import EOS, PAD
from ..decoders.state import S, StepModel
from ..kernels.padding import staying
from ..kernels.topk import topk
from .constraints import next_log_probs
from .hypothesis import Hypothesis, rank_hypotheses
from .options import DecodingOptions

IMAGES_TOGETHER = 4  # that leave the batch: what attention multiplies is then of few sizes


@torch.no_grad()
def beam_search(
    decoder: StepModel[S], state: S, options: DecodingOptions
) -> list[list[Hypothesis]]:
    """Find the best captions of each image.

    At every step the K best continuations of an image go on; those among its K best that end become
    hypotheses. An image with K hypotheses is done and soon leaves the batch. The end comes after
    one word at the earliest and after `max_length` at the latest, so that every image gets a
    caption.

    With a length penalty a longer caption might still outrank those K. Waiting until none can was
    tried: on Flickr8k's dev images, GRU, beam 3, CIDEr rose from 47.7 to 48.1, BLEU-4 fell from
    20.1 to 20.0 and decoding took 1.3 times as long; and a beam of one would no longer be greedy.

    With `beam_groups` G the beam is split into G searches of K / G beams each, which take turns at
    every step: to a group, a word is less welcome by `diversity` for each beam of the groups before
    it that goes on with this word. That decides what a group keeps, and enters no log-probability.
    The end is no word of this kind: captions may all end at the same place.

    Args:
        decoder: in eval mode.
        state: of `decoder.init_state(features)`, a row for each image.
        options: how to search; `beam` is K, 1 is greedy. A `length_penalty` of 0 ranks by
            probability alone, which favours short captions.

    Returns:
        For each image at least one and at most K hypotheses, different ones, best first.

    Source: diverse groups after Vijayakumar et al. 2016, arXiv:1610.02424, with Hamming diversity.
    """
    num_images = len(state)
    results: list[list[Hypothesis]] = [[] for _ in range(num_images)]
    if not num_images:
        return results
    start = decoder.start_tokens(num_images)[:, None]
    # (N,) places of the images in results; -1 of those that are done, which may stay for a while.
    searched = torch.arange(num_images, device=start.device)
    groups = [_Group(start, options) for _ in range(options.beam_groups)]
    if len(groups) > 1:
        state = state.select(searched, start.new_zeros(num_images, len(groups)))
    for _ in range(options.length_limit + 1):
        words = _join([group.words for group in groups])  # (N, G·K)
        token_ids = _join([group.token_ids for group in groups])
        logits, state = decoder.step(words.flatten(), state)
        log_probs = next_log_probs(logits, token_ids.flatten(0, 1), options)
        parents = _advance(groups, log_probs.view(*words.shape, -1), options.diversity)

        done = torch.stack([group.is_done() for group in groups]).all(0)
        leaving = (done & (searched >= 0)).nonzero()[:, 0]
        if len(leaving):
            found = zip(*(group.finished.hypotheses(leaving) for group in groups), strict=True)
            for image, hypotheses in zip(searched[leaving].tolist(), found, strict=True):
                results[image] = rank_hypotheses(chain.from_iterable(hypotheses))
            searched[leaving] = -1
        kept = staying(done, IMAGES_TOGETHER)
        if not len(kept):
            break
        state = state.select(kept, parents[kept])
        if len(kept) < len(done):
            searched = searched[kept]
            for group in groups:
                group.keep(kept)
    return results


def _advance(groups: list["_Group"], log_probs: Tensor, diversity: float) -> Tensor:
    """Let each group choose its next words, one group after the other.

    Args:
        groups: each changed in place.
        log_probs: (N, G·K, V) of the next word alone.
        diversity: what a word costs for each beam of earlier groups that goes on with it.

    Returns:
        parents (N, G·K'): the beam, among all of the image, that each beam continues.
    """
    if len(groups) == 1:
        return groups[0].advance(log_probs)
    num_images, num_beams, num_words = log_probs.shape
    said = log_probs.new_zeros(num_images, num_words)
    parents = []
    for g, of_group in enumerate(log_probs.chunk(len(groups), 1)):
        group = groups[g]
        parents.append(group.advance(of_group, diversity * said) + g * num_beams // len(groups))
        group.retire(group.is_done())
        said.scatter_add_(1, group.words, (group.log_probs > -torch.inf).float())
    return torch.cat(parents, 1)


class _Group:
    """The beams of a search that are still going, and what has ended, of every image.

    `log_probs` (N, K) float32 of the beams so far, −inf where there is none; `token_ids` (N, K, T)
    int64 their words; `words` (N, K) the last of them, BOS at first.
    """

    def __init__(self, start: Tensor, options: DecodingOptions) -> None:
        # A single beam for each image at first: K equal ones would find everything K times.
        self.words = start
        self.log_probs = torch.zeros_like(start, dtype=torch.float32)
        self.token_ids = start[:, :, None][:, :, :0]
        self.beam_size = options.beam // options.beam_groups
        self.length_penalty = options.length_penalty
        self.finished = _Finished(len(start), self.beam_size, options.length_limit, start.device)

    def advance(self, word_log_probs: Tensor, penalties: Tensor | None = None) -> Tensor:
        """Choose among all words behind all beams: (N, K, V) log-probabilities, (N, V) penalties.

        Returns:
            (N, K'), the beam that each new one goes on from.
        """
        beam_size, length = self.beam_size, self.token_ids.shape[2]
        # K continuations may end, so that 2K are needed for K to go on.
        ranks, log_probs, parents, words = _best_continuations(
            word_log_probs, self.log_probs, penalties, 2 * beam_size
        )
        token_ids = _gather_rows(self.token_ids, parents)
        ended = words == EOS
        ends = log_probs.masked_fill(~ended, -torch.inf)[:, :beam_size]
        scores = ends / (length + 1) ** self.length_penalty
        self.finished.add(scores, ends, token_ids[:, :beam_size])

        going = ranks.masked_fill(ended, -torch.inf)
        best, order = going.topk(min(beam_size, going.shape[1]), 1)
        self.log_probs = (
            best if penalties is None else log_probs.gather(1, order).where(best > -torch.inf, best)
        )
        self.words = words.gather(1, order)
        self.token_ids = torch.cat([_gather_rows(token_ids, order), self.words[:, :, None]], 2)
        return parents.gather(1, order)

    def is_done(self) -> Tensor:
        """(N,) bool, whether an image has all its hypotheses, or no beam to find more."""
        return self.finished.is_full() | (self.log_probs[:, 0] == -torch.inf)

    def retire(self, images: Tensor) -> None:
        """Let the beams of these images, (N,) bool, find no more."""
        self.log_probs = self.log_probs.masked_fill(images[:, None], -torch.inf)

    def keep(self, images: Tensor) -> None:
        """Forget all images but these."""
        self.finished.keep(images)
        self.words, self.log_probs = self.words[images], self.log_probs[images]
        self.token_ids = self.token_ids[images]


class _Finished:
    """The best K hypotheses that have ended, of every image; a score of −inf is a free place.

    `scores` and `log_probs` are (N, K) float32, best first; `lengths` (N, K) int64 counts words
    without EOS; `token_ids` (N, K, max_length) int64 has PAD behind the end.
    """

    def __init__(
        self, num_images: int, beam_size: int, max_length: int, device: torch.device
    ) -> None:
        self.scores = torch.full((num_images, beam_size), -torch.inf, device=device)
        self.log_probs = self.scores.clone()
        self.lengths = torch.zeros_like(self.scores, dtype=torch.long)
        self.token_ids = torch.full((num_images, beam_size, max_length), PAD, device=device)

    def add(self, scores: Tensor, log_probs: Tensor, token_ids: Tensor) -> None:
        """Take in candidates of one length T: (N, C), (N, C), (N, C, T); those of −inf are none."""
        beam_size, max_length = self.token_ids.shape[1:]
        length = token_ids.shape[2]
        token_ids = F.pad(token_ids, (0, max_length - length), value=PAD)
        lengths = torch.full_like(log_probs, length, dtype=torch.long)
        self.scores, best = torch.cat([self.scores, scores], 1).topk(beam_size, 1)
        self.log_probs = torch.cat([self.log_probs, log_probs], 1).gather(1, best)
        self.lengths = torch.cat([self.lengths, lengths], 1).gather(1, best)
        self.token_ids = _gather_rows(torch.cat([self.token_ids, token_ids], 1), best)

    def is_full(self) -> Tensor:
        """(N,) bool, whether an image has all its K hypotheses."""
        return self.scores[:, -1] > -torch.inf

    def keep(self, images: Tensor) -> None:
        """Forget all images but these."""
        self.scores, self.log_probs = self.scores[images], self.log_probs[images]
        self.lengths, self.token_ids = self.lengths[images], self.token_ids[images]

    def hypotheses(self, images: Tensor) -> list[list[Hypothesis]]:
        """For each of these images its hypotheses, best first."""
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
    word_log_probs: Tensor, log_probs: Tensor, penalties: Tensor | None, num_candidates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rank every word behind every beam of an image.

    Args:
        word_log_probs: (N, K, V) float32, of the next word alone.
        log_probs: (N, K) of the beams so far.
        penalties: (N, V), what each word costs in the ranking and nowhere else.
        num_candidates: C, how many to keep; fewer where there are fewer.

    Returns:
        ranks (N, C) descending, log_probs (N, C), parents (N, C) beam each goes on from, words
        (N, C).
    """
    num_words = word_log_probs.shape[2]
    totals = word_log_probs + log_probs[:, :, None]
    ranked = totals if penalties is None else totals - penalties[:, None]
    num_candidates = min(num_candidates, ranked.shape[1] * num_words)
    ranks, index = topk(ranked.flatten(1), num_candidates)
    best = ranks if penalties is None else totals.flatten(1).gather(1, index)
    return ranks, best, index // num_words, index % num_words


def _join(parts: list[Tensor]) -> Tensor:
    """Beams of groups beside each other: (N, K, …) each → (N, G·K, …)."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Pick rows: (N, K, T) by (N, C) → (N, C, T)."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))
