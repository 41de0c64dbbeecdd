import functools
import random

import numpy as np
import pytest

from showtell.model.metrics.meteor import meteor_of_counts, read_meteor_counts
from showtell.model.metrics.official import Meteor

WORDS = ("the", "a", "dog", "dogs", "runs", "running", "fast", "on", "of", "grass", "lawn", ",")


def draw_captions(rng: random.Random) -> tuple[list[list[str]], list[str]]:
    """References and hypotheses of 60 images."""
    draw = lambda: " ".join(rng.choices(WORDS, k=rng.randint(0, 12)))  # noqa: E731
    references = [[draw() for _ in range(rng.randint(1, 5))] for _ in range(60)]
    hypotheses = [draw() for _ in references]
    hypotheses[:9] = [texts[0] for texts in references[:9]]  # matched whole
    return references, hypotheses


@functools.cache
def ask_jar():
    """Captions' lines of counts, and how to have the jar score any choice of them."""
    rng = random.Random(0)
    references, hypotheses = draw_captions(rng)
    rows = [np.arange(60), np.arange(12), *(np.array(rng.choices(range(60), k=60)) for _ in "abc")]
    with Meteor() as meteor:
        _, each, lines = meteor.score(references, hypotheses)
        chosen = [meteor.sum_up([lines[i] for i in drawn])[0] for drawn in rows]
    return each, lines, rows, chosen


def test_score_of_each_caption_equals_the_jars():
    each, lines, _, _ = ask_jar()
    assert len(set(each)) > 30 and max(each) == 1 and min(each) == 0
    found = meteor_of_counts(read_meteor_counts(lines))
    np.testing.assert_allclose(found, each, rtol=0, atol=1e-12)


def test_score_of_any_choice_of_captions_equals_the_jars():
    each, lines, rows, expected = ask_jar()
    counts = read_meteor_counts(lines)
    found = meteor_of_counts(np.stack([counts[drawn].sum(axis=0) for drawn in rows]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert expected[0] != pytest.approx(np.mean(each), abs=1e-3)  # it is no mean


def test_captions_without_a_match_score_zero():
    assert meteor_of_counts(np.zeros((2, 23))).tolist() == [0, 0]
