import math

import numpy as np
import pytest
import torch
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider import Cider

from showtell.model.generation.consensus import CONFIDENCE, Consensus
from showtell.model.generation.hypothesis import Hypothesis
from showtell.pipeline.text.vocab import SPECIALS, Vocab

WORDS = ["a", "dog", "cat", "runs", "sleeps", "on", "grass", "the", "sofa"]
VOCAB = Vocab((*SPECIALS, *WORDS))
REFERENCES = {
    7: ["a dog runs on grass", "the dog runs"],
    3: ["a cat sleeps on the sofa", "the cat sleeps on a sofa"],
    9: ["a dog sleeps on grass"],
    5: ["the cat runs", "a cat runs on the grass", "a cat runs"],
}
# Directions on a circle: their angles are easy to read.
ANGLES = {7: 0.0, 3: 1.6, 9: 3.0, 5: 4.7}
CAPTIONS = ["a dog runs on grass", "a cat sleeps on the sofa", "the cat runs", "a dog sleeps"]


def direction(angle: float) -> list[float]:
    return [math.cos(angle), math.sin(angle), 2.0]


def make(num_neighbors: int = 4, precision: float = 0.0) -> Consensus:
    features = torch.tensor([direction(ANGLES[image_id]) for image_id in REFERENCES])
    return Consensus([*REFERENCES], features.half(), REFERENCES, num_neighbors, precision)


def hypotheses(captions: list[str]) -> list[Hypothesis]:
    """Captions, the first slightly more probable than the others."""
    return [
        Hypothesis(tuple(VOCAB.encode(c.split())), -i / 100, -i / 100)
        for i, c in enumerate(captions)
    ]


def texts(found: list[Hypothesis]) -> list[str]:
    return [VOCAB.decode(h.token_ids) for h in found]


@pytest.mark.parametrize("precision", [0.0, 2.0])
def test_score_equals_pycocoevalcaps_cider_plus_confidence(
    precision: float,
) -> None:
    consensus, features = make(3, precision), torch.tensor([direction(0.4), direction(4.0)])
    rows, weights = consensus.search.find(features)
    ids = consensus.search.image_ids[rows]
    ranked = consensus.rank(features, [hypotheses(CAPTIONS), hypotheses(CAPTIONS[1:])], VOCAB)
    assert [len(found) for found in ranked] == [4, 3]

    def cider_with(caption: str, image_id: int) -> float:
        res = {i: [caption if i == image_id else ""] for i in REFERENCES}
        each = Cider().compute_score(REFERENCES, res)[1]
        return float(each[[*REFERENCES].index(image_id)])

    def precision_with(caption: str, image_id: int) -> float:
        counts = cook_test(caption, cook_refs(REFERENCES[image_id]))
        pairs = zip(counts["correct"], counts["guess"], strict=True)
        return float(np.mean([correct / max(1, guess) for correct, guess in pairs]))

    for row, found in enumerate(ranked):
        for hypothesis, caption in zip(found, texts(found), strict=True):
            expected = sum(
                weight * (cider_with(caption, i) + precision * precision_with(caption, i))
                for i, weight in zip(ids[row].tolist(), weights[row], strict=True)
            )
            expected += CONFIDENCE * hypothesis.log_prob / (len(caption.split()) + 1)
            assert hypothesis.score == pytest.approx(expected, rel=1e-9)


def test_rank_moves_the_caption_neighbors_agree_with_to_the_front() -> None:
    features = torch.tensor([direction(ANGLES[7]), direction(ANGLES[3]), direction(ANGLES[5])])
    ranked = make(2).rank(features, [hypotheses(CAPTIONS)] * 3, VOCAB)
    assert [texts(found)[0] for found in ranked] == CAPTIONS[:3]
    for found in ranked:
        scores = [hypothesis.score for hypothesis in found]
        assert scores == sorted(scores, reverse=True)
        assert {(h.token_ids, h.log_prob) for h in found} == {
            (h.token_ids, h.log_prob) for h in hypotheses(CAPTIONS)
        }


def test_only_training_image_has_no_neighbors() -> None:
    consensus = Consensus([7], torch.tensor([direction(0)]), {7: ["a dog runs"]}, 5)
    [ranked] = consensus.rank(
        torch.tensor([direction(0)]), [hypotheses(CAPTIONS)], VOCAB, np.array([7])
    )
    assert texts(ranked) == CAPTIONS  # only the decoder's own order is left
    assert ranked[0].score == 0
