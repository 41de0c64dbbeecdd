"""What every way of decoding gives: captions with their log-probabilities, best first."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """One caption that was found.

    Attributes:
        token_ids: without BOS and EOS.
        log_prob: summed over the words and EOS, in nats, as the model gave them: neither a
            temperature nor a penalty has changed it.
        score: what hypotheses are ranked by: log_prob / (words + 1) ** length_penalty.
    """

    token_ids: tuple[int, ...]
    log_prob: float
    score: float


def rank_hypotheses(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    """The different ones among them, best first; of those of the same words the last."""
    by_words = {hypothesis.token_ids: hypothesis for hypothesis in hypotheses}
    return sorted(by_words.values(), key=lambda hypothesis: -hypothesis.score)
