"""Estimate which words people would use of an image, from the captions of its neighbors.

The estimate for a word is the share of an image's captions that contain it, as kernel ridge
regression predicts it from the shares of the neighbors, times the word's inverse document
frequency. Only the words with the highest estimates are kept.

Letters in shapes: M training images, N images, n neighbors, S words, V vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.captions import read_captions
from ...pipeline.layout import CAPTIONS_PARQUET
from ...pipeline.stage.ragged import Int32Array, Ints
from ...pipeline.text.vocab import SPECIALS, Vocab
from ..decoders.inputs import Words
from ..metrics.metric import Floats
from .search import NeighborSearch, mean_features, training_images

NUM_WORDS = 64  # S
IMAGES_TOGETHER = 64


class WordRetriever:
    """Retrieves the words of any image's neighbors.

    Args:
        search: over the M training images.
        captions: for each training image its captions as token ids, at least one each.
        vocab_size: V.
        num_words: S, words to keep.

    Attributes:
        shares: (V, M) sparse float32, the share of each training image's captions that contain
            the token.
        idf: (V,) float32, natural logarithm; 0 for special tokens.
    """

    def __init__(
        self,
        search: NeighborSearch,
        captions: Iterable[Sequence[Iterable[int]]],
        vocab_size: int,
        num_words: int = NUM_WORDS,
    ) -> None:
        self.search = search
        self.num_words = min(num_words, vocab_size)
        num_images = len(search.image_ids)
        self.shares = _shares(captions, vocab_size, num_images)
        frequencies = torch.bincount(self.shares.indices()[0], minlength=vocab_size)
        self.idf = (num_images / frequencies.clamp(min=1)).log()
        self.idf[: len(SPECIALS)] = 0

    @classmethod
    def load(
        cls,
        captions_dir: Path,
        store: FeatureStore,
        num_neighbors: int,
        vocab: Vocab,
        device: torch.device | None = None,
    ) -> "WordRetriever":
        """Return the retriever over the train split of a prepared dataset.

        Training images are represented by the mean of all their cached views.

        Args:
            captions_dir: output folder of the prepare stage.
            store: features of the dataset's images.
            num_neighbors: n.
            vocab: of the dataset.
            device: where to search; default the CPU.

        Raises:
            MissingArtifactError: no train image has features.
        """
        image_ids = training_images(captions_dir, [store], "--neighbours")
        features = mean_features([store], image_ids, store.num_views).to(device)
        search = NeighborSearch(image_ids.tolist(), features, num_neighbors)
        encoded = read_captions(captions_dir / CAPTIONS_PARQUET).select(image_ids)
        rows = dict(zip(image_ids.tolist(), range(len(image_ids)), strict=True))
        captions: list[list[Int32Array]] = [[] for _ in rows]
        for image_id, tokens in zip(encoded.image_ids.tolist(), encoded, strict=True):
            captions[rows[image_id]].append(tokens)
        return cls(search, captions, len(vocab))

    def retrieve(self, features: Tensor, image_ids: Ints | None = None) -> Words:
        """Return the words of images, highest estimate first.

        Args:
            features: (N, D) pooled features of the first view.
            image_ids: (N,) int64. If given, a training image is not its own neighbor.
        """
        found = []
        for start in range(0, len(features), IMAGES_TOGETHER):
            part = slice(start, start + IMAGES_TOGETHER)
            ids = None if image_ids is None else image_ids[part]
            found.append(self._estimate(*self.search.find(features[part], ids)))
        return Words(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _estimate(self, neighbors: Ints, weights: Floats) -> Words:
        """Return the words of images with these neighbors, (N, n) rows and weights."""
        num_images = len(neighbors)
        of_all = torch.zeros(self.shares.shape[1], num_images)
        columns = np.repeat(np.arange(num_images), neighbors.shape[1])
        of_all[neighbors.ravel(), columns] = torch.from_numpy(weights.ravel()).float()
        estimates = (self.shares @ of_all) * self.idf[:, None]  # (V, N)
        best = estimates.T.clamp(min=0).topk(self.num_words, 1)
        return Words(best.indices.int(), best.values.half())


def _shares(
    captions: Iterable[Sequence[Iterable[int]]], vocab_size: int, num_images: int
) -> Tensor:
    """Return the share of each image's captions that contain each token: (V, M) sparse."""
    tokens, images, shares = list[int](), list[int](), list[float]()
    for image, of_image in enumerate(captions):
        counts = Counter(chain.from_iterable(map(set, map(list, of_image))))
        tokens += counts.keys()
        images += [image] * len(counts)
        shares += [count / len(of_image) for count in counts.values()]
    index = torch.tensor([tokens, images])
    size = (vocab_size, num_images)
    return torch.sparse_coo_tensor(
        index, torch.tensor(shares), size, check_invariants=False
    ).coalesce()
