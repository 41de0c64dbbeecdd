"""BLEU, ROUGE_L and CIDEr in NumPy, for whatever must be fast: validation, rewards, intervals.

`CaptionScorer` computes all statistics of the references once; scoring a thousand captions then
takes a fraction of a second, with no Java and no tokenizer. The figures are those of pycocoevalcap,
the field's reference; its quirks are kept, and named where they stand. `official.py` runs the
original.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from ...pipeline.stage.errors import DatasetError, MismatchError
from ...pipeline.stage.ragged import Ints, to_offsets
from .ngrams import (
    MAX_ORDER,
    Floats,
    FoundNgrams,
    Pairs,
    ReferenceNgrams,
    WeightedImages,
    Words,
    join,
    split,
)

CIDER_SIGMA = 6.0  # width of CIDEr's length penalty, in bigrams
ROUGE_BETA = 1.2  # weight of recall against precision
BLEU_NAMES = tuple(f"Bleu_{order}" for order in range(1, MAX_ORDER + 1))


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU needs to know of each caption; the score of a set is that of its summed counts.

    Attributes:
        matches: (N, 4) int64, n-grams of 1 to 4 words found in the references, clipped.
        totals: (N, 4) int64, n-grams in the caption.
        lengths: (N,) int64, words in the caption.
        reference_lengths: (N,) int64, words in the reference closest in length, the shorter of two.

    Source: Papineni et al. 2002, ACL P02-1040.
    """

    matches: Ints
    totals: Ints
    lengths: Ints
    reference_lengths: Ints

    def of_corpus(self) -> Floats:
        """BLEU-1 to BLEU-4 of all captions together, (4,) float64."""
        summed = [counts.sum(axis=0, keepdims=True) for counts in vars(self).values()]
        scores: Floats = BleuCounts(*summed).of_each()[0]
        return scores

    def of_each(self) -> Floats:
        """BLEU-1 to BLEU-4 of each caption alone, (N, 4) float64."""
        # The same constants against division by zero as pycocoevalcap's.
        precisions = (self.matches + 1e-15) / (self.totals + 1e-9)
        means = np.cumprod(precisions, axis=1) ** (1 / np.arange(1, MAX_ORDER + 1))
        ratios = (self.lengths + 1e-15) / (self.reference_lengths + 1e-9)
        with np.errstate(over="ignore"):  # exp(-inf) of an empty caption is the 0 that is meant
            brevity = np.exp(np.minimum(0, 1 - 1 / ratios))
        scores: Floats = means * brevity[:, None]
        return scores


@dataclass(frozen=True)
class CaptionScores:
    """The scores of N captions, still apart.

    Attributes:
        image_ids: (N,) int64.
        bleu: counts of each caption.
        rouge_l: (N,) float64, 0 to 1.
        cider: (N,) float64, 0 to 10.
    """

    image_ids: Ints
    bleu: BleuCounts
    rouge_l: Floats
    cider: Floats

    def means(self) -> dict[str, float]:
        """The scores of all captions together, by pycocoevalcap's names, as fractions."""
        scores = dict(zip(BLEU_NAMES, self.bleu.of_corpus().tolist(), strict=True))
        return scores | {"ROUGE_L": float(self.rouge_l.mean()), "CIDEr": float(self.cider.mean())}

    def per_image(self) -> dict[str, Floats]:
        """The scores of each caption alone, (N,) float64 each, by pycocoevalcap's names."""
        scores = dict(zip(BLEU_NAMES, self.bleu.of_each().T, strict=True))
        return scores | {"ROUGE_L": self.rouge_l, "CIDEr": self.cider}


