"""METEOR from the counts that its jar gives of each caption, so that any choice of them is scored.

The jar aligns a caption with its references, which takes paraphrases and time; what it answers to
`SCORE` is one line of 23 counts. The score of a set is a function of their sum. It equals what the
jar itself makes of them (`EVAL`) but for the last bits.
"""

from collections.abc import Sequence

import numpy as np

from .ngrams import Floats

NUM_COUNTS = 23
CAPTION_LENGTH, REFERENCE_LENGTH = 0, 1
MATCHES = slice(4, 20)  # (4 matchers, 4): content in caption, reference; function words likewise
CHUNKS, CAPTION_MATCHES, REFERENCE_MATCHES = 20, 21, 22

# Tuned for English by the authors, "rank" task.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MATCHER_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def read_meteor_counts(lines: Sequence[str]) -> Floats:
    """Read the jar's answers to `SCORE`.

    Args:
        lines: N lines of 23 numbers.

    Returns:
        (N, 23) float64: words of caption and reference, function words of each, four matches by
        each of four matchers, chunks, matched words of each.
    """
    values = [[float(number) for number in line.split()] for line in lines]
    counts = np.array(values, np.float64).reshape(-1, NUM_COUNTS)
    # A caption that is its reference has no break in its order, alone and in any sum.
    whole = counts[:, CAPTION_MATCHES] == counts[:, CAPTION_LENGTH]
    whole &= counts[:, REFERENCE_MATCHES] == counts[:, REFERENCE_LENGTH]
    counts[whole & (counts[:, CHUNKS] == 1), CHUNKS] = 0
    return counts


def meteor_of_counts(counts: Floats) -> Floats:
    """METEOR of counts or of sums of them: (K, 23) float64 → (K,) float64, 0 to 1.

    Source: Denkowski and Lavie 2014, ACL W14-3348; weights of content and function words from
    Denkowski and Lavie 2011, ACL W11-2107.
    """
    caption, reference, caption_function, reference_function = counts.T[:4]
    matches = MATCHER_WEIGHTS @ counts[:, MATCHES].reshape(-1, 4, 4)  # (K, 4)
    precision = _ratio(
        _weigh(matches[:, 0], matches[:, 2]), _weigh(caption - caption_function, caption_function)
    )
    recall = _ratio(
        _weigh(matches[:, 1], matches[:, 3]),
        _weigh(reference - reference_function, reference_function),
    )
    mean = _ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    matched = (counts[:, CAPTION_MATCHES] + counts[:, REFERENCE_MATCHES]) / 2
    return mean * (1 - GAMMA * _ratio(counts[:, CHUNKS], matched) ** BETA)


def _weigh(content: Floats, function: Floats) -> Floats:
    return DELTA * content + (1 - DELTA) * function


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Divide; 0 where there is no whole."""
    return part / np.where(whole > 0, whole, 1)
