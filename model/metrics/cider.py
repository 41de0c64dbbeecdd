"""CIDEr-D in NumPy, for SCST rewards, validation during training and consensus re-ranking.

CIDEr-D compares the tf-idf vectors of n-grams of 1 to 4 words. For a candidate and one reference it
is 10 × length penalty × the mean over orders of the cosine, with the candidate's weights clipped to
the reference's. The score of a candidate is the mean over the references of its image.

The results equal those of pycocoevalcap, which calls CIDEr-D simply CIDEr.

Source: Vedantam et al. 2015, arXiv:1411.5726, section 4 and CIDEr-D.
"""

import numpy as np

from ...pipeline.stage.ragged import Ints, ranges
from .metric import Floats
from .ngrams import (
    MAX_ORDER,
    Matches,
    NgramCounts,
    Pairs,
    ReferenceCounts,
    ReferenceNgrams,
    Words,
)

SIGMA = 6.0  # width of the length penalty, in bigrams


class CiderD:
    """CIDEr-D against references whose tf-idf vectors are computed once."""

    def __init__(self, references: ReferenceNgrams) -> None:
        """Compute the tf-idf vectors, with document frequencies counted over these images only."""
        self.references = references
        self.lengths = _num_bigrams(references.words)
        self.orders = [TfIdf(order, len(references.words)) for order in references.orders]

    def score(self, matches: Matches) -> Floats:
        """Return CIDEr-D of each candidate, (K,) float64, 0 to 10."""
        pairs = matches.pairs
        gaps = _num_bigrams(matches.words)[pairs.candidates] - self.lengths[pairs.references]
        cosines = np.mean(
            [
                tf_idf.cosines(ngrams, groups, pairs)
                for tf_idf, ngrams, groups in zip(
                    self.orders, matches.ngrams, matches.groups, strict=True
                )
            ],
            axis=0,
        )
        cosines *= _length_penalty(gaps)
        sums: Floats = np.add.reduceat(10 * cosines, pairs.offsets[:-1])
        return sums / np.diff(pairs.offsets)

    def weighted_sums(
        self, words: Words, offsets: Ints, rows: Ints, weights: Floats
    ) -> list[Floats]:
        """Score each candidate against several images: the weighted sum of its CIDEr-D.

        Summing the references first makes this much faster than scoring every pair of a candidate
        and an image.

        Args:
            words: word ids of the candidates of all N lists.
            offsets: (N + 1,) int64; list i has the candidates offsets[i] to offsets[i + 1].
            rows: (N, n) int64, rows in `references` of the images for each list.
            weights: (N, n) float64, the weight of each image; may be negative.

        Returns:
            (K,) float64 for each list of K candidates.
        """
        num_lengths = self.lengths.max() + 1
        penalty = _length_penalty(_num_bigrams(words)[:, None] - np.arange(num_lengths))
        weights = weights / np.diff(self.references.image_offsets)[rows]  # per reference
        sums = np.zeros(len(words))
        for tf_idf, ngrams in zip(self.orders, self.references.count(words), strict=True):
            for i, part in enumerate(ngrams.split(offsets)):
                own = slice(offsets[i], offsets[i + 1])
                sums[own] += tf_idf.weighted_cosines(
                    part, rows[i], weights[i], self.lengths, penalty[own]
                )
        return np.split(10 / MAX_ORDER * sums, offsets[1:-1])


