"""Choose matches that do not overlap: METEOR's beam search, for many pairs at once.

METEOR fixes the matches whose words are in no other match. Then it reads the reference from left to
right. At each word, a path takes one of the matches that start there, or leaves the word out. Paths
are ranked by

1. the words covered: an equal word counts 2, and any other match of m and n words m // 2 + n // 2,
   so that a single stem or synonym counts nothing,
2. the number of chunks, fewer first; a chunk is a series of matches that are adjacent on both
   sides,
3. the distances |start in the caption - start in the reference| of the matches that were available
   before this one, smaller first: METEOR adds a match's distance to the alternatives after it,
4. the order in which they were made.

After each word the best 40 paths remain. These rules were found by comparing alignments of the Java
program for generated sentences and paraphrases; they agree with the paper except for the words in 1
and the distances in 3.

Letters in shapes: P pairs, M matches, N paths.

Source: Denkowski and Lavie 2014, ACL W14-3348, section 2.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from ....pipeline.stage.ragged import Ints, ranges, to_offsets
from .matches import EXACT, Mask, Matches

BEAM_SIZE = 40
WORD_BITS = 64  # positions of a caption in one number of `Paths.used`


@dataclass(frozen=True)
class Paths:
    """Partial alignments, ordered by pair and in each pair by rank.

    Attributes:
        pairs: (N,) int64, index of the pair, ascending.
        next_words: (N,) int64, the reference's next word to decide on.
        covered: (N,) int64, words covered.
        chunks: (N,) int64, finished chunks.
        distances: (N,) int64.
        ends: (N,) int64, end in the caption of the last match, -1 if a word was left out since.
        used: (N, W) uint64, a bit for each word of the caption that a match covers.
        steps: (N,) int64, the last entry of the path in `Search.steps`, -1 if it has none.
    """

    pairs: Ints
    next_words: Ints
    covered: Ints
    chunks: Ints
    distances: Ints
    ends: Ints
    used: npt.NDArray[np.uint64]
    steps: Ints

    def __len__(self) -> int:
        return len(self.pairs)

    def take(self, index: Ints | Mask) -> Self:
        """Return the paths at `index`, an array of integers or a mask."""
        return type(self)(*(values[index] for values in vars(self).values()))

    def ranked(self, beam_size: int) -> Self:
        """Return the best paths of each pair, best first."""
        order = np.lexsort((self.distances, self.chunks, -self.covered, self.pairs))
        pairs = self.pairs[order]
        is_kept = np.ones(len(self), np.bool_)
        is_kept[beam_size:] = pairs[beam_size:] != pairs[:-beam_size]
        return self.take(order[is_kept])

    def closed(self) -> Self:
        """Return the paths with their last chunk counted."""
        return replace(self, chunks=self.chunks + (self.ends >= 0))


def align(matches: Matches, lengths: Ints, reference_lengths: Ints) -> Mask:
    """Return which matches are in the alignment of their pair: (M,) bool.

    Args:
        matches: of P pairs, in their order.
        lengths: (P,) int64, words of each pair's caption.
        reference_lengths: (P,) int64, words of each pair's reference.
    """
    is_fixed = _find_fixed(matches, lengths, reference_lengths)
    chosen = is_fixed.copy()
    # Only pairs with a choice need the search.
    open_pairs = np.unique(matches.pairs[~is_fixed])
    if not len(open_pairs):
        return chosen
    places = np.flatnonzero(np.isin(matches.pairs, open_pairs))
    part = replace(matches.take(places), pairs=np.searchsorted(open_pairs, matches.pairs[places]))
    search = Search(part, is_fixed[places], lengths[open_pairs], reference_lengths[open_pairs])
    chosen[places[search.run()]] = True
    return chosen


def _find_fixed(matches: Matches, lengths: Ints, reference_lengths: Ints) -> Mask:
    """Return which matches are the only ones of all their words: (M,) bool."""
    is_fixed = np.ones(len(matches), np.bool_)
    for starts, sizes, totals in (
        (matches.starts, matches.lengths, lengths),
        (matches.reference_starts, matches.reference_lengths, reference_lengths),
    ):
        offsets = to_offsets(totals)
        words = ranges(offsets[matches.pairs] + starts, sizes)
        is_shared = np.bincount(words, minlength=offsets[-1])[words] > 1
        owners = np.repeat(np.arange(len(matches)), sizes)
        is_fixed[owners[is_shared]] = False
    return is_fixed


class Search:
    """Beam search over the alignments of P pairs, one word of the reference at a time."""

    def __init__(
        self, matches: Matches, is_fixed: Mask, lengths: Ints, reference_lengths: Ints
    ) -> None:
        self.reference_lengths = reference_lengths
        # One entry for each match, and a last one, found as -1, for a word that is left out.
        halves = matches.lengths // 2 + matches.reference_lengths // 2
        distances = np.abs(matches.starts - matches.reference_starts)
        masks = _bit_masks(matches, int(lengths.max()))
        self.starts = np.append(matches.starts, -1)
        self.ends = np.append(matches.starts + matches.lengths, -1)
        self.sizes = np.append(matches.reference_lengths, 1)
        self.covers = np.append(np.where(matches.matchers == EXACT, 2, halves), 0)
        self.distances = np.append(distances, 0)
        self.masks = np.append(masks, np.zeros_like(masks[:1]), axis=0)
        # Matches that start at word w of pair p's reference: offsets[base[p] + w] to the next.
        self.base = to_offsets(reference_lengths + 1)[:-1]
        places = self.base[matches.pairs] + matches.reference_starts
        num_places = self.base[-1] + reference_lengths[-1] + 1
        self.free = np.flatnonzero(~is_fixed)
        self.offsets = to_offsets(np.bincount(places[self.free], minlength=num_places))
        self.fixed = np.full(num_places, -1)
        self.fixed[places[is_fixed]] = np.flatnonzero(is_fixed)
        self.used_by_fixed = np.zeros((len(lengths), masks.shape[1]), np.uint64)
        np.bitwise_or.at(self.used_by_fixed, matches.pairs[is_fixed], masks[is_fixed])
        self.steps: list[tuple[Ints, Ints]] = []  # previous step and match, of each step
        self.num_steps = 0

    def run(self) -> Ints:
        """Return the free matches of the best path of each pair."""
        num_pairs = len(self.reference_lengths)
        zeros = np.zeros(num_pairs, np.int64)
        paths = Paths(
            pairs=np.arange(num_pairs),
            next_words=zeros,
            covered=zeros,
            chunks=zeros,
            distances=zeros,
            ends=zeros - 1,
            used=self.used_by_fixed,
            steps=zeros - 1,
        )
        best = []
        for word in range(int(self.reference_lengths.max()) + 1):
            paths = paths.ranked(BEAM_SIZE)
            is_complete = self.reference_lengths[paths.pairs] == word
            if is_complete.any():
                best.append(paths.take(is_complete).closed().ranked(1).steps)
                paths = paths.take(~is_complete)
            paths = self._extend(paths, word)
        return self._trace(np.concatenate(best))

    def _extend(self, paths: Paths, word: int) -> Paths:
        """Decide on one word of the reference.

        A path inside a match waits. A path at a fixed match takes it. Any other path is extended by
        each free match, and once without a match.
        """
        rows, matches, is_free = self._list_choices(paths, word)
        own = self.distances[matches]
        # Free matches add their distance to the choices after them, fixed ones to themselves.
        distances = _sum_before(np.where(is_free, own, 0), rows) + np.where(is_free, 0, own)
        waits = paths.next_words[rows] > word
        ends = paths.ends[rows]
        breaks = ~waits & (ends >= 0) & (ends != self.starts[matches])
        return Paths(
            pairs=paths.pairs[rows],
            next_words=np.where(waits, paths.next_words[rows], word + self.sizes[matches]),
            covered=paths.covered[rows] + self.covers[matches],
            chunks=paths.chunks[rows] + breaks,
            distances=paths.distances[rows] + distances,
            ends=np.where(waits, ends, self.ends[matches]),
            used=paths.used[rows] | self.masks[matches],
            steps=self._record(paths.steps[rows], np.where(is_free, matches, -1)),
        )

    def _list_choices(self, paths: Paths, word: int) -> tuple[Ints, Ints, Mask]:
        """List what the paths can do at a word of the reference, in METEOR's order.

        Returns:
            rows: (C,) int64, the path of each choice, ascending.
            matches: (C,) int64, the match that it takes, -1 for none.
            is_free: (C,) bool, whether that is a free match.
        """
        places = self.base[paths.pairs] + word
        is_waiting = paths.next_words > word
        fixed = np.where(is_waiting, -1, self.fixed[places])
        first, end = self.offsets[places], self.offsets[places + 1]
        num_free = np.where(is_waiting | (fixed >= 0), 0, end - first)
        rows = np.repeat(np.arange(len(paths)), num_free + 1)
        numbers = ranges(np.zeros_like(num_free), num_free + 1)
        is_free = numbers < num_free[rows]
        matches = fixed[rows]  # the last choice of each path
        matches[is_free] = self.free[(first[rows] + numbers)[is_free]]
        is_overlapping = (paths.used[rows] & self.masks[matches]).any(axis=1)
        kept = ~(is_free & is_overlapping)
        return rows[kept], matches[kept], is_free[kept]

    def _record(self, steps: Ints, matches: Ints) -> Ints:
        """Append a step to each path that takes a match, and return the paths' last steps."""
        takes = matches >= 0
        self.steps.append((steps[takes], matches[takes]))
        numbers = self.num_steps + np.cumsum(takes) - 1
        self.num_steps += int(takes.sum())
        return np.where(takes, numbers, steps)

    def _trace(self, steps: Ints) -> Ints:
        """Return all matches of the paths that end with these steps."""
        previous, matches = map(np.concatenate, zip(*self.steps, strict=True))
        found = []
        while len(steps := steps[steps >= 0]):
            found.append(matches[steps])
            steps = previous[steps]
        return np.concatenate(found) if found else np.empty(0, np.int64)


def _sum_before(values: Ints, rows: Ints) -> Ints:
    """Return the sum of the values before each one in its row: (C,) int64.

    Args:
        values: (C,) int64.
        rows: (C,) int64, ascending.
    """
    sums = np.cumsum(values) - values
    return sums - sums[np.searchsorted(rows, rows)]


def _bit_masks(matches: Matches, max_length: int) -> npt.NDArray[np.uint64]:
    """Return a bit for each word of the caption that a match covers: (M, W) uint64."""
    masks = np.zeros((len(matches), -(-max_length // WORD_BITS)), np.uint64)
    rows = np.repeat(np.arange(len(matches)), matches.lengths)
    words = ranges(matches.starts, matches.lengths)
    column, bit = np.divmod(words, WORD_BITS)
    np.bitwise_or.at(masks, (rows, column), np.uint64(1) << bit.astype(np.uint64))
    return masks
