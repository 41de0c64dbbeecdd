"""Consensus re-ranking: among the captions of a beam, prefer what people say of similar images.

A beam ranks safe captions first. The captions of the most similar training images show which of
them would agree most with human captions. The decoder is not changed.

The score of a caption is its expected CIDEr-D: kernel ridge regression on its CIDEr-D with the
references of each neighbour. With `--consensus-precision`, its expected n-gram precision, which
BLEU rewards, is added. Compared with a plain mean over neighbours, this counts near-duplicate
neighbours once and subtracts what the image does not share with them.

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

# Chosen on the dev images of Flickr8k; docs/results.md compares other values.
WIDTH = 0.8  # of the Gaussian kernel exp((cosine - 1) / WIDTH)
RIDGE = 1.0  # noise variance: five people describe only a part of what could be said
CONFIDENCE = 0.2  # weight of the mean log-probability per token, which decides between equals
MAX_PAIRS = 100_000_000  # precompute the kernel of all training images up to here: 400 MB


class Consensus:
    """Training images and their captions, to compare new captions with.

    Args:
        image_ids: M ids.
        features: (M, D) pooled features of the images, any float dtype.
        references: image_id → captions as words joined by spaces, of at least these images; they
            also give the document frequencies of CIDEr-D.
        num_neighbors: n, the number of similar images to use, or M if that is less. The time grows
            with its cube.
        precision: weight of the expected n-gram precision, added to the expected CIDEr-D.
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
        """Load the train split of a prepared dataset.

        Args:
            captions_dir: output of the prepare stage.
            stores: features of the dataset's images; see `mean_features`.
            num_views: see `mean_features`.
            num_neighbors: as for the class.
            precision: as for the class.

        Raises:
            MissingArtifactError: no train image has features.
        """
        image_ids = read_images(captions_dir / IMAGES_PARQUET).select("train")
        image_ids = image_ids[torch.stack([s.has(image_ids) for s in stores]).all(0).numpy()]
        if not len(image_ids):
            raise MissingArtifactError(
                f"{stores[0].directory} has no features of train images, which --consensus needs. "
                f"Decode without --consensus, or run 'showtell features' again."
            )
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
        found: Sequence[Sequence[Hypothesis]],
        vocab: Vocab,
        image_ids: Ints | None = None,
    ) -> list[list[Hypothesis]]:
        """Sort the captions of each image by how well they agree with its neighbours' captions.

        Args:
            features: (N, D) pooled features of the images.
            found: captions of each of the N images, at least one each.
            vocab: of the captions.
            image_ids: (N,) int64; an image is never its own neighbour.

        Returns:
            The same captions, best first. `score` is the expected CIDEr-D (mostly 0 to 10), plus
            `precision` times the expected n-gram precision, plus a little of the log-probability.
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
        """Find the neighbours of images and their regression weights.

        Args:
            features: (N, D) pooled features.
            image_ids: (N,) int64; an image gets no weight for itself.

        Returns:
            ids: (N, n) int64.
            weights: (N, n) float64, of any sign.
        """
        cosines = self._directions(features) @ self.directions.T  # (N, M)
        if image_ids is not None:
            own = torch.from_numpy(image_ids[:, None] == self.image_ids)
            cosines = cosines.masked_fill(own.to(cosines.device), -torch.inf)
        similarity, index = cosines.topk(min(self.num_neighbors, len(self.image_ids)), 1)
        # One kernel of all training images, if that is less work than one per image.
        use_whole_kernel = len(self.image_ids) ** 2 < min(
            len(index) * index.shape[1] ** 2, MAX_PAIRS
        )
        weights = torch.zeros_like(similarity)
        for neighbors, to_image, weight in zip(index, _kernel(similarity), weights, strict=True):
            is_other = to_image > 0  # the image itself has kernel value 0
            neighbors = neighbors[is_other]
            if use_whole_kernel:
                kernel = self.kernel.index_select(0, neighbors).index_select(1, neighbors)
            else:
                kernel = _kernel(self.directions[neighbors] @ self.directions[neighbors].T)
            kernel.diagonal().add_(RIDGE)
            factor = torch.linalg.cholesky(kernel)
            weight[is_other] = torch.cholesky_solve(to_image[is_other, None], factor)[:, 0]
        return self.image_ids[index.cpu().numpy()], weights.double().cpu().numpy()

    @cached_property
    def kernel(self) -> Tensor:
        """(M, M) float32, the kernel between all training images."""
        return _kernel(self.directions @ self.directions.T)

    def _directions(self, features: Tensor) -> Tensor:
        """Centre (…, D) features on the training images' mean and scale them to length 1."""
        centered = F.normalize(features.float(), dim=1) - self.mean.to(features.device)
        return F.normalize(centered, dim=1)


def _kernel(cosines: Tensor) -> Tensor:
    """Turn cosines into similarities: 1 for equal images, 0 for a cosine of −inf."""
    return ((cosines - 1) / WIDTH).exp()


def mean_features(stores: Sequence[FeatureStore], image_ids: Ints, num_views: int) -> Tensor:
    """Return the mean of the first views of each image: (n, D) float32.

    Different features of an ensemble's members are scaled to length 1 and concatenated, so that
    each counts equally; D is the sum of their widths.
    """
    distinct = {store.sha256: store for store in stores}.values()
    means = [s.views[s.rows(image_ids), :num_views].float().mean(1) for s in distinct]
    return torch.cat([F.normalize(mean, dim=1) for mean in means], 1)
