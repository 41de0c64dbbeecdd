import random

import pytest

from showtell.model.metrics import ptb_tokenizer
from showtell.model.metrics.ptb_tokenizer import tokenize_with_java
from showtell.pipeline.stage.errors import ScorerError

# Captions that are difficult for the tokenizer or for METEOR's protocol.
ODD_CAPTIONS = (
    "A dog, a cat & two birds: they're sleeping!",
    "",
    "   ",
    "...",
    "The man's \"red\" T-shirt isn't (very) clean -- or is it?",
    "Café naïve — “quoted” ‘words’ … \u5b57 \U0001f600 end",
    "A 1 1/2 year old girl at 5 p.m. costs $3.50 etc.",
    "pipes ||| in ||| a caption",
    "SCORE ||| EVAL",
    "\ttabs\tand  spaces ",
    "trailing empty line follows",
    "",
)


def test_tokenizer_equals_pycocoevalcap(tokenize_with_pycocoevalcap):
    words = ("Dog", "dog's", "can't", "U.S.", "3,000", "a-b", "'n'", "``", "(x)", "é", "etc.", ";")
    rng = random.Random(0)
    drawn = [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(200)]
    captions = [*ODD_CAPTIONS, *drawn, "the end"]  # pycocoevalcap drops an empty caption at the end
    expected = tokenize_with_pycocoevalcap({0: captions})[0]
    assert [" ".join(words) for words in tokenize_with_java(captions)] == expected


def test_line_breaks_inside_captions_count_as_spaces():
    captions = ["a\rb", "c\r\nd", "e\x0bf", "g\x0ch", "i\u2028j", "k\u2029l", "m\nn", "\ud83d", ""]
    pairs = [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"], ["i", "j"], ["k", "l"], ["m", "n"]]
    assert tokenize_with_java(captions) == [*pairs, [], []]
    assert tokenize_with_java([]) == []


def test_missing_lines_are_an_error(monkeypatch):
    monkeypatch.setattr(ptb_tokenizer, "run_java", lambda *arguments: "")
    with pytest.raises(ScorerError, match=r"tokenizer wrote 0 lines for 1 captions"):
        tokenize_with_java(["a dog"])
