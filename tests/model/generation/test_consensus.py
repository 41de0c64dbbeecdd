import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider import Cider

from showtell.features.store import FeatureStore
from showtell.model.generation import consensus as consensus_module
from showtell.model.generation.consensus import CONFIDENCE, RIDGE, WIDTH, Consensus, mean_features
from showtell.model.generation.hypothesis import Hypothesis
from showtell.pipeline.stage.manifest import Manifest
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


def store_of(features: torch.Tensor) -> FeatureStore:
    """A store with the features of images 4 and 8."""
    manifest = Manifest(stage="features", version=1, config={}, inputs={}, outputs={}, counts={})
    return FeatureStore(
        torch.tensor([4, 8]), features.half()[:, None], {}, manifest, Path("features")
    )


def hypotheses(captions: list[str]) -> list[Hypothesis]:
    """Captions, the first slightly more probable than the others."""
    return [
        Hypothesis(tuple(VOCAB.encode(c.split())), -i / 100, -i / 100)
        for i, c in enumerate(captions)
    ]


def texts(found: list[Hypothesis]) -> list[str]:
    return [VOCAB.decode(h.token_ids) for h in found]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def directions_by_loop(angles: list[float]) -> np.ndarray:
    """Centre on the training images' mean and scale to length 1, in float64."""
    known = [unit(np.array(direction(angle)).astype(np.float16)) for angle in ANGLES.values()]
    mean = np.mean([vector.astype(np.float64) for vector in known], axis=0)
    return np.array([unit(unit(np.array(direction(angle))) - mean) for angle in angles])


def test_mean_features_weighs_distinct_features_equally() -> None:
    one = store_of(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
    other = store_of(torch.tensor([[0.0, 0.0, 100.0], [0.0, 100.0, 0.0]]))
    seen = mean_features([one, other, one], np.array([8, 4]), 1)
    assert seen.tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert mean_features([one], np.array([4]), 1).tolist() == [[1, 0]]


def test_neighbors_are_the_most_similar_images() -> None:
    consensus = make(num_neighbors=2)
    ids, weights = consensus.find_neighbors(torch.tensor([direction(1.5), direction(0.1)]))
    assert ids.tolist() == [[3, 7], [7, 3]]
    assert (weights[:, 0] > weights[:, 1]).all()


@pytest.mark.parametrize("num_neighbors", [4, 3])
def test_weights_equal_ridge_regression_in_float64(num_neighbors) -> None:
    angles = [0.7, 2.4, 5.1]
    ids, weights = make(num_neighbors).find_neighbors(
        torch.tensor([direction(angle) for angle in angles])
    )
    known = dict(zip(ANGLES, directions_by_loop([*ANGLES.values()]), strict=True))
    for query, own_ids, own_weights in zip(directions_by_loop(angles), ids, weights, strict=True):
        nearest = sorted(ANGLES, key=lambda image_id: -(query @ known[image_id]))
        assert own_ids.tolist() == nearest[:num_neighbors]
        near = np.array([known[image_id] for image_id in own_ids])
        # By definition: the function of the kernel with the smallest penalised squared error.
        kernel = np.exp((near @ near.T - 1) / WIDTH)
        for targets in np.eye(num_neighbors):
            coefficients = np.linalg.lstsq(
                kernel @ kernel + RIDGE * kernel, kernel @ targets, rcond=None
            )[0]
            expected = np.exp((near @ query - 1) / WIDTH) @ coefficients
            assert own_weights @ targets == pytest.approx(expected, abs=1e-4)


def test_duplicate_images_share_their_weight() -> None:
    """In a mean over neighbours each copy would count again."""
    angles = {1: 0.0, 2: 0.0, 3: 0.0, 4: 1.2}
    references = {image_id: ["a dog runs"] for image_id in angles}
    features = torch.tensor([direction(angle) for angle in angles.values()])
    weights = dict(
        zip(
            *(
                side[0].tolist()
                for side in Consensus([*angles], features, references, 4).find_neighbors(
                    torch.tensor([direction(0.6)])
                )
            ),
            strict=True,
        )
    )
    assert weights[1] == pytest.approx(weights[2]) == pytest.approx(weights[3])
    assert weights[1] < 0.6 * weights[4]


def test_whole_kernel_and_kernel_per_image_agree(monkeypatch) -> None:
    features = torch.tensor([direction(angle) for angle in range(7)])
    apart = make(3).find_neighbors(features[:1])[1], make(3).find_neighbors(features[1:2])[1]
    together = make(3).find_neighbors(features)[1]
    np.testing.assert_allclose(np.concatenate(apart), together[:2], rtol=1e-4)
    monkeypatch.setattr(consensus_module, "MAX_PAIRS", 0)
    np.testing.assert_allclose(make(3).find_neighbors(features)[1], together, rtol=1e-4, atol=1e-6)


def test_scale_of_features_does_not_matter() -> None:
    consensus, features = make(), torch.tensor([direction(2.0), direction(5.0)])
    for ones, others in zip(
        consensus.find_neighbors(features), consensus.find_neighbors(9 * features), strict=True
    ):
        np.testing.assert_allclose(ones, others, rtol=1e-4)


def test_no_image_is_its_own_neighbor() -> None:
    consensus, features = make(), torch.tensor([direction(ANGLES[3]), direction(0.0)])
    ids, weights = consensus.find_neighbors(features, np.array([3, 1234]))
    assert dict(zip(ids[0], weights[0], strict=True))[3] == 0
    assert ids[1, 0] == 7 and weights[1].argmax() == 0


@pytest.mark.parametrize("precision", [0.0, 2.0])
def test_score_equals_pycocoevalcaps_cider_plus_confidence(
    precision: float,
) -> None:
    consensus, features = make(3, precision), torch.tensor([direction(0.4), direction(4.0)])
    ids, weights = consensus.find_neighbors(features)
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


def test_num_neighbors_is_limited_to_the_training_images() -> None:
    assert make(num_neighbors=50).find_neighbors(torch.tensor([direction(0)]))[0].shape == (1, 4)


def test_only_training_image_has_no_neighbors() -> None:
    consensus = Consensus([7], torch.tensor([direction(0)]), {7: ["a dog runs"]}, 5)
    [ranked] = consensus.rank(
        torch.tensor([direction(0)]), [hypotheses(CAPTIONS)], VOCAB, np.array([7])
    )
    assert texts(ranked) == CAPTIONS  # only the decoder's own order is left
    assert ranked[0].score == 0
