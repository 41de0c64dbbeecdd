"""`Hypothesis`: one caption found by beam search or sampling."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """A caption with its log-probability.

    Attributes:
        token_ids: without BOS and EOS.
        log_prob: summed over the tokens and EOS, in nats, without temperature and penalties.
        score: the ranking criterion, higher is better: log_prob / (tokens + 1) ** length_penalty,
            or the score of consensus re-ranking.
    """

    token_ids: tuple[int, ...]
    log_prob: float
    score: float


def rank_hypotheses(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    """Drop duplicate captions, keeping the last of each, and sort by score, best first."""
    by_tokens = {hypothesis.token_ids: hypothesis for hypothesis in hypotheses}
    return sorted(by_tokens.values(), key=lambda hypothesis: -hypothesis.score)
