"""METEOR 1.5 for English in NumPy: the same counts as the Java program in pycocoevalcap.

Source: Denkowski and Lavie 2014, ACL W14-3348.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from ....pipeline.stage.ragged import Ints, ranges, to_offsets
from ..metric import Floats
from .alignment import align
from .build_index import open_index
from .counts import (
    CAPTION_FUNCTION,
    CAPTION_LENGTH,
    CAPTION_MATCHES,
    CHUNKS,
    MATCHES,
    NUM_COUNTS,
    NUM_MATCHERS,
    ignore_perfect_chunks,
    meteor_of_counts,
)
from .index import MeteorIndex
from .lexicon import Lexicon
from .matches import Captions, Matches, find_matches
from .normalize import normalize, remove_separator

# Number of word pairs that are compared at once. It limits the memory.
BLOCK_SIZE = 1_000_000


class Meteor:
    """Count the matches of captions with references that are read once.

    Example:
        meteor = Meteor([["a dog runs", "the dog is running"]])
        meteor_of_counts(meteor.count(["a dog is running"], np.array([0])))
    """

    def __init__(
        self, references: Sequence[Sequence[str]], index: MeteorIndex | None = None
    ) -> None:
        """Read the references.

        Args:
            references: of N images, at least one caption each, as PTB words joined by spaces.
            index: the synonyms and paraphrases; by default those in the cache folder.

        Raises:
            ScorerError: the index does not exist and cannot be built.
            StorageError: the cache folder cannot be written.
        """
        self._lexicon = Lexicon(open_index() if index is None else index)
        self._offsets = to_offsets([len(captions) for captions in references])
        self._references = self._read(list(chain.from_iterable(references)))

    def count(self, captions: Sequence[str], rows: Ints | None = None) -> Floats:
        """Count the matches of each caption with the reference that gives it the best score.

        Args:
            captions: K captions, as PTB words joined by spaces.
            rows: (K,) int64, the image of each caption; by default caption i is of image i.

        Returns:
            (K, 23) float64, see `counts.ignore_perfect_chunks`.
        """
        rows = np.arange(len(captions)) if rows is None else rows
        numbers = {text: number for number, text in enumerate(dict.fromkeys(captions))}
        own = self._read(list(numbers))
        index = np.array([numbers[text] for text in captions], np.int64)
        num_references = np.diff(self._offsets)[rows]
        caption_index = np.repeat(index, num_references)
        reference_index = ranges(self._offsets[rows], num_references)
        sizes = own.words.lengths[caption_index]
        sizes = sizes * self._references.words.lengths[reference_index]
        starts = 1 + np.flatnonzero(np.diff(np.cumsum(sizes) // BLOCK_SIZE))
        blocks = zip(*(np.split(i, starts) for i in (caption_index, reference_index)), strict=True)
        counts = np.concatenate([self._count_pairs(own, *block) for block in blocks])
        best = _first_maxima(meteor_of_counts(counts), to_offsets(num_references))
        return counts[best]

    def _read(self, captions: list[str]) -> Captions:
        words = [normalize(remove_separator(caption)) for caption in captions]
        return Captions.read(words, self._lexicon)

    def _count_pairs(self, own: Captions, caption_index: Ints, reference_index: Ints) -> Floats:
        """Align captions with references: (P,) and (P,) int64 → (P, 23) float64."""
        # Only the captions of these pairs, so that the time does not depend on all references.
        used, caption_index = np.unique(caption_index, return_inverse=True)
        used_references, reference_index = np.unique(reference_index, return_inverse=True)
        own, other = own.take(used), self._references.take(used_references)
        captions, references = own.words, other.words
        matches = find_matches(own, other, caption_index, reference_index, self._lexicon)
        lengths = captions.lengths[caption_index], references.lengths[reference_index]
        matches = matches.take(align(matches, *lengths))
        num_pairs = len(caption_index)
        counts = np.zeros((num_pairs, NUM_COUNTS))
        sides = (
            (captions, caption_index, matches.starts, matches.lengths),
            (references, reference_index, matches.reference_starts, matches.reference_lengths),
        )
        for side, (words, index, starts, sizes) in enumerate(sides):
            totals = to_offsets(self._lexicon.is_function[words.ids])
            first, end = words.offsets[index], words.offsets[index + 1]
            place = first[matches.pairs] + starts
            function = totals[place + sizes] - totals[place]
            counts[:, CAPTION_LENGTH + side] = end - first
            counts[:, CAPTION_FUNCTION + side] = totals[end] - totals[first]
            counts[:, CAPTION_MATCHES + side] = np.bincount(matches.pairs, sizes, num_pairs)
            # Each matcher has four columns: content words of both sides, then function words.
            for column, words_matched in ((side, sizes - function), (2 + side, function)):
                sums = _sum_by_matcher(matches, words_matched, num_pairs)
                counts[:, MATCHES][:, column::4] = sums
        counts[:, CHUNKS] = _count_chunks(matches, num_pairs)
        return ignore_perfect_chunks(counts)


def _sum_by_matcher(matches: Matches, values: Ints, num_pairs: int) -> Floats:
    """Sum a value of each match: (M,) int64 → (P, 4) float64."""
    keys = NUM_MATCHERS * matches.pairs + matches.matchers
    sums = np.bincount(keys, values, NUM_MATCHERS * num_pairs).astype(np.float64)
    return sums.reshape(num_pairs, NUM_MATCHERS)


def _count_chunks(matches: Matches, num_pairs: int) -> Ints:
    """Count the series of adjacent matches of each pair: (P,) int64."""
    is_new = np.ones(len(matches), np.bool_)
    ends = matches.starts + matches.lengths, matches.reference_starts + matches.reference_lengths
    is_new[1:] = (
        (matches.pairs[1:] != matches.pairs[:-1])
        | (matches.starts[1:] != ends[0][:-1])
        | (matches.reference_starts[1:] != ends[1][:-1])
    )
    return np.bincount(matches.pairs[is_new], minlength=num_pairs)


def _first_maxima(values: Floats, offsets: Ints) -> Ints:
    """Return the position of the first maximum of each row of a ragged array: (K,) int64."""
    maxima = np.repeat(np.maximum.reduceat(values, offsets[:-1]), np.diff(offsets))
    places = np.flatnonzero(values == maxima)
    rows = np.searchsorted(offsets, places, "right") - 1
    return places[np.unique(rows, return_index=True)[1]]
