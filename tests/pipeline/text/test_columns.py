"""Compares columns of words with plain Python lists."""

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from showtell.pipeline.text.columns import TokenizedCaptions, tokenize_all, tokenize_texts
from showtell.pipeline.text.ptb import tokenize

WORDS = ["a", "dog", "Runs", "can't", "B.", "2 1/2", "2", "1/2", "<b>", "naïve", "...", "no.", "!"]


@pytest.fixture(scope="module")
def captions() -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 9))) for _ in range(300)]


@pytest.fixture(scope="module")
def tokenized(captions: list[str]) -> TokenizedCaptions:
    return tokenize_all(pa.array(captions))


def lists(tokenized: TokenizedCaptions) -> list[list[str]]:
    bounds = zip(tokenized.offsets[:-1], tokenized.offsets[1:], strict=True)
    return [[tokenized.words[n] for n in tokenized.indices[start:end]] for start, end in bounds]


def test_tokenize_all_matches_tokenize(captions, tokenized) -> None:
    expected = [tokenize(caption) for caption in captions]
    assert lists(tokenized) == expected
    assert len(tokenized) == 300 and tokenized.lengths.tolist() == [*map(len, expected)]
    assert tokenized.texts().to_pylist() == [" ".join(words) for words in expected]
    assert tokenize_texts(captions) == [" ".join(words) for words in expected]
    assert any("\u00a0" in word for word in tokenized.words)  # a space within a word
    assert [] in expected


def test_select_and_count_match_python_lists(captions, tokenized) -> None:
    wanted = np.arange(300) % 3 == 1
    some = tokenized.select(wanted)
    expected = [tokenize(caption) for caption in captions[1::3]]
    assert lists(some) == expected
    assert some.count() == Counter(word for words in expected for word in words)
    none = tokenized.select(np.zeros(300, bool))
    assert len(none) == 0 and none.count() == Counter() and none.texts().to_pylist() == []


def test_encode_replaces_words_by_one_or_several_ids(captions, tokenized) -> None:
    ids = {word: [*range(n, n + 1 + n % 3)] for n, word in enumerate(tokenized.words)}
    tokens, offsets = tokenized.encode([ids[word] for word in tokenized.words])
    for caption, start, end in zip(captions, offsets[:-1], offsets[1:], strict=True):
        assert tokens[start:end].tolist() == [i for word in tokenize(caption) for i in ids[word]]
    assert tokens.dtype == np.int32 and offsets[-1] == len(tokens)


def test_tokenize_all_handles_captions_without_words() -> None:
    for captions in ([], ["!", ""]):
        tokenized = tokenize_all(pa.array(captions, pa.string()))
        assert tokenized.lengths.tolist() == [0] * len(captions) and tokenized.words == ()
        assert tokenized.texts().to_pylist() == [""] * len(captions)
