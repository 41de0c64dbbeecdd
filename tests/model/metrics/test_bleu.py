import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

from showtell.model.metrics.caption_scorer import CaptionScorer

REFERENCES = {
    4: ["a dog runs on the grass", "a dog a dog a dog runs"],
    2: ["the cat sleeps"],
    9: ["a man on a horse rides on a beach", "man rides horse", "a rider"],
    6: ["a a a b b"],
}


def test_bleu_clips_counts_to_the_reference_with_most():
    # Papineni et al. 2002, example 2: 2 of 7 words count, not 7 of 7.
    references = {1: ["the cat is on the mat", "there is a cat on the mat"]}
    scores = CaptionScorer(references).score({1: "the the the the the the the"})
    assert scores["Bleu_1"] == pytest.approx(2 / 7)
    assert scores["Bleu_2"] == pytest.approx(0, abs=1e-6)


def test_bleu_is_the_geometric_mean_of_precisions():
    # n-grams of the hypothesis found: 4 of 5, 2 of 4, 1 of 3; both captions have 5 words.
    scores = CaptionScorer({1: ["a b c x e"]}).score({1: "a b c d e"})
    precisions = [4 / 5, 2 / 4, 1 / 3]
    for order in (1, 2, 3):
        mean = math.prod(precisions[:order]) ** (1 / order)
        assert scores[f"Bleu_{order}"] == pytest.approx(mean)


def test_bleu_sums_counts_over_images_before_dividing():
    scorer = CaptionScorer({1: ["a b"], 2: ["c d e f g h"]})
    hypotheses = {1: "a b", 2: "x x x x x x"}
    assert scorer.score(hypotheses)["Bleu_1"] == pytest.approx(2 / 8)
    bleu_1_each = scorer.score_each(hypotheses).bleu.of_each()[:, 0]
    np.testing.assert_allclose(bleu_1_each, [1, 0], atol=1e-6)


def test_bleu_penalizes_short_captions():
    assert CaptionScorer({1: ["a b c d"]}).score({1: "a b c"})["Bleu_1"] == pytest.approx(
        math.exp(1 - 4 / 3)
    )


def test_bleu_uses_the_closest_reference_length_and_the_shorter_of_two():
    scorer = CaptionScorer({1: ["a b c d e f", "a b", "a b c d"]})
    counts = scorer.score_each({1: "a b c"}).bleu
    assert counts.reference_lengths.tolist() == [2]
    assert counts.lengths.tolist() == [3]
    assert counts.totals.tolist() == [[3, 2, 1, 0]]
    assert counts.matches.tolist() == [[3, 2, 1, 0]]


def test_weighted_precision_is_the_weighted_sum_of_pycocoevalcaps_precisions():
    captions = ["a dog a dog on a dog", "a a a a b", "man rides on", "unheard of words", "a", ""]
    image_ids, weights = [9, 4, 6], np.array([0.3, -1.2, 2.0])

    def precision(caption, image_id):
        counts = cook_test(caption, cook_refs(REFERENCES[image_id]))
        pairs = zip(counts["correct"], counts["guess"], strict=True)
        return np.mean([correct / max(1, guess) for correct, guess in pairs])

    scorer = CaptionScorer(REFERENCES)
    expected = [weights @ [precision(c, i) for i in image_ids] for c in captions]
    # Each caption stands alone too: then some orders have no n-grams at all.
    lists = [captions, *([caption] for caption in captions)]
    rows = np.tile(scorer.find_rows(image_ids), (len(lists), 1))
    found = scorer.weighted_precision(lists, rows, np.tile(weights, (len(lists), 1)))
    np.testing.assert_allclose(found[0], expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.concatenate(found[1:]), expected, rtol=1e-12, atol=1e-12)
    [found] = scorer.weighted_precision([captions], rows[:1, :0], np.zeros((1, 0)))
    assert found.tolist() == [0] * len(captions)
