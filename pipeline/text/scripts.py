"""Scripts without spaces between words: join their words to text, warn about their captions."""

import re
from collections.abc import Mapping

# Inside of [...]: letters, marks and digits of Chinese and Japanese, and of the Southeast Asian
# scripts whose lines only a dictionary can break (class SA): Thai, Lao, Burmese, Khmer, ….
UNSPACED = (
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303a\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe00-\ufe0f\U00017000-\U0001b2ff"
    "\U00020000-\U0003ffff\U000e0100-\U000e01ef\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ece\u0edc-\u0edf"
    "\u1000-\u103f\u1050-\u108f\u109a-\u109f\u1780-\u17d3\u17d7\u17dc\u17dd\u1950-\u19cf\u1a20-\u1a7c"
    "\u1aa0-\u1aad\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaadf\U00011700-\U0001172f\U00011740-\U00011746"
)
SPACE_TO_DROP = re.compile(f"(?<=[{UNSPACED}]) | (?=[{UNSPACED}])")
# Letters of a script → mean letters per word above which captions are taken to have no spaces.
# Real words have about 2 letters in Chinese and Japanese, and about 5 in Thai and Lao.
UNSPACED_SCRIPTS = {
    re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"): 4.0,
    re.compile("[\u0e00-\u0eff]"): 9.0,
}
MIN_SHARE = 0.1  # of the captions; fewer are names and quotations


def join_words(words: str) -> str:
    """Write a caption as people do: without spaces beside characters of scripts without spaces.

    Args:
        words: joined by single spaces.
    """
    return words if words.isascii() else SPACE_TO_DROP.sub("", words)


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
                "scores compare whole sentences. Add --tokenizer characters, or put spaces between "
                "the words first, with a word segmenter such as jieba (Chinese), MeCab (Japanese) "
                "or PyThaiNLP (Thai)."
            )
    return tuple(warnings)