class CaptionScorer:
    """Scores captions against references whose statistics are computed once.

    Example:
        scorer = CaptionScorer({7: ["a dog runs", "the dog is running"]})
        scorer.score({7: "a dog is running"})["Bleu_1"]
    """

    def __init__(self, references: Mapping[int, Sequence[str]]) -> None:
        """Compute the statistics.

        Args:
            references: image_id → at least one caption, as PTB words joined by single spaces. The
                document frequencies of CIDEr are those of exactly these images.

        Raises:
            DatasetError: there is no image, or one without a reference.
        """
        require_references(references)
        captions = list(chain.from_iterable(references.values()))
        self.rows = {image_id: row for row, image_id in enumerate(references)}
        self.offsets = to_offsets(np.array([len(captions) for captions in references.values()]))
        self.word_ids: dict[str, int] = {}
        self.words = Words.read([text.split() for text in captions], self.word_ids)
        self.rouge_words = Words.read([text.split(" ") for text in captions], self.word_ids)
        self.ngrams = ReferenceNgrams(self.words, self.offsets)

    def score(self, hypotheses: Mapping[int, str]) -> dict[str, float]:
        """Score one caption for each image of the references.

        Args:
            hypotheses: image_id → words joined by single spaces, for exactly the references' ids.

        Returns:
            `Bleu_1` … `Bleu_4`, `ROUGE_L`, `CIDEr` as fractions, equal to pycocoevalcap's.

        Raises:
            MismatchError: an image without a caption, or a caption without references.
        """
        return self.score_each(hypotheses).means()

    def score_images(self, hypotheses: Mapping[int, str]) -> dict[str, Floats]:
        """The same scores of each image alone: (N,) float64 each, in the references' order."""
        return self.score_each(hypotheses).per_image()

    def score_each(self, hypotheses: Mapping[int, str]) -> CaptionScores:
        """The same scores with the counts behind them, in the references' order."""
        require_same_images(self.rows, hypotheses)
        captions = [hypotheses[image_id] for image_id in self.rows]
        words, pairs, found = self._match(list(self.rows), captions)
        return CaptionScores(
            image_ids=np.array(list(self.rows)),
            bleu=self._bleu(words, pairs, found),
            rouge_l=self._rouge_l(captions, pairs),
            cider=self._cider_d(words, pairs, found),
        )

    def cider_d(self, image_ids: Sequence[int], captions: Sequence[str]) -> Floats:
        """CIDEr-D of any captions, e.g. several samples for each image of a batch, as a reward.

        It is what pycocoevalcap calls CIDEr and `score` reports: matches clipped to the
        reference's weight, a Gaussian penalty on the difference in length, times 10.

        Args:
            image_ids: K ids of images that have references; repeats are welcome.
            captions: K captions, words joined by single spaces.

        Returns:
            (K,) float64, 0 to 10.

        Raises:
            MismatchError: an id without references.

        Source: Vedantam et al. 2015, arXiv:1411.5726, section 4 and CIDEr-D.
        """
        return self._cider_d(*self._match(image_ids, captions))

    def plain_cider(self, image_ids: Sequence[int], captions: Sequence[str]) -> Floats:
        """CIDEr without the D: no clipping and no penalty on the length, which can be gamed.

        Arguments as of `cider_d`; times 10 too, to be compared with it. Words are not stemmed.

        Returns:
            (K,) float64, 0 to 10.

        Raises:
            MismatchError: an id without references.

        Source: Vedantam et al. 2015, arXiv:1411.5726, section 4.
        """
        _, pairs, found = self._match(image_ids, captions)
        cosines = np.mean([ngrams.cosines(pairs, clip=False) for ngrams in found], axis=0)
        return _mean_of_references(10 * cosines, pairs)

    def mean_cider_d(
        self, captions: Sequence[str], image_ids: Sequence[int], weights: Floats
    ) -> Floats:
        """CIDEr-D of each caption with each of the images, summed under the images' weights.

        The same as `weights @ cider_d(…)` and much faster, since no pair is formed.

        Args:
            captions: K captions, words joined by single spaces.
            image_ids: n ids of images that have references.
            weights: (n,) float64 of the images, of any sign.

        Returns:
            (K,) float64.
        """
        rows = np.array([self.rows[image_id] for image_id in image_ids], np.int64)
        words = Words.read([text.split() for text in captions], dict(self.word_ids))
        lengths, theirs = (bigrams(side) for side in (words, self.words))
        gaps = lengths[:, None] - np.arange(theirs.max() + 1)
        among = WeightedImages(rows, weights / np.diff(self.offsets)[rows], theirs)
        sums: Floats = self.ngrams.sum_cosines(words, among, nearness(gaps)).mean(0)
        return 10 * sums

    def mean_precision(
        self, captions: Sequence[str], image_ids: Sequence[int], weights: Floats
    ) -> Floats:
        """Share of each caption's n-grams that the images' references have, summed under weights.

        The clipped precisions of BLEU, their mean over n-grams of 1 to 4 words.

        Args:
            captions: K captions, words joined by single spaces.
            image_ids: n ids of images that have references.
            weights: (n,) float64 of the images, of any sign.

        Returns:
            (K,) float64.
        """
        rows = np.array([self.rows[image_id] for image_id in image_ids], np.int64)
        words = Words.read([text.split() for text in captions], dict(self.word_ids))
        matches = self.ngrams.sum_matches(words, rows, weights)  # (4, K)
        totals = np.maximum(1, words.lengths - np.arange(MAX_ORDER)[:, None])
        precisions: Floats = (matches / totals).mean(0)
        return precisions

    def _match(
        self, image_ids: Sequence[int], captions: Sequence[str]
    ) -> tuple[Words, Pairs, list[FoundNgrams]]:
        """Set captions beside the references of their images."""
        for image_id in image_ids:
            if image_id not in self.rows:
                raise MismatchError(
                    f"image {image_id} has a hypothesis but is not among the {len(self.rows)} "
                    "images of the references."
                )
        rows = np.array([self.rows[image_id] for image_id in image_ids], np.int64)
        # The same captions may come again and again, with many images each.
        places = {text: place for place, text in enumerate(dict.fromkeys(captions))}
        words = Words.read([text.split() for text in places], dict(self.word_ids))
        words = words.take(np.array([places[text] for text in captions], np.int64))
        return words, Pairs.of(rows, self.offsets), self.ngrams.find(words, rows)

    def _bleu(self, words: Words, pairs: Pairs, found: list[FoundNgrams]) -> BleuCounts:
        """Count what BLEU needs, with its 'closest' reference length."""
        lengths = self.words.lengths[pairs.references]
        gaps = np.abs(lengths - words.lengths[pairs.owners])
        closest = np.minimum.reduceat(join(gaps, lengths), pairs.offsets[:-1])
        return BleuCounts(
            matches=np.stack([ngrams.clipped_counts(len(words)) for ngrams in found], axis=1),
            totals=np.maximum(0, words.lengths[:, None] - np.arange(MAX_ORDER)),
            lengths=words.lengths,
            reference_lengths=split(closest)[1],
        )

    def _cider_d(self, words: Words, pairs: Pairs, found: list[FoundNgrams]) -> Floats:
        """CIDEr-D, (K,) float64."""
        lengths, theirs = (bigrams(side) for side in (words, self.words))
        gaps = lengths[pairs.owners] - theirs[pairs.references]
        cosines = np.mean([ngrams.cosines(pairs) for ngrams in found], axis=0)
        cosines *= nearness(gaps)
        return _mean_of_references(10 * cosines, pairs)

    def _rouge_l(self, captions: Sequence[str], pairs: Pairs) -> Floats:
        """ROUGE_L, (K,) float64.

        Source: Lin 2004, ACL W04-1013.
        """
        # Unlike the other scores it splits at single spaces in pycocoevalcap: "" is one word, and
        # so is "1 1/2", which the PTB tokenizer joins with a no-break space.
        words = Words.read([text.split(" ") for text in captions], dict(self.word_ids))
        common = common_lengths(words, self.rouge_words, pairs)
        precision = common / words.lengths[pairs.owners]
        recall = common / self.rouge_words.lengths[pairs.references]
        # The best of each, even if of different references.
        precision = np.maximum.reduceat(precision, pairs.offsets[:-1])
        recall = np.maximum.reduceat(recall, pairs.offsets[:-1])
        divisor = recall + ROUGE_BETA**2 * precision
        return (1 + ROUGE_BETA**2) * precision * recall / np.where(divisor > 0, divisor, 1)


