"""Splits captions of any language into words, or into characters where there are no spaces.

Both tokenizers follow Unicode's rules for text segmentation, as the library `regex` implements
them. Before that, a caption is normalized: NFC, full-width letters and digits as ASCII, half-width
katakana as katakana, ’ as ', lower case; without soft hyphens and marks of direction. Segments
without a letter or a digit are dropped, such as punctuation and emoji.

Source: Unicode Standard Annex #29, "Unicode Text Segmentation", https://unicode.org/reports/tr29/.
"""

import re
from functools import cache
from typing import TYPE_CHECKING
from unicodedata import normalize

from .scripts import UNSPACED

if TYPE_CHECKING:
    import regex

WIDE = re.compile("[\uff01-\uffee]+")
RUN = re.compile(f"([{UNSPACED}]+)")  # text of one kind of script
INVISIBLE = r"(?V1)[\p{Cf}--[\u200c\u200d]]"  # joiners belong to the spelling of some languages
WORD = r"(?ws).+?\b"
CHARACTER = r"\X"
HAS_LETTER = r"[\p{L}\p{N}]"


def split_words(text: str) -> list[str]:
    """Split a caption at Unicode's word boundaries.

    The rules need no dictionary: Chinese characters and hiragana become words of one character,
    katakana stays together, and Thai is split after each letter. "don't" is one word.

    Returns:
        Words in lower case without punctuation.
    """
    return _find_all(WORD, _normalize(text))


def split_characters(text: str) -> list[str]:
    """Split a caption into characters in scripts without spaces, and into words elsewhere.

    A character is a grapheme cluster: a letter with its vowel signs and tone marks, such as "น้ำ".
    Latin words and numbers stay whole: "12个T恤" gives `12 个 t 恤`.

    Returns:
        Characters and words in lower case without punctuation.
    """
    words = []
    for i, run in enumerate(RUN.split(_normalize(text))):
        words += _find_all(CHARACTER if i % 2 else WORD, run)
    return words


def _find_all(pattern: str, text: str) -> list[str]:
    """Return the matches of a pattern that contain a letter or a digit."""
    has_letter = _compile(HAS_LETTER).search
    return [segment for segment in _compile(pattern).findall(text) if has_letter(segment)]


def _normalize(text: str) -> str:
    if not text.isascii():
        text = WIDE.sub(lambda found: normalize("NFKC", found[0]), text)
        text = _compile(INVISIBLE).sub("", text.replace("\u200b", " "))
        text = normalize("NFC", text).replace("’", "'")
    return text.lower()


@cache
def _compile(pattern: str) -> "regex.Pattern[str]":
    """Compile a pattern; the library is loaded on first use, because English does not need it."""
    import regex

    return regex.compile(pattern)
