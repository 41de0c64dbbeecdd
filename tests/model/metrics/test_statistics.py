import random

import pytest

from showtell.model.metrics.statistics import describe_captions
from showtell.pipeline.text.vocab import SPECIALS, Vocab

WORDS = Vocab((*SPECIALS, *"abcdefgh"))


def test_statistics_equal_plain_loops() -> None:
    draw = random.Random(0)
    captions = [
        [draw.randint(4, 9) for _ in range(draw.choice((0, 1, 2, 3, 5, 8)))] for _ in range(200)
    ]
    train = {"a b", "c", "d e f", "", "a b c d e"}
    found = describe_captions(captions, WORDS, train, max_length=8)
    num_words, num_new, num_cut = 0, 0, 0
    seen, pairs, lengths = [], [], []
    for caption in captions:
        letters = [WORDS.words[i] for i in caption]
        for i, letter in enumerate(letters):
            num_words += 1
            if letter not in seen:
                seen.append(letter)
            if i and letters[i - 1 : i + 1] not in pairs:
                pairs.append(letters[i - 1 : i + 1])
        lengths.append(len(letters))
        num_new += " ".join(letters) not in train
        num_cut += len(letters) == 8
    assert found.words_per_caption == pytest.approx(sum(lengths) / 200)
    assert found.distinct_1 == pytest.approx(len(seen) / num_words)
    assert found.distinct_2 == pytest.approx(len(pairs) / num_words)
    assert (found.words_used, found.vocabulary_used) == (6, 6 / 8)
    assert 0 < found.novel_captions == num_new / 200 < 1
    assert 0 < found.captions_at_limit == num_cut / 200 < 1


def test_subwords_are_joined_to_words_before_they_are_counted() -> None:
    pieces = Vocab((*SPECIALS, " sun", "set", " a", "x"), tokenizer="{}")
    found = describe_captions([[6, 4, 5], [6, 4]], pieces, {"a sunset"}, max_length=3)
    assert (found.words_per_caption, found.words_used) == (2, 3)  # a, sunset, sun
    assert (found.distinct_1, found.distinct_2) == (3 / 4, 2 / 4)
    assert (found.vocabulary_used, found.novel_captions, found.captions_at_limit) == (
        0.75,
        0.5,
        0.5,
    )


def test_empty_captions_have_no_words() -> None:
    found = describe_captions([[], []], WORDS, {"a"}, max_length=20)
    assert (found.words_per_caption, found.distinct_1, found.distinct_2) == (0, 0, 0)
    assert (found.words_used, found.vocabulary_used, found.novel_captions) == (0, 0, 1)
