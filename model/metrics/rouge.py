"""ROUGE_L in Python.

The results equal those of pycocoevalcap.

Source: Lin 2004, ACL W04-1013.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ...pipeline.stage.ragged import Ints
from .metric import Floats
from .ngrams import Pairs, Words

BETA = 1.2  # weight of recall against precision


class RougeL:
    """ROUGE_L against references whose words are numbered once."""

    def __init__(self, captions: Sequence[str]) -> None:
        """Number the words of (M,) references, joined by single spaces."""
        self._word_ids: dict[str, int] = {}
        self.words = self._read(captions, self._word_ids)

    def score(self, captions: Sequence[str], pairs: Pairs) -> Floats:
        """Return ROUGE_L of K candidates, words joined by single spaces: (K,) float64, 0 to 1."""
        words = self._read(captions, dict(self._word_ids))
        common = common_lengths(words, self.words, pairs)
        precision = common / words.lengths[pairs.candidates]
        recall = common / self.words.lengths[pairs.references]
        # The highest precision and the highest recall may belong to different references.
        precision = np.maximum.reduceat(precision, pairs.offsets[:-1])
        recall = np.maximum.reduceat(recall, pairs.offsets[:-1])
        divisor = recall + BETA**2 * precision
        return (1 + BETA**2) * precision * recall / np.where(divisor > 0, divisor, 1)

    def _read(self, captions: Sequence[str], word_ids: dict[str, int]) -> Words:
        # pycocoevalcap splits at single spaces here, unlike for BLEU and CIDEr: "" is one word, and
        # so is "1 1/2", which the PTB tokenizer joins with a no-break space.
        return Words.read([text.split(" ") for text in captions], word_ids)


def common_lengths(words: Words, references: Words, pairs: Pairs) -> Ints:
    """Return the length of each pair's longest common subsequence, (P,) int64.

    Each column of the dynamic programming table is stored as one integer; a cleared bit marks a row
    at which the length grows by one.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    lengths = []
    for candidate, (first, end) in enumerate(pairwise(pairs.offsets.tolist())):
        caption, masks = words[candidate], dict[int, int]()
        for position, word in enumerate(caption):
            masks[word] = masks.get(word, 0) | 1 << position
        all_bits = (1 << len(caption)) - 1
        for pair in range(first, end):
            column = all_bits
            for word in references[pairs.references[pair]]:
                if hits := column & masks.get(word, 0):
                    column = (column + hits) | (column - hits)
            lengths.append(len(caption) - (column & all_bits).bit_count())
    return np.array(lengths, np.int64)
