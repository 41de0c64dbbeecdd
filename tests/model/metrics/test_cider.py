import math

import numpy as np
import pytest

from showtell.model.metrics.caption_scorer import CaptionScorer

REFERENCES = {
    4: ["a dog runs on the grass", "a dog a dog a dog runs"],
    2: ["the cat sleeps"],
    9: ["a man on a horse rides on a beach", "man rides horse", "a rider"],
    6: ["a a a b b"],
}


def test_cider_of_exact_copies_is_ten():
    captions = {1: "a dog runs over grass", 2: "two cats sleep under trees now"}
    scores = CaptionScorer({key: [text] for key, text in captions.items()}).score(captions)
    assert scores["CIDEr"] == pytest.approx(10)


def test_cider_of_one_image_is_zero():
    # Every n-gram is in every image: log(1 / 1) = 0.
    assert CaptionScorer({1: ["a dog runs fast"]}).score({1: "a dog runs fast"})["CIDEr"] == 0


def test_cider_equals_values_computed_by_hand():
    scorer = CaptionScorer({1: ["a b"], 2: ["c d"]})
    # 1-grams: cosine of (1, 0) and (1, 1); no longer n-gram; one bigram shorter than the reference.
    one_word = 10 / 4 * math.sqrt(1 / 2) * math.exp(-1 / (2 * 6**2))
    # Clipped: (2, 0) counts as (1, 0) in the product, not in its norm; the length is the same.
    twice = 10 / 4 * math.sqrt(1 / 2) / 2
    assert scorer.cider_d([1, 1], ["a", "a a"]) == pytest.approx([one_word, twice])


def test_cider_weights_rare_words_more():
    scorer = CaptionScorer({1: ["a dog"], 2: ["a cat"], 3: ["a bird"]})
    common, rare = scorer.cider_d([1, 1], ["a", "dog"])
    assert common == 0 < rare


def test_weighted_cider_d_is_the_weighted_sum_of_cider_d():
    captions = ["a dog runs", "a dog a dog", "", "unheard of words", "a a a a b", "a", "man rides"]
    captions += ["a man rides on a horse on a beach on a day on a", "the cat sleeps"]
    # The short captions stand alone too: then some orders have no n-grams at all.
    lists = [captions, captions[3:], [""], ["dog"], ["a dog"], ["a dog runs"]]
    image_ids = np.array([[9, 4, 6], [6, 9, 9], *[[4, 6, 9]] * 4])
    weights = np.random.default_rng(0).normal(size=image_ids.shape)
    scorer = CaptionScorer(REFERENCES)
    rows = scorer.find_rows(image_ids.ravel().tolist()).reshape(image_ids.shape)
    found = scorer.weighted_cider_d(lists, rows, weights)
    for texts, ids, own_weights, sums in zip(lists, image_ids, weights, found, strict=True):
        each = [scorer.cider_d([i] * len(texts), texts) for i in ids.tolist()]
        np.testing.assert_allclose(sums, own_weights @ each, rtol=1e-12, atol=1e-12)


def test_weighted_cider_d_is_zero_without_images_or_without_rare_words():
    scorer = CaptionScorer(REFERENCES)
    no_neighbors = np.zeros((1, 0), np.int64)
    [found] = scorer.weighted_cider_d([["a dog", "a"]], no_neighbors, np.zeros((1, 0)))
    assert found.tolist() == [0, 0]
    # Words of all images have no weight; the result is 0, not NaN.
    same = CaptionScorer({1: ["a dog"], 2: ["a dog"]})
    [found] = same.weighted_cider_d([["a dog"]], np.array([[0, 1]]), np.ones((1, 2)))
    assert found.tolist() == [0]