def bigrams(words: Words) -> Ints:
    """Length of each caption, (K,) int64, as CIDEr-D of pycocoevalcap measures it.

    Captions of no word and of one are alike.
    """
    return np.maximum(0, words.lengths - 1)


def nearness(gaps: Ints) -> Floats:
    """CIDEr-D's penalty on differences in length: 1 for none, towards 0."""
    factors: Floats = np.exp(-(gaps**2) / (2 * CIDER_SIGMA**2))
    return factors


def _mean_of_references(values: Floats, pairs: Pairs) -> Floats:
    """(P,) float64 of each pair → (K,) float64, the mean of each caption's."""
    return np.add.reduceat(values, pairs.offsets[:-1]) / np.diff(pairs.offsets)


def common_lengths(words: Words, references: Words, pairs: Pairs) -> Ints:
    """Length of the longest common subsequence of each pair, (P,) int64.

    A caption's column of the usual table is one integer whose cleared bits are its steps.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    lengths = []
    for owner, (first, end) in enumerate(pairwise(pairs.offsets.tolist())):
        caption, masks = words[owner], dict[int, int]()
        for position, word in enumerate(caption):
            masks[word] = masks.get(word, 0) | 1 << position
        whole = (1 << len(caption)) - 1
        for pair in range(first, end):
            column = whole
            for word in references[pairs.references[pair]]:
                if hits := column & masks.get(word, 0):
                    column = (column + hits) | (column - hits)
            lengths.append(len(caption) - (column & whole).bit_count())
    return np.array(lengths, np.int64)


def require_references(references: Mapping[int, Sequence[str]]) -> None:
    """Refuse references that no caption can be scored against.

    Raises:
        DatasetError: there is no image, or one without a reference.
    """
    if not references:
        raise DatasetError("there are no references to score against, expected at least one image.")
    for image_id, captions in references.items():
        if not captions:
            raise DatasetError(f"image {image_id} has no references, expected at least one.")


def require_same_images(references: Collection[int], hypotheses: Collection[int]) -> None:
    """Refuse hypotheses that are not one for each image of the references.

    Raises:
        MismatchError: an image without a caption, or a caption without references.
    """
    for present, absent, problem in (
        (references, hypotheses, "references but no hypothesis"),
        (hypotheses, references, "a hypothesis but no references"),
    ):
        for image_id in present:
            if image_id not in absent:
                raise MismatchError(
                    f"image {image_id} has {problem} (got {len(hypotheses)} hypotheses, expected "
                    f"{len(references)}). Decode exactly the images of the references."
                )
