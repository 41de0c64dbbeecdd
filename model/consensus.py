"""Consensus: of the captions that a search found, the one that people would most agree with.

What a beam ranks first is what is safe to say. What people said of training images that look alike
tells which of its captions is worth saying. The decoder itself is left as it is.

Letters in shapes: M training images, N images to caption, D feature width, n neighbours.

Source: consensus re-ranking after Devlin et al. 2015, arXiv:1505.04467, and Mao et al. 2015,
arXiv:1504.06692; here neighbours count by their similarity, and captions agree by CIDEr-D.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.store import FeatureStore
from ..pipeline.captions import read_images, read_references
from ..pipeline.errors import MissingArtifactError
from ..pipeline.vocab import Vocab
from .hypothesis import Hypothesis
from .metrics import CaptionScorer
from .ngrams import Floats, Ints

# Neighbours count by the softmax of their cosine over this. Chosen on Flickr8k's dev images, where
# 0.07 to 0.15 give the same CIDEr within 0.5.
TEMPERATURE = 0.1
MAX_COMPARISONS = 100_000  # of a caption with an image, at once: some hundred megabytes


class Consensus:
    """Training images with their captions, to compare new captions with.

    Args:
        image_ids: M ids.
        features: (M, D) pooled features of the images; any float type.
        references: image_id → captions as words joined by spaces, of at least these images: the
            document frequencies of CIDEr-D are theirs.
        num_neighbors: n, the most similar images that have a say; all where there are fewer.
    """

    def __init__(
        self,
        image_ids: Sequence[int],
        features: Tensor,
        references: Mapping[int, Sequence[str]],
        num_neighbors: int,
    ) -> None:
        self.image_ids = np.array(image_ids, np.int64)
        self.num_neighbors = num_neighbors
        self.mean = F.normalize(features.float(), dim=1).mean(0)
        self.directions = self._directions(features)
        self.scorer = CaptionScorer(references)

    @classmethod
    def load(
        cls, captions_dir: Path, store: FeatureStore, num_views: int, num_neighbors: int
    ) -> "Consensus":
        """Take the train split of a prepared dataset.

        Args:
            captions_dir: of the prepare stage.
            store: features of the dataset's images.
            num_views: an image is the mean of its first so many cached views.
            num_neighbors: as above.

        Raises:
            MissingArtifactError: no train image has features.
        """
        image_ids = read_images(captions_dir / "images.parquet").select("train")
        image_ids = image_ids[store.has(image_ids).numpy()]
        if not len(image_ids):
            raise MissingArtifactError(
                f"{store.directory} has features of no train image, which --consensus compares "
                f"with. Decode without --consensus, or run 'showtell features' again."
            )
        return cls(
            image_ids.tolist(),
            mean_of_views(store, store.rows(image_ids), num_views),
            read_references(captions_dir / "captions.parquet", "words", image_ids),
            num_neighbors,
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
            The same captions, best first; `score` is the mean CIDEr-D, 0 to 10.
        """
        neighbors, weights = self.find(features, image_ids)
        texts = [[vocab.decode(hypothesis.token_ids) for hypothesis in own] for own in found]
        agreements: list[Floats] = []
        step = max(1, MAX_COMPARISONS // max(1, neighbors.shape[1] * max(map(len, texts))))
        for start in range(0, len(texts), step):
            chunk = slice(start, start + step)
            agreements += self._agreements(texts[chunk], neighbors[chunk], weights[chunk])
        ranked = []
        for hypotheses, scores in zip(found, agreements, strict=True):
            scored = [replace(h, score=float(s)) for h, s in zip(hypotheses, scores, strict=True)]
            ranked.append(sorted(scored, key=lambda hypothesis: -hypothesis.score))
        return ranked

    def find(self, features: Tensor, image_ids: Ints | None = None) -> tuple[Ints, Floats]:
        """The neighbours of (N, D) images: (N, n) int64 ids, (N, n) float64 weights that sum to 1.

        An image of the (N,) `image_ids` that is among the training images has no weight for itself.
        """
        cosines = self._directions(features) @ self.directions.T  # (N, M)
        if image_ids is not None:
            own = torch.from_numpy(image_ids[:, None] == self.image_ids)
            cosines = cosines.masked_fill(own.to(cosines.device), -torch.inf)
        similarity, index = cosines.topk(min(self.num_neighbors, len(self.image_ids)), 1)
        weights = (similarity.double() / TEMPERATURE).softmax(1)
        return self.image_ids[index.cpu().numpy()], weights.cpu().numpy()

    def _directions(self, features: Tensor) -> Tensor:
        """(…, D) float32 of length 1, from where the training images have their mean."""
        centered = F.normalize(features.float(), dim=1) - self.mean.to(features.device)
        return F.normalize(centered, dim=1)

    def _agreements(
        self, texts: Sequence[Sequence[str]], neighbors: Ints, weights: Floats
    ) -> list[Floats]:
        """For each image the weighted mean CIDEr-D of its captions, (K,) float64 each."""
        image_ids, captions = list[int](), list[str]()
        for own, ids in zip(texts, neighbors.tolist(), strict=True):
            for text in own:
                image_ids += ids
                captions += [text] * len(ids)
        scores = self.scorer.cider_d(image_ids, captions)
        ends = np.cumsum([len(own) * neighbors.shape[1] for own in texts])
        return [
            part.reshape(len(own), -1) @ weight
            for own, part, weight in zip(texts, np.split(scores, ends[:-1]), weights, strict=True)
        ]


def mean_of_views(store: FeatureStore, rows: Tensor, num_views: int) -> Tensor:
    """What images look like on the whole: (N, D) float32, the mean of their first views."""
    return store.views[rows, :num_views].float().mean(1)
