"""The tokenizers of `showtell prepare --tokenizer`, which training and the scores share.

To add one, write a file with a function from a caption to its words, and name it here twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

DEFAULT_TOKENIZER = "ptb"
# Name of a tokenizer → what it splits captions into.
UNITS = {"ptb": "words", "unicode": "words", "characters": "characters"}


@dataclass(frozen=True)
class Tokenizer:
    """How captions are split into words.

    Attributes:
        tokenize: returns the words of a caption.
        tokenize_chunk: returns the words between two spaces; None if they depend on more text.
        crosses_spaces: matches captions whose words depend on more than the text between two
            spaces; in syntax that Python's `re` and pyarrow's RE2 share. None if there are none.
    """

    tokenize: Callable[[str], list[str]]
    tokenize_chunk: Callable[[str], list[str] | None]
    crosses_spaces: str | None = None


@cache
def load_tokenizer(name: str) -> Tokenizer:
    """Return a tokenizer by its name in `UNITS`."""
    if name == "ptb":
        from . import ptb  # here, because its rules take 0.2 s to compile

        return Tokenizer(ptb.tokenize, ptb.tokenize_chunk, ptb.CROSSES_SPACES)
    from . import unicode_words

    split = unicode_words.split_words if name == "unicode" else unicode_words.split_characters
    return Tokenizer(split, split)
