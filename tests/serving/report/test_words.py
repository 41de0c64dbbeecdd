import pytest

from showtell.pipeline.text.vocab import SPECIALS, Vocab
from showtell.serving.report.words import WordCount, count_words

VOCAB = Vocab((*SPECIALS, "a", "dog", "runs", "cat", "sits", "red"))
CAPTIONS = {1: ["a", "dog", "runs"], 2: ["a", "dog", "runs"], 3: ["a", "red", "cat"]}
REFERENCES = {
    1: ["a dog runs", "a dog leaps"],
    2: ["a cat sits", "the cat"],
    3: ["a cat", "a cat sits"],
}


def test_statistics_of_captions_are_those_counted_by_hand() -> None:
    words = count_words(CAPTIONS, REFERENCES, {"a dog runs", "a bird"}, VOCAB)
    assert words.caption_lengths == {3: 3}
    assert words.reference_lengths == {3: 4, 2: 2}
    assert words.mean_reference_length == pytest.approx(16 / 6)
    assert (words.num_captions, words.num_distinct, words.num_copied) == (3, 2, 2)
    assert (words.num_words_used, words.vocab_size, words.unit) == (5, 6, "words")
    assert words.oov_share == pytest.approx(2 / 16)
    assert words.oov_words == [("leaps", 1), ("the", 1)]


def test_words_are_missed_if_two_references_have_them_and_wrong_if_none_has() -> None:
    words = count_words(CAPTIONS, REFERENCES, set(), VOCAB)
    assert words.missed == [WordCount("cat", right=1, missed=1, wrong=0)]
    assert {count.word: count.wrong for count in words.wrong} == {"dog": 1, "runs": 1, "red": 1}


def test_an_empty_caption_has_no_words() -> None:
    words = count_words({1: []}, {1: ["a dog"]}, set(), VOCAB)
    assert words.caption_lengths == {0: 1}
    assert words.wrong == []
