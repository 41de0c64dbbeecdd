import functools
import random
import shutil

import numpy as np
import pytest

from showtell.model.metrics.meteor import (
    METEOR_DIR,
    Meteor,
    meteor_of_counts,
    read_meteor_counts,
)
from showtell.pipeline.stage.errors import ScorerError

WORDS = ("the", "a", "dog", "dogs", "runs", "running", "fast", "on", "of", "grass", "lawn", ",")


def draw_captions(rng: random.Random) -> tuple[list[list[str]], list[str]]:
    """Draw references and hypotheses of 60 images."""
    draw = lambda: " ".join(rng.choices(WORDS, k=rng.randint(0, 12)))  # noqa: E731
    references = [[draw() for _ in range(rng.randint(1, 5))] for _ in range(60)]
    hypotheses = [draw() for _ in references]
    hypotheses[:9] = [texts[0] for texts in references[:9]]  # equal to a reference
    return references, hypotheses


@functools.cache
def ask_java():
    """METEOR of each caption, their lines of counts, drawn sets of rows, and METEOR of each set."""
    rng = random.Random(0)
    references, hypotheses = draw_captions(rng)
    rows = [np.arange(60), np.arange(12), *(np.array(rng.choices(range(60), k=60)) for _ in "abc")]
    with Meteor() as meteor:
        lines = meteor.count(references, hypotheses)
        _, each = meteor.score(lines)
        of_sets = [meteor.score([lines[i] for i in drawn])[0] for drawn in rows]
    return each, lines, rows, of_sets


def test_score_of_each_caption_equals_the_java_programs():
    each, lines, _, _ = ask_java()
    assert len(set(each)) > 30 and max(each) == 1 and min(each) == 0
    found = meteor_of_counts(read_meteor_counts(lines))
    np.testing.assert_allclose(found, each, rtol=0, atol=1e-12)


def test_score_of_any_set_of_captions_equals_the_java_programs():
    each, lines, rows, expected = ask_java()
    counts = read_meteor_counts(lines)
    found = meteor_of_counts(np.stack([counts[drawn].sum(axis=0) for drawn in rows]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert expected[0] != pytest.approx(np.mean(each), abs=1e-3)  # it is not the mean


def test_program_runs_in_a_folder_with_spaces_and_accents(tmp_path):
    folder = shutil.copytree(METEOR_DIR, tmp_path / "my show-tell é")
    with Meteor(folder=folder) as meteor:
        (line,) = meteor.count([["a little puppy is running"]], ["a small dog runs"])
    assert len(line.split()) == 23


def test_captions_without_a_match_score_zero():
    assert meteor_of_counts(np.zeros((2, 23))).tolist() == [0, 0]


def test_killed_meteor_is_an_error():
    with Meteor() as meteor:
        meteor._process.kill()
        for _ in range(2):  # the second question does not wait either
            with pytest.raises(ScorerError, match=r"METEOR ended with exit code -9, after 0 of 1"):
                meteor.count([["a dog"]], ["a dog"])
