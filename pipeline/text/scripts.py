"""Finds captions in languages that are written without spaces between words."""

import re
from collections.abc import Mapping

# Letters of a script → mean letters per word above which captions are taken to have no spaces.
# Real words have about 2 letters in Chinese and Japanese, and about 5 in Thai and Lao.
UNSPACED_SCRIPTS = {
    re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"): 4.0,
    re.compile("[\u0e00-\u0eff]"): 9.0,
}
MIN_SHARE = 0.1  # of the captions; fewer are names and quotations


def unspaced_words_warnings(counts: Mapping[str, int], num_captions: int) -> tuple[str, ...]:
    """Return a warning for each kind of script in which many captions have no spaces.

    Args:
        counts: word → occurrences.
        num_captions: number of captions that the words are from.
    """
    warnings = []
    foreign = {word: count for word, count in counts.items() if not word.isascii()}
    for letters, limit in UNSPACED_SCRIPTS.items():
        found = {word: len(letters.findall(word)) for word in foreign}
        num_words = sum(counts[word] for word, length in found.items() if length)
        num_letters = sum(counts[word] * length for word, length in found.items())
        if num_words > MIN_SHARE * num_captions and num_letters > limit * num_words:
            example = max(found, key=lambda word: (found[word], word))
            warnings.append(
                f"captions have no spaces between words: {example[:40]!r} counts as one word, so "
                "scores compare whole sentences. Put spaces between the words first, with a word "
                "segmenter such as jieba (Chinese), MeCab (Japanese) or PyThaiNLP (Thai). --vocab "
                "bpe lets a model learn such captions, but does not help the scores."
            )
    return tuple(warnings)
