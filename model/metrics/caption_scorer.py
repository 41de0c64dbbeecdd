"""Score captions by BLEU, ROUGE_L and CIDEr-D in NumPy, without Java: fast enough for training.

The formulas stand in `bleu.py`, `rouge.py` and `cider.py`. The scores equal pycocoevalcap's, the
reference implementation, including its quirks; `official.py` runs the original.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ...pipeline.stage.errors import DatasetError, MismatchError
from ...pipeline.stage.ragged import Ints, to_offsets
from .bleu import BLEU_NAMES, BleuCounts, count_matches, weighted_precisions
from .cider import CiderD
from .metric import Floats
from .ngrams import ReferenceNgrams, Words
from .rouge import RougeL


@dataclass(frozen=True)
class CaptionScores:
    """The scores of each of N captions.

    Attributes:
        image_ids: (N,) int64.
        bleu: BLEU's counts of each caption.
        rouge_l: (N,) float64, 0 to 1.
        cider: (N,) float64, 0 to 10.
    """

    image_ids: Ints
    bleu: BleuCounts
    rouge_l: Floats
    cider: Floats

    def means(self) -> dict[str, float]:
        """Return the scores of all captions together, by pycocoevalcap's names, as fractions."""
        scores = dict(zip(BLEU_NAMES, self.bleu.of_corpus().tolist(), strict=True))
        return scores | {"ROUGE_L": float(self.rouge_l.mean()), "CIDEr": float(self.cider.mean())}


class CaptionScorer:
    """Score captions against references whose statistics are computed once.

    Example:
        scorer = CaptionScorer({7: ["a dog runs", "the dog is running"]})
        scorer.score({7: "a dog is running"})["Bleu_1"]
    """

    def __init__(self, references: Mapping[int, Sequence[str]]) -> None:
        """Compute the statistics of the references.

        Args:
            references: image_id → at least one caption, as words joined by single spaces.
                CIDEr's document frequencies are those of exactly these images.

        Raises:
            DatasetError: there is no image, or one without a reference.
        """
        require_references(references)
        captions = list(chain.from_iterable(references.values()))
        offsets = to_offsets(np.array([len(captions) for captions in references.values()]))
        self.rows = {image_id: row for row, image_id in enumerate(references)}
        self.ngrams = ReferenceNgrams(captions, offsets)
        self.cider = CiderD(self.ngrams)
        self.rouge = RougeL(captions)

    def score(self, hypotheses: Mapping[int, str]) -> dict[str, float]:
        """Score one caption for each image of the references.

        Args:
            hypotheses: image_id → words joined by single spaces, for exactly the references' ids.

        Returns:
            `Bleu_1` … `Bleu_4`, `ROUGE_L`, `CIDEr` as fractions, equal to pycocoevalcap's.

        Raises:
            MismatchError: an image has no caption, or a caption has no references.
        """
        return self.score_each(hypotheses).means()

    def score_each(self, hypotheses: Mapping[int, str]) -> CaptionScores:
        """Score as `score` does, keeping the captions apart, in the references' order."""
        require_same_images(self.rows, hypotheses)
        captions = [hypotheses[image_id] for image_id in self.rows]
        matches = self.ngrams.match(captions, np.arange(len(captions)))
        return CaptionScores(
            image_ids=np.array(list(self.rows)),
            bleu=count_matches(self.ngrams, matches),
            rouge_l=self.rouge.score(captions, matches.pairs),
            cider=self.cider.score(matches),
        )

    def cider_d(self, image_ids: Sequence[int], captions: Sequence[str]) -> Floats:
        """Return CIDEr-D of any captions, e.g. several samples for each image of a batch.

        Args:
            image_ids: K ids of images that have references; an id may occur several times.
            captions: K captions, words joined by single spaces.

        Returns:
            (K,) float64, 0 to 10.

        Raises:
            MismatchError: an id has no references.
        """
        return self.cider.score(self.ngrams.match(captions, self.find_rows(image_ids)))

    def bleu(self, image_ids: Sequence[int], captions: Sequence[str]) -> Floats:
        """Return BLEU-1 to 4 of any captions: (K, 4) float64, 0 to 1; see `cider_d`."""
        matches = self.ngrams.match(captions, self.find_rows(image_ids))
        return count_matches(self.ngrams, matches).of_each()

    def weighted_cider_d(
        self, captions: Sequence[Sequence[str]], rows: Ints, weights: Floats
    ) -> list[Floats]:
        """Return the weighted sum of each caption's CIDEr-D with several images.

        Equal to `weights @ cider_d(…)` for each list of captions, and much faster.

        Args:
            captions: N lists of captions, words joined by single spaces.
            rows: (N, n) int64, the images of each list; see `find_rows`.
            weights: (N, n) float64 of the images, of any sign.

        Returns:
            (K,) float64 for each list of K captions.
        """
        words, offsets = self._read(captions)
        return self.cider.weighted_sums(words, offsets, rows, weights)

    def weighted_precision(
        self, captions: Sequence[Sequence[str]], rows: Ints, weights: Floats
    ) -> list[Floats]:
        """Return the weighted sum of each caption's n-gram precision with several images.

        The precision is BLEU's, averaged over orders; see `weighted_cider_d` for the arguments.
        """
        words, offsets = self._read(captions)
        return weighted_precisions(self.ngrams, words, offsets, rows, weights)

    def _read(self, captions: Sequence[Sequence[str]]) -> tuple[Words, Ints]:
        """Return the word ids of all captions, and the offsets of the lists."""
        offsets = to_offsets([len(each) for each in captions])
        return self.ngrams.read(list(chain.from_iterable(captions))), offsets

    def find_rows(self, image_ids: Sequence[int]) -> Ints:
        """Return the row of each image, (K,) int64."""
        for image_id in image_ids:
            if image_id not in self.rows:
                raise MismatchError(
                    f"Image {image_id} has a caption to score but is not among the "
                    f"{len(self.rows)} images that have references."
                )
        return np.array([self.rows[image_id] for image_id in image_ids], np.int64)


def require_references(references: Mapping[int, Sequence[str]]) -> None:
    """Check that every image has a reference.

    Raises:
        DatasetError: there is no image, or one without a reference.
    """
    if not references:
        raise DatasetError("There are no references to score against; expected at least one image.")
    for image_id, captions in references.items():
        if not captions:
            raise DatasetError(f"Image {image_id} has no references; expected at least one.")


def require_same_images(references: Collection[int], hypotheses: Collection[int]) -> None:
    """Check that there is exactly one caption for each image of the references.

    Raises:
        MismatchError: an image has no caption, or a caption has no references.
    """
    for present, absent, problem in (
        (references, hypotheses, "has references but no caption to score"),
        (hypotheses, references, "has a caption to score but no references"),
    ):
        for image_id in present:
            if image_id not in absent:
                raise MismatchError(
                    f"Image {image_id} {problem} ({len(hypotheses)} captions, {len(references)} "
                    "images with references). Caption exactly the images that have references."
                )
