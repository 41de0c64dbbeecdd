import math

import pytest
import torch

from showtell.model.generation.constraints import block_ngrams, next_log_probs
from showtell.model.generation.options import DecodingOptions
from showtell.pipeline.text.vocab import BOS, EOS, PAD, UNK

VOCAB_SIZE = 8


def allow(length: int, **options: int) -> torch.Tensor:
    """Return (4, V) log-probabilities after four captions of `length` random words."""
    torch.manual_seed(length)
    words = torch.randint(UNK + 1, VOCAB_SIZE, (4, length))
    return next_log_probs(torch.randn(4, VOCAB_SIZE), words, DecodingOptions(**options))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_block_ngrams_equals_a_plain_loop(n: int) -> None:
    torch.manual_seed(0)
    for length in range(n, 12):
        words = torch.randint(4, 7, (20, length))
        log_probs = torch.zeros(20, VOCAB_SIZE)
        block_ngrams(log_probs, words, n)
        for row, caption in zip(log_probs.tolist(), words.tolist(), strict=True):
            seen = {tuple(caption[i : i + n]) for i in range(length - n + 1)}
            expected = [
                -math.inf if (*caption[length - n + 1 :], word) in seen else 0.0
                for word in range(VOCAB_SIZE)
            ]
            assert row == expected


def test_special_tokens_take_no_probability() -> None:
    log_probs = allow(3)
    assert (log_probs[:, [PAD, BOS, UNK]] == -math.inf).all()
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(4))


def test_end_respects_minimum_and_maximum_length() -> None:
    options = {"min_length": 3, "max_length": 5}
    assert (allow(0)[:, EOS] == -math.inf).all()
    assert (allow(2, **options)[:, EOS] == -math.inf).all()
    assert (allow(3, **options)[:, EOS] > -math.inf).all()
    last = allow(5, **options)
    assert (last[:, EOS] > -math.inf).all()
    assert (last > -math.inf).sum() == 4


def test_allowed_words_keep_their_probability() -> None:
    plain, constrained = allow(6), allow(6, no_repeat_ngram=1, min_length=7)
    may_come = constrained > -math.inf
    assert 0 < may_come.sum() < (plain > -math.inf).sum()
    assert torch.equal(constrained[may_come], plain[may_come])
