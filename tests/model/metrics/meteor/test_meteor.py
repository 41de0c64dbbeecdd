"""The native METEOR against the Java program: the same 23 counts, the same scores."""

import functools
import random

import numpy as np
import pytest

from showtell.model.metrics.meteor import meteor
from showtell.model.metrics.meteor.counts import ignore_perfect_chunks, meteor_of_counts
from showtell.model.metrics.meteor.java import JavaMeteor, read_counts
from showtell.model.metrics.meteor.meteor import Meteor

FEW_WORDS = ("the", "a", "dog", "dogs", "runs", "running", "fast", "on", "of", "grass", "lawn", ",")
# Inflected forms, synonyms, the words of paraphrases, and words that METEOR splits.
MORE_WORDS = """
man men person people woman women child children kid kids boy girl lady guy puppy
hound walk walks walked walking stroll ride rides riding bike bicycle bikes car automobile
big bigger biggest large small little tiny is are was has have in to and at with next near beside
close by two several many group front back play plays playing game ball soccer football water river
lake sea beach snow mountain climbing evening university stopped halt boxes mice mouse geese
happier glad went travel take taking t-shirt 's n't u.s. p.m. 1,000 1/2 e.g. mr. o'clock café &
-lrb- -rrb- ... it there member states european commission would like part which can be used
for"""
MANY_WORDS = (*FEW_WORDS, *MORE_WORDS.split())


def draw_caption(rng: random.Random, words: tuple[str, ...], most: int) -> str:
    return " ".join(rng.choices(words, k=rng.randint(0, most)))


def mutate(rng: random.Random, caption: str) -> str:
    """Drop, swap, repeat and replace words, often by other forms of the same word."""
    words = caption.split() or ["a"]
    for _ in range(rng.randint(1, 4)):
        place, other = rng.randrange(len(words)), rng.randrange(len(words))
        change = rng.randrange(4)
        if change == 0 and len(words) > 1:
            del words[place]
        elif change == 1:
            words[place], words[other] = words[other], words[place]
        elif change == 2:
            words[place:place] = words[place : place + rng.randint(1, 4)]
        else:
            forms = [word for word in MANY_WORDS if word[:3] == words[place][:3]]
            words[place] = rng.choice(forms if rng.random() < 0.5 and forms else MANY_WORDS)
    return " ".join(words)


@functools.cache
def draw_images() -> tuple[list[list[str]], list[str]]:
    """Draw the references and the hypothesis of each image."""
    rng = random.Random(0)
    references = [
        [draw_caption(rng, words, most) for _ in range(rng.randint(1, 5))]
        for words, most, count in (
            (FEW_WORDS, 12, 400),
            (MANY_WORDS, 14, 1600),
            (MANY_WORDS, 90, 30),
        )
        for _ in range(count)
    ]
    hypotheses = [
        rng.choice((mutate(rng, texts[0]), draw_caption(rng, MANY_WORDS, 12)))
        for texts in references
    ]
    hypotheses[:9] = [texts[0] for texts in references[:9]]  # equal to a reference
    return references, hypotheses


@functools.cache
def ask_java():
    """The lines of counts, drawn sets of rows, METEOR of each caption, and of each set."""
    rng = random.Random(0)
    references, hypotheses = draw_images()
    rows = [np.arange(12), *(np.array(rng.choices(range(60), k=60)) for _ in "abc")]
    with JavaMeteor() as java:
        lines = java.count(references, hypotheses)
        _, each = java.score(lines)
        of_sets = [java.score([lines[i] for i in drawn])[0] for drawn in rows]
    return lines, rows, each, of_sets


def test_counts_equal_the_java_programs():
    references, hypotheses = draw_images()
    found, expected = Meteor(references).count(hypotheses), read_counts(ask_java()[0])
    content_words = expected[:, 4:20].sum(0).reshape(4, 4)[:, :2]
    assert (content_words > 5).all()  # each matcher found some
    wrong = np.flatnonzero((found != expected).any(1))
    assert not [(hypotheses[row], references[row]) for row in wrong]


def test_captions_of_any_image_are_counted_in_any_order():
    references, hypotheses = draw_images()
    rng = np.random.default_rng(0)
    rows = rng.integers(40, size=200)
    scorer = Meteor(references[:40])
    found = scorer.count([hypotheses[number] for number in range(200)], rows)
    for row, caption, counts in zip(rows, hypotheses[:200], found, strict=True):
        alone = Meteor([references[row]]).count([caption])
        np.testing.assert_array_equal(alone[0], counts)


def test_size_of_blocks_does_not_matter(monkeypatch):
    references, hypotheses = draw_images()
    expected = Meteor(references[:50]).count(hypotheses[:50])
    for size in (1, 300):
        monkeypatch.setattr(meteor, "BLOCK_SIZE", size)
        np.testing.assert_array_equal(Meteor(references[:50]).count(hypotheses[:50]), expected)


def test_score_of_each_caption_equals_the_java_programs():
    lines, _, each, _ = ask_java()
    assert len(set(each)) > 30 and max(each) == 1 and min(each) == 0
    found = meteor_of_counts(read_counts(lines))
    np.testing.assert_allclose(found, each, rtol=0, atol=1e-12)


def test_score_of_any_set_of_captions_equals_the_java_programs():
    lines, rows, each, expected = ask_java()
    counts = read_counts(lines)
    found = meteor_of_counts(np.stack([counts[drawn].sum(axis=0) for drawn in rows]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert expected[0] != pytest.approx(np.mean(each), abs=1e-3)  # it is not the mean


def test_captions_without_a_match_score_zero():
    assert meteor_of_counts(np.zeros((2, 23))).tolist() == [0, 0]


def test_complete_match_has_no_chunk_to_penalize():
    counts = Meteor([["a dog runs", "no"]]).count(["a dog runs"])
    assert counts[0, 20:].tolist() == [0, 3, 3]
    assert meteor_of_counts(counts) == pytest.approx([1.0])
    broken = ignore_perfect_chunks(np.array([[*counts[0, :20], 2, 3, 3]]))
    assert broken[0, 20] == 2
