"""METEOR's stemmer: Snowball's English stemmer, as it was before version 3.

Later versions treat "evening" or "university" differently, so the dependency is held below 3.

Source: Porter 2001, snowballstem.org/algorithms/english/stemmer.html.
"""

from functools import lru_cache

# The class itself: the package's factory would use another version in PyStemmer if it is installed.
from snowballstemmer.english_stemmer import EnglishStemmer

_stemmer = EnglishStemmer()


@lru_cache(1 << 16)
def stem(word: str) -> str:
    """Return the stem of a word in lower case."""
    stemmed: str = _stemmer.stemWord(word)
    return stemmed
