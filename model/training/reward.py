"""The reward of self-critical training: a weighted sum of the scores of each caption.

CIDEr-D and BLEU count EOS as the last word of every caption, sampled and reference alike. Otherwise
a caption that stops after "with a" would lose nothing. METEOR knows no such word.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ...pipeline.text.vocab import EOS, SPECIALS
from ..metrics.bleu import BLEU_NAMES
from ..metrics.caption_scorer import CaptionScorer
from ..metrics.meteor.counts import meteor_of_counts
from ..metrics.meteor.meteor import Meteor
from ..metrics.metric import Floats


class Reward:
    """Score sampled captions of training images.

    Args:
        references: image_id → captions as words joined by spaces, for all training images; they
            also give the document frequencies of CIDEr-D.
        weights: name → weight of CIDEr-D (0 to 10), METEOR or BLEU (0 to 1).
    """

    def __init__(
        self, references: Mapping[int, Sequence[str]], weights: Mapping[str, float]
    ) -> None:
        self.weights = weights
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
            elif name == "METEOR":
                assert self.meteor is not None
                counts = self.meteor.count(captions, self.scorer.find_rows(image_ids))
                scores = meteor_of_counts(counts)
            else:
                scores = self.scorer.bleu(image_ids, ended)[:, BLEU_NAMES.index(name)]
            reward += weight * scores
        return reward


def add_end(caption: str) -> str:
    """Append EOS to a caption as a word."""
    return f"{caption} {SPECIALS[EOS]}"
