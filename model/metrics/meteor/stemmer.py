"""METEOR's stemmer: Snowball's English stemmer, as it was before version 3.

Later versions treat "evening" or "university" differently, so the dependency is held below 3.

Source: Porter 2001, snowballstem.org/algorithms/english/stemmer.html.
"""

from functools import lru_cache

# The class itself: the package's factory would use another version in PyStemmer if it is installed.
from snowballstemmer.english_stemmer import EnglishStemmer

from ....pipeline.stage.errors import ScorerError

_stemmer = EnglishStemmer()


@lru_cache(1 << 16)
def stem(word: str) -> str:
    """Return the stem of a word in lower case."""
    stemmed: str = _stemmer.stemWord(word)
    return stemmed


def require_old_rules() -> None:
    """Check that the rules are those of METEOR.

    Raises:
        ScorerError: a later version of snowballstemmer is installed.
    """
    if _stemmer.stemWord("evening") != "even":
        raise ScorerError(
            "METEOR needs the stemming rules of snowballstemmer 2, and a later version is "
            "installed. Run \"pip install 'snowballstemmer<3'\"."
        )
