import pytest

from showtell.model.metrics.scorer import score_captions
from showtell.model.training.validation import ValidationScorer

REFERENCES = {
    3: ["a dog runs on grass", "the brown dog is running"],
    1: ["two people play ball", "some men are playing with a ball"],
}
CAPTIONS = ["a puppy is running", "two men play with a ball"]


@pytest.mark.parametrize("monitor", ["CIDEr", "METEOR"])
def test_scores_are_those_of_an_evaluation(monitor):
    scores = ValidationScorer(REFERENCES, monitor).score(CAPTIONS)
    expected = score_captions(REFERENCES, dict(zip(REFERENCES, CAPTIONS, strict=True)))
    assert ("METEOR" in scores) == (monitor == "METEOR")
    assert scores == pytest.approx({name: expected.images.of_all()[name] for name in scores})


def test_one_image_is_monitored_by_bleu(capsys):
    scorer = ValidationScorer({1: REFERENCES[1]}, "CIDEr")
    assert scorer.monitor == "Bleu_4"
    assert "only one val image" in capsys.readouterr().err
