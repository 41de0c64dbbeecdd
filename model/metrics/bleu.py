"""BLEU-1 to BLEU-4 in NumPy.

The results equal those of pycocoevalcap.

Source: Papineni et al. 2002, ACL P02-1040.
"""

from dataclasses import dataclass

import numpy as np

from ...pipeline.stage.ragged import Ints
from .metric import Floats
from .ngrams import (
    MAX_ORDER,
    Matches,
    NgramCounts,
    ReferenceCounts,
    ReferenceNgrams,
    Words,
    join,
    split,
)

BLEU_NAMES = tuple(f"Bleu_{order}" for order in range(1, MAX_ORDER + 1))


@dataclass(frozen=True)
class BleuCounts:
    """BLEU's counts of each of N captions; BLEU of a set is computed from the sum of its counts.

    Attributes:
        matches: (N, 4) int64, n-grams of 1 to 4 words found in the references, clipped.
        totals: (N, 4) int64, n-grams in the caption.
        lengths: (N,) int64, words in the caption.
        reference_lengths: (N,) int64, words in the reference of the closest length; if two are
            equally close, in the shorter one.
    """

    matches: Ints
    totals: Ints
    lengths: Ints
    reference_lengths: Ints

    def of_corpus(self) -> Floats:
        """Return BLEU-1 to BLEU-4 of all captions together, (4,) float64."""
        summed = [counts.sum(axis=0, keepdims=True) for counts in vars(self).values()]
        scores: Floats = BleuCounts(*summed).of_each()[0]
        return scores

    def of_each(self) -> Floats:
        """Return BLEU-1 to BLEU-4 of each caption alone, (N, 4) float64."""
        # pycocoevalcap adds the same constants against division by zero.
        precisions = (self.matches + 1e-15) / (self.totals + 1e-9)
        means = np.cumprod(precisions, axis=1) ** (1 / np.arange(1, MAX_ORDER + 1))
        ratios = (self.lengths + 1e-15) / (self.reference_lengths + 1e-9)
        with np.errstate(over="ignore"):  # an empty caption gives exp(-inf) = 0, as it should
            brevity = np.exp(np.minimum(0, 1 - 1 / ratios))
        scores: Floats = means * brevity[:, None]
        return scores


def count_matches(references: ReferenceNgrams, matches: Matches) -> BleuCounts:
    """Count the n-grams that K candidates share with the references of their images."""
    words, pairs = matches.words, matches.pairs
    clipped = []
    for order, ngrams, groups in zip(
        references.orders, matches.ngrams, matches.groups, strict=True
    ):
        known = groups >= 0
        counts = np.minimum(ngrams.counts[known], order.max_counts[groups[known]])
        clipped.append(np.bincount(ngrams.captions[known], counts, len(words)).astype(np.int64))
    lengths = references.words.lengths[pairs.references]
    gaps = np.abs(lengths - words.lengths[pairs.candidates])
    closest = np.minimum.reduceat(join(gaps, lengths), pairs.offsets[:-1])
    return BleuCounts(
        matches=np.stack(clipped, axis=1),
        totals=np.maximum(0, words.lengths[:, None] - np.arange(MAX_ORDER)),
        lengths=words.lengths,
        reference_lengths=split(closest)[1],
    )


def weighted_precisions(
    references: ReferenceNgrams, words: Words, offsets: Ints, rows: Ints, weights: Floats
) -> list[Floats]:
    """Score each candidate against several images: the weighted sum of its n-gram precision.

    The precision is the mean of BLEU's four clipped precisions, of n-grams of 1 to 4 words.

    Args:
        references: n-grams of the references of all images.
        words: word ids of the candidates of all N lists.
        offsets: (N + 1,) int64; list i has the candidates offsets[i] to offsets[i + 1].
        rows: (N, n) int64, rows in `references` of the images for each list.
        weights: (N, n) float64, the weight of each image; may be negative.

    Returns:
        (K,) float64 for each list of K candidates.
    """
    precisions = np.zeros(len(words))
    for order, (held, ngrams) in enumerate(
        zip(references.orders, references.count(words), strict=True)
    ):
        totals = np.maximum(1, words.lengths - order)
        for i, part in enumerate(ngrams.split(offsets)):
            own = slice(offsets[i], offsets[i + 1])
            precisions[own] += _weighted_matches(held, part, rows[i], weights[i], totals[own])
    return np.split(precisions / MAX_ORDER, offsets[1:-1])


def _weighted_matches(
    held: ReferenceCounts, ngrams: NgramCounts, rows: Ints, weights: Floats, totals: Ints
) -> Floats:
    """Sum weight × clipped matches / totals over some images: (K,) float64, as `totals`."""
    if not len(ngrams):  # all candidates are shorter than the order
        return np.zeros(len(totals))
    wanted, own_places = np.unique(ngrams.ngrams, return_inverse=True)
    groups, images, places = held.select(rows, wanted)
    matches = np.zeros(len(ngrams))
    # min(n, m) is the number of counts k >= 1 with k <= n and k <= m, so sum over k.
    for count in range(1, ngrams.counts.max() + 1):
        repeated = held.max_counts[groups] >= count
        table = np.bincount(places[repeated], weights[images[repeated]], len(wanted))
        matches += np.where(ngrams.counts >= count, table[own_places], 0)
    sums: Floats = np.bincount(ngrams.captions, matches, len(totals)) / totals
    return sums