class TfIdf:
    """The tf-idf vectors of the references for n-grams of one order.

    Attributes:
        counts: n-gram counts of the references.
        idf: (n-grams + 1,) float64, natural logarithm; the last entry is for unseen n-grams.
        weights: (E,) float64, tf-idf of each entry of `counts`.
        norms: (M,) float64, Euclidean norm of each reference's vector.
    """

    def __init__(self, counts: ReferenceCounts, num_references: int) -> None:
        """Compute the idf, and the tf-idf vectors of M references."""
        self.counts = counts
        frequencies = np.append(np.bincount(counts.group_ngrams), 0)
        self.idf = np.log(counts.num_images) - np.log(np.maximum(1, frequencies))
        entry_ngrams = np.repeat(counts.group_ngrams, np.diff(counts.offsets))
        self.weights = counts.counts * self.idf[entry_ngrams]
        self.norms = _norms(self.weights, counts.references, num_references)

    def cosines(self, ngrams: NgramCounts, groups: Ints, pairs: Pairs) -> Floats:
        """Return the clipped cosine of each pair's tf-idf vectors, (P,) float64.

        Args:
            ngrams: n-grams of K candidates.
            groups: (G,) int64, see `Matches`.
            pairs: the candidates paired with their references.
        """
        counts, own_weights = self.counts, self.weigh(ngrams)
        known = np.flatnonzero(groups >= 0)
        first = counts.offsets[groups[known]]
        num_entries = counts.offsets[groups[known] + 1] - first
        entries, own = ranges(first, num_entries), np.repeat(known, num_entries)
        weights = self.weights[entries]
        products = np.minimum(own_weights[own], weights) * weights
        # A candidate's pairs are in the order of its image's references.
        candidates = ngrams.captions[own]
        places = pairs.offsets[candidates] + counts.references[entries]
        places -= pairs.references[pairs.offsets[candidates]]
        dots = np.bincount(places, products, len(pairs.candidates))
        norms = _norms(own_weights, ngrams.captions, len(pairs.offsets) - 1)[pairs.candidates]
        return dots / (norms * self.norms[pairs.references])

    def weighted_cosines(
        self, ngrams: NgramCounts, rows: Ints, weights: Floats, lengths: Ints, penalty: Floats
    ) -> Floats:
        """Sum penalty × weight × clipped cosine over all references of some images.

        Args:
            ngrams: n-grams of K candidates.
            rows: (n,) int64, rows of the images in the references.
            weights: (n,) float64, the weight of each image's references.
            lengths: (M,) int64, length of every reference in bigrams, below L.
            penalty: (K, L) float64, length penalty of each candidate and reference length.

        Returns:
            (K,) float64.
        """
        num_candidates, num_lengths = penalty.shape
        if not len(ngrams):  # all candidates are shorter than the order
            return np.zeros(num_candidates)
        counts, own_weights = self.counts, self.weigh(ngrams)
        wanted, own_places = np.unique(ngrams.ngrams, return_inverse=True)  # (U,)

        groups, images, places = counts.select(rows, wanted)
        num_entries = counts.offsets[groups + 1] - counts.offsets[groups]
        entries = ranges(counts.offsets[groups], num_entries)
        references = counts.references[entries]
        values = self.weights[entries] / self.norms[references]
        values *= np.repeat(weights[images], num_entries)
        cells = np.repeat(places * num_lengths, num_entries) + lengths[references]

        # min(n, m) is the number of counts k >= 1 with k <= n and k <= m, so sum over k.
        products = np.zeros(len(ngrams))
        for count in range(1, ngrams.counts.max() + 1):
            if count > 1:
                held = counts.counts[entries] >= count
                entries, cells, values = entries[held], cells[held], values[held]
            table = np.bincount(cells, values, len(wanted) * num_lengths)
            own = ngrams.counts >= count
            sums = table.reshape(len(wanted), num_lengths) @ penalty.T  # (U, K)
            products[own] += sums[own_places[own], ngrams.captions[own]]
        dots = np.bincount(ngrams.captions, products * self.find_idf(ngrams), num_candidates)
        return dots / _norms(own_weights, ngrams.captions, num_candidates)

    def weigh(self, ngrams: NgramCounts) -> Floats:
        """Return the tf-idf of candidates' n-grams, (G,) float64."""
        return ngrams.counts * self.find_idf(ngrams)

    def find_idf(self, ngrams: NgramCounts) -> Floats:
        """Return the idf of candidates' n-grams, (G,) float64."""
        idf: Floats = self.idf[np.minimum(ngrams.ngrams, len(self.idf) - 1)]
        return idf


def _num_bigrams(words: Words) -> Ints:
    """Return the length of each caption as pycocoevalcap's CIDEr-D measures it: (K,) int64.

    It counts bigrams, so a caption of one word is as long as an empty one.
    """
    return np.maximum(0, words.lengths - 1)


def _length_penalty(gaps: Ints) -> Floats:
    """Return the length penalty: 1 for equal lengths, falling to 0 as the difference grows."""
    factors: Floats = np.exp(-(gaps**2) / (2 * SIGMA**2))
    return factors


def _norms(weights: Floats, captions: Ints, num_captions: int) -> Floats:
    """Return the Euclidean norm of each caption's weights, (num_captions,) float64.

    It is 1 if all weights are 0, so that the cosine is 0, as pycocoevalcap's.
    """
    norms = np.sqrt(np.bincount(captions, weights**2, num_captions))
    return np.where(norms > 0, norms, 1)
