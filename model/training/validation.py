"""Score the captions of the validation images, to find the best epoch."""

from collections.abc import Mapping, Sequence

from ...pipeline.stage.console import print_warning
from ..metrics.caption_scorer import CaptionScorer
from ..metrics.meteor.counts import meteor_of_counts
from ..metrics.meteor.meteor import Meteor


class ValidationScorer:
    """The scores of one caption for each validation image.

    Attributes:
        monitor: the score that selects the best epoch.
    """

    def __init__(self, references: Mapping[int, Sequence[str]], monitor: str) -> None:
        """Read the references.

        Args:
            references: image_id → captions as words joined by spaces.
            monitor: `CIDEr`, `Bleu_4` or `METEOR`, which is computed only then.
        """
        if monitor == "CIDEr" and len(references) == 1:
            monitor = "Bleu_4"
            print_warning(
                "there is only one val image, whose CIDEr is always 0. BLEU-4 picks the best epoch."
            )
        self.monitor = monitor
        self._image_ids = list(references)
        self._scorer = CaptionScorer(references)
        self._meteor = Meteor([*references.values()]) if monitor == "METEOR" else None

    def score(self, captions: Sequence[str]) -> dict[str, float]:
        """Score the captions, which are in the order of the references: name → score."""
        scores = self._scorer.score(dict(zip(self._image_ids, captions, strict=True)))
        if self._meteor is not None:
            counts = self._meteor.count(captions).sum(axis=0, keepdims=True)
            scores["METEOR"] = float(meteor_of_counts(counts)[0])
        return scores
