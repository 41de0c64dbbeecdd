"""Consensus: of the captions that a search found, the one that people would most agree with.

What a beam ranks first is what is safe to say. What people said of training images that look alike
tells which of its captions is worth saying. The decoder itself is left as it is.

A caption's score is the CIDEr-D that it is expected to have, by kernel ridge regression on what it
has with the references of each similar image; on request with the precision of its n-grams, which
BLEU asks for more than CIDEr-D. Against a plain mean over neighbours, images that tell the same are
counted once, and what the image does not have in common with them is taken off.

Letters in shapes: M training images, N images to caption, D feature width, n neighbours.

Source: consensus re-ranking after Devlin et al. 2015, arXiv:1505.04467, and Mao et al. 2015,
arXiv:1504.06692; kernel ridge regression as in Murphy 2012, Machine Learning, section 14.4.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.captions import read_images, read_references
from ...pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET
from ...pipeline.stage.errors import MissingArtifactError
from ...pipeline.stage.ragged import Ints
from ...pipeline.text.vocab import Vocab
from ..metrics.caption_scorer import CaptionScorer
from ..metrics.metric import Floats
from .hypothesis import Hypothesis

# Chosen on Flickr8k's dev images: docs/results.md has what other values give.
WIDTH = 0.8  # of the Gaussian kernel exp((cosine - 1) / WIDTH)
RIDGE = 1.0  # the noise of what a few people happen to say of one image
CONFIDENCE = 0.2  # weight of the mean log-probability of a token: between captions as good
MAX_PAIRS = 100_000_000  # of all training images, to have their cosines at hand: 400 MB


class Consensus:
    """Training images with their captions, to compare new captions with.

    Args:
        image_ids: M ids.
        features: (M, D) pooled features of the images; any float type.
        references: image_id → captions as words joined by spaces, of at least these images: the
            document frequencies of CIDEr-D are theirs.
        num_neighbors: n, the most similar images that have a say; all where there are fewer. Time
            grows with its cube.
        precision: weight of the expected precision of n-grams, BLEU's, beside that of CIDEr-D.
    """

    def __init__(
        self,
        image_ids: Sequence[int],
        features: Tensor,
        references: Mapping[int, Sequence[str]],
        num_neighbors: int,
        precision: float = 0.0,
    ) -> None:
        self.image_ids = np.array(image_ids, np.int64)
        self.num_neighbors, self.precision = num_neighbors, precision
        self.mean = F.normalize(features.float(), dim=1).mean(0)
        self.directions = self._directions(features)
        self.scorer = CaptionScorer(references)

    @classmethod
    def load(
        cls,
        captions_dir: Path,
        stores: Sequence[FeatureStore],
        num_views: int,
        num_neighbors: int,
        precision: float = 0.0,
    ) -> "Consensus":
        """Take the train split of a prepared dataset.

        Args:
            captions_dir: of the prepare stage.
            stores: features of the dataset's images; see `appearance`.
            num_views: likewise.
            num_neighbors: as above.
            precision: as above.

        Raises:
            MissingArtifactError: no train image has features.
        """
        image_ids = read_images(captions_dir / IMAGES_PARQUET).select("train")
        image_ids = image_ids[torch.stack([s.has(image_ids) for s in stores]).all(0).numpy()]
        if not len(image_ids):
            raise MissingArtifactError(
                f"{stores[0].directory} has features of no train image, which --consensus compares "
                f"with. Decode without --consensus, or run 'showtell features' again."
            )
        return cls(
            image_ids.tolist(),
            appearance(stores, image_ids, num_views),
            read_references(captions_dir / CAPTIONS_PARQUET, "words", image_ids),
            num_neighbors,
            precision,
        )

    def rank(
        self,
        features: Tensor,
        found: Sequence[Sequence[Hypothesis]],
        vocab: Vocab,
        image_ids: Ints | None = None,
    ) -> list[list[Hypothesis]]:
        """Order the captions of each image by how much its neighbours' captions agree with them.

        Args:
            features: (N, D) pooled features of the images.
            found: their captions, N times at least one.
            vocab: of the captions.
            image_ids: (N,) int64 of the images; no image is its own neighbour.

        Returns:
            The same captions, best first; `score` is the CIDEr-D to expect, mostly 0 to 10, a
            little of how sure the decoder was, and `precision` times the precision to expect.
        """
        neighbors, weights = self.find(features, image_ids)
        ranked = []
        for hypotheses, ids, own_weights in zip(found, neighbors.tolist(), weights, strict=True):
            captions = [vocab.decode(hypothesis.token_ids) for hypothesis in hypotheses]
            scores = self.scorer.weighted_cider_d(captions, ids, own_weights)
            if self.precision:
                precisions = self.scorer.weighted_precision(captions, ids, own_weights)
                scores += self.precision * precisions
            scored = [
                replace(h, score=score + CONFIDENCE * h.log_prob / (len(h.token_ids) + 1))
                for h, score in zip(hypotheses, scores.tolist(), strict=True)
            ]
            ranked.append(sorted(scored, key=lambda hypothesis: -hypothesis.score))
        return ranked

    def find(self, features: Tensor, image_ids: Ints | None = None) -> tuple[Ints, Floats]:
        """The neighbours of (N, D) images: (N, n) int64 ids, (N, n) float64 weights of any sign.

        An image of the (N,) `image_ids` that is among the training images has no weight for itself.
        """
        cosines = self._directions(features) @ self.directions.T  # (N, M)
        if image_ids is not None:
            own = torch.from_numpy(image_ids[:, None] == self.image_ids)
            cosines = cosines.masked_fill(own.to(cosines.device), -torch.inf)
        similarity, index = cosines.topk(min(self.num_neighbors, len(self.image_ids)), 1)
        # The kernel among all training images, where that is less work than among the neighbours of
        # each image anew.
        whole = len(self.image_ids) ** 2 < min(len(index) * index.shape[1] ** 2, MAX_PAIRS)
        weights = torch.zeros_like(similarity)
        for near, towards, weight in zip(index, _kernel(similarity), weights, strict=True):
            heard = towards > 0  # all but the image itself
            near = near[heard]
            if whole:
                among = self.kernel.index_select(0, near).index_select(1, near)
            else:
                among = _kernel(self.directions[near] @ self.directions[near].T)
            among.diagonal().add_(RIDGE)
            factor = torch.linalg.cholesky(among)
            weight[heard] = torch.cholesky_solve(towards[heard, None], factor)[:, 0]
        return self.image_ids[index.cpu().numpy()], weights.double().cpu().numpy()

    @cached_property
    def kernel(self) -> Tensor:
        """Of all training images with each other, (M, M) float32."""
        return _kernel(self.directions @ self.directions.T)

    def _directions(self, features: Tensor) -> Tensor:
        """(…, D) float32 of length 1, from where the training images have their mean."""
        centered = F.normalize(features.float(), dim=1) - self.mean.to(features.device)
        return F.normalize(centered, dim=1)


def _kernel(cosines: Tensor) -> Tensor:
    """How much images of these cosines have to say of each other: 1 for the same, 0 for -inf."""
    return ((cosines - 1) / WIDTH).exp()


def appearance(stores: Sequence[FeatureStore], image_ids: Ints, num_views: int) -> Tensor:
    """What images look like on the whole: (n, D) float32, the mean of their first views.

    Of several different features, those of an ensemble's members, each counts alike: D is then the
    sum of their widths.
    """
    different = {store.sha256: store for store in stores}.values()
    seen = [s.views[s.rows(image_ids), :num_views].float().mean(1) for s in different]
    return torch.cat([F.normalize(vectors, dim=1) for vectors in seen], 1)
