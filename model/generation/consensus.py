"""Consensus re-ranking: prefer captions that resemble the references of similar images.

Beam search ranks safe, general captions first. The references of the most similar training images
(the neighbors) show which candidate agrees best with human captions. The decoder is not changed.

The score of a candidate is its expected CIDEr-D: kernel ridge regression (see
`model/retrieval/search.py`) estimates it from the CIDEr-D of the candidate with the references of
each neighbor. `--consensus-precision` adds the expected n-gram precision, which BLEU rewards.

Letters in shapes: M training images, N images to caption, D feature width, n neighbors.

Source: consensus re-ranking after Devlin et al. 2015, arXiv:1505.04467, and Mao et al. 2015,
arXiv:1504.06692.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.captions import read_references
from ...pipeline.layout import CAPTIONS_PARQUET
from ...pipeline.stage.ragged import Ints
from ...pipeline.text.vocab import Vocab
from ..metrics.caption_scorer import CaptionScorer
from ..metrics.metric import Floats
from ..retrieval.search import NeighborSearch, mean_features, training_images
from .hypothesis import Hypothesis

CONFIDENCE = 0.2  # weight of the mean log-probability per token; decides between similar scores


class Consensus:
    """Ranks captions by their agreement with the references of similar training images.

    Args:
        image_ids: ids of the M training images.
        features: (M, D) pooled features of the training images, any float dtype.
        references: image_id → captions as words joined by spaces, for at least the training
            images. CIDEr-D's document frequencies are computed from them.
        num_neighbors: n, see `NeighborSearch`.
        precision: weight of the expected n-gram precision, which is added to the expected CIDEr-D.
    """

    def __init__(
        self,
        image_ids: Sequence[int],
        features: Tensor,
        references: Mapping[int, Sequence[str]],
        num_neighbors: int,
        precision: float = 0.0,
    ) -> None:
        self.search = NeighborSearch(image_ids, features, num_neighbors)
        self.precision = precision
        self.scorer = CaptionScorer(references)
        self.scorer_rows = self.scorer.find_rows(image_ids)

    @classmethod
    def load(
        cls,
        captions_dir: Path,
        stores: Sequence[FeatureStore],
        num_views: int,
        num_neighbors: int,
        precision: float = 0.0,
    ) -> "Consensus":
        """Return the `Consensus` over the train split of a prepared dataset.

        Args:
            captions_dir: output folder of the prepare stage.
            stores: the features of each decoder; see `mean_features`.
            num_views: see `mean_features`.
            num_neighbors: see `Consensus`.
            precision: see `Consensus`.

        Raises:
            MissingArtifactError: no train image has features.
        """
        image_ids = training_images(captions_dir, stores, "--consensus")
        return cls(
            image_ids.tolist(),
            mean_features(stores, image_ids, num_views),
            read_references(captions_dir / CAPTIONS_PARQUET, "words", image_ids),
            num_neighbors,
            precision,
        )

    def rank(
        self,
        features: Tensor,
        candidates: Sequence[Sequence[Hypothesis]],
        vocab: Vocab,
        image_ids: Ints | None = None,
    ) -> list[list[Hypothesis]]:
        """Sort the candidates of each image by their agreement with its neighbors' references.

        Args:
            features: (N, D) pooled features of the images.
            candidates: captions of each of the N images, at least one each.
            vocab: the vocabulary of the candidates.
            image_ids: (N,) int64. If given, a training image is not used as its own neighbour.

        Returns:
            The same captions, best first. `score` is the expected CIDEr-D (mostly 0 to 10), plus
            `precision` times the expected n-gram precision, plus `CONFIDENCE` times the mean
            log-probability per token.
        """
        rows, weights = self.search.find(features, image_ids)
        rows = self.scorer_rows[rows]
        captions = [[vocab.decode(h.token_ids) for h in of_image] for of_image in candidates]
        scores = self.scorer.weighted_cider_d(captions, rows, weights)
        if self.precision:
            precisions = self.scorer.weighted_precision(captions, rows, weights)
            for own, precision in zip(scores, precisions, strict=True):
                own += self.precision * precision
        return [sort_by(*each) for each in zip(candidates, scores, strict=True)]


def sort_by(hypotheses: Sequence[Hypothesis], scores: Floats) -> list[Hypothesis]:
    """Return the captions of an image with new scores plus their confidence, best first."""
    scored = [
        Hypothesis(
            h.token_ids, h.log_prob, score + CONFIDENCE * h.log_prob / (len(h.token_ids) + 1)
        )
        for h, score in zip(hypotheses, scores.tolist(), strict=True)
    ]
    return sorted(scored, key=lambda hypothesis: -hypothesis.score)
