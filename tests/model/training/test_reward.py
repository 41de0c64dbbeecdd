import numpy as np
import pytest
import torch

from showtell.model.metrics.bleu import BLEU_NAMES
from showtell.model.metrics.caption_scorer import CaptionScorer
from showtell.model.metrics.scorer import score_captions
from showtell.model.retrieval.search import NeighborSearch
from showtell.model.scst_reward import check_reward, parse_reward
from showtell.model.training.reward import Reward, add_end

REFERENCES = {
    7: ["a dog runs on grass", "the brown dog is running"],
    3: ["two people play ball", "some men are playing with a ball"],
    5: ["a red house", "there is a house"],
}
IMAGE_IDS = [3, 7, 7, 5, 3]
CAPTIONS = ["two men play ball", "a puppy runs", "the dog is running on grass", "a red house", "a"]
IS_CUT = [False, False, True, False, False]


def expected_scores(name: str) -> list[float]:
    """The score of each caption, by the scorers that evaluation uses."""
    scores = []
    for image_id, caption, cut in zip(IMAGE_IDS, CAPTIONS, IS_CUT, strict=True):
        if name == "METEOR":
            images = score_captions({7: REFERENCES[image_id]}, {7: caption}).images
            scores.append(images.of_all()[name])
        else:
            ended = {key: [*map(add_end, texts)] for key, texts in REFERENCES.items()}
            text = caption if cut else add_end(caption)
            scored = CaptionScorer(ended).score_each(dict.fromkeys(REFERENCES, text))
            row = list(REFERENCES).index(image_id)
            each = dict(zip(BLEU_NAMES, scored.bleu.of_each().T, strict=True))
            scores.append((each | {"CIDEr-D": scored.cider})[name][row])
    return scores


@pytest.mark.parametrize("name", ["CIDEr-D", "METEOR", "Bleu_1", "Bleu_4"])
def test_reward_is_the_score_of_each_caption(name):
    found = Reward(REFERENCES, {name: 1.0})(IMAGE_IDS, CAPTIONS, IS_CUT)
    np.testing.assert_allclose(found, expected_scores(name), atol=1e-12)
    assert len(set(found.tolist())) > 3 or name == "Bleu_4"


def test_reward_is_the_weighted_sum_of_its_scores():
    weights = parse_reward("CIDEr-D=1, METEOR=5,Bleu_4=0.5")
    assert weights == {"CIDEr-D": 1, "METEOR": 5, "Bleu_4": 0.5}
    expected = sum(weight * np.array(expected_scores(name)) for name, weight in weights.items())
    found = Reward(REFERENCES, weights)(IMAGE_IDS, CAPTIONS, IS_CUT)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_consensus_is_the_score_by_which_captions_are_re_ranked():
    features = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    found = Reward(REFERENCES, {"Consensus": 2.0}, features)(IMAGE_IDS, CAPTIONS, IS_CUT)
    ended = {key: [*map(add_end, texts)] for key, texts in REFERENCES.items()}
    search = NeighborSearch([*REFERENCES], features, 3)
    for row, (image_id, caption, cut) in enumerate(zip(IMAGE_IDS, CAPTIONS, IS_CUT, strict=True)):
        own = [*REFERENCES].index(image_id)
        rows, weights = search.find(features[own : own + 1], np.array([image_id]))
        expected = 0.0
        for neighbor, weight in zip(rows[0], weights[0], strict=True):
            text = caption if cut else add_end(caption)
            (score,) = CaptionScorer(ended).cider_d([[*REFERENCES][neighbor]], [text])
            assert weight == 0 or neighbor != own
            expected += 2 * weight * score
        assert found[row] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "reward", ["", "CIDEr-D", "CIDEr=1", "METEOR=0", "METEOR=-1", "METEOR=inf", "METEOR=x",
               "METEOR=1,METEOR=2", "METEOR=1,", "SPICE=1"]
)  # fmt: skip
def test_invalid_rewards_are_refused(reward):
    assert "The scores are CIDEr-D, Consensus, METEOR, Bleu_1" in str(check_reward(reward))
