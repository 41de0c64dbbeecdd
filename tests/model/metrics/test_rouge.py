import pytest

from showtell.model.metrics.caption_scorer import CaptionScorer


def test_rouge_l_equals_values_computed_by_hand():
    scorer = CaptionScorer({1: ["a b c"]})
    precision, recall, beta = 1, 2 / 3, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert scorer.score({1: "a c"})["ROUGE_L"] == pytest.approx(expected)
    assert scorer.score({1: "c b a"})["ROUGE_L"] == pytest.approx(1 / 3)
    assert scorer.score({1: "x y z"})["ROUGE_L"] == 0
