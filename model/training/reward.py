"""The reward of self-critical training: a weighted sum of the scores of each caption.

The references of an image are few, and a decoder learns to match just these. Consensus is the
CIDEr-D that a caption is expected to get, estimated from the references of similar images.

CIDEr-D and BLEU count EOS as the last word of every caption, sampled and reference alike. Otherwise
a caption that stops after "with a" would lose nothing. METEOR knows no such word.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...pipeline.text.vocab import EOS, SPECIALS
from ..metrics.bleu import BLEU_NAMES
from ..metrics.caption_scorer import CaptionScorer
from ..metrics.meteor.counts import meteor_of_counts
from ..metrics.meteor.meteor import Meteor
from ..metrics.metric import Floats
from ..retrieval.search import NeighborSearch

# Fewer than --preset consensus uses, because each step rewards 100 captions.
NUM_NEIGHBORS = 100


class Reward:
    """Score sampled captions of training images.

    Args:
        references: image_id → captions as words joined by spaces, for all training images; they
            also give the document frequencies of CIDEr-D.
        weights: name → weight of CIDEr-D or Consensus (0 to 10), METEOR or BLEU (0 to 1).
        features: (M, D) of the M training images in the order of `references`, for Consensus.
    """

    def __init__(
        self,
        references: Mapping[int, Sequence[str]],
        weights: Mapping[str, float],
        features: Tensor | None = None,
    ) -> None:
        self.weights = weights
        self.features, self.search = features, None
        if features is not None:
            self.search = NeighborSearch([*references], features, NUM_NEIGHBORS)
        self.scorer = CaptionScorer({i: [*map(add_end, texts)] for i, texts in references.items()})
        self.meteor = Meteor([*references.values()]) if "METEOR" in weights else None

    def __call__(
        self, image_ids: Sequence[int], captions: Sequence[str], is_cut: Sequence[bool]
    ) -> Floats:
        """Return the reward of each caption, (K,) float64.

        Args:
            image_ids: K ids of training images.
            captions: K captions, as words joined by spaces.
            is_cut: K flags of captions that were cut at the maximum length: they have no EOS.
        """
        ended = [text if cut else add_end(text) for text, cut in zip(captions, is_cut, strict=True)]
        reward = np.zeros(len(captions))
        for name, weight in self.weights.items():
            if name == "CIDEr-D":
                scores = self.scorer.cider_d(image_ids, ended)
            elif name == "Consensus":
                scores = self.expected_cider_d(image_ids, ended)
            elif name == "METEOR":
                assert self.meteor is not None
                counts = self.meteor.count(captions, self.scorer.find_rows(image_ids))
                scores = meteor_of_counts(counts)
            else:
                scores = self.scorer.bleu(image_ids, ended)[:, BLEU_NAMES.index(name)]
            reward += weight * scores
        return reward

    def expected_cider_d(self, image_ids: Sequence[int], captions: Sequence[str]) -> Floats:
        """Return the CIDEr-D of captions that the references of similar images let expect.

        This is what `--consensus` ranks captions by. The references of the image itself are left
        out.

        Args:
            image_ids: K ids of training images.
            captions: K captions, as words joined by spaces.

        Returns:
            (K,) float64.
        """
        assert self.search is not None and self.features is not None
        ids, index = np.unique(image_ids, return_inverse=True)
        own_features = self.features[self.scorer.find_rows(ids.tolist())]
        with torch.autocast("cpu", enabled=False):  # training may run in bfloat16
            rows, weights = self.search.find(own_features, ids)
        places = [np.flatnonzero(index == image) for image in range(len(ids))]
        texts = [[captions[place] for place in own.tolist()] for own in places]
        scores = np.zeros(len(captions))
        # The rows of the search are those of the scorer: both are in the order of the references.
        found = self.scorer.weighted_cider_d(texts, rows, weights)
        for own, own_scores in zip(places, found, strict=True):
            scores[own] = own_scores
        return scores


def add_end(caption: str) -> str:
    """Append EOS to a caption as a word."""
    return f"{caption} {SPECIALS[EOS]}"
