"""METEOR's 23 counts of a caption and a reference, and the score computed from them.

The score of any set of captions is a function of the sum of their counts, so that every subset can
be scored without aligning captions again.

Source: Denkowski and Lavie 2014, ACL W14-3348; weights of content and function words from Denkowski
and Lavie 2011, ACL W11-2107.
"""

import numpy as np

from ..metric import Floats

NUM_COUNTS, NUM_MATCHERS = 23, 4
CAPTION_LENGTH, REFERENCE_LENGTH = 0, 1
CAPTION_FUNCTION, REFERENCE_FUNCTION = 2, 3
MATCHES = slice(4, 20)  # (4 matchers, 4): content words of caption, reference; then function words
CHUNKS, CAPTION_MATCHES, REFERENCE_MATCHES = 20, 21, 22

# The authors' values for English, task "rank".
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MATCHER_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def ignore_perfect_chunks(counts: Floats) -> Floats:
    """Return counts without the chunk of captions that match their reference completely.

    METEOR does not penalize a caption for its one chunk if all words of both are in it.

    Args:
        counts: (N, 23) float64, as METEOR's program prints them: words of the caption and of the
            reference; function words of each; for each of four matchers, matched content words of
            each and matched function words of each; chunks; matched words of each.
    """
    is_equal = counts[:, CAPTION_MATCHES] == counts[:, CAPTION_LENGTH]
    is_equal &= counts[:, REFERENCE_MATCHES] == counts[:, REFERENCE_LENGTH]
    counts = counts.copy()
    counts[is_equal & (counts[:, CHUNKS] == 1), CHUNKS] = 0
    return counts


def meteor_of_counts(counts: Floats) -> Floats:
    """Compute METEOR of counts, or of sums of counts: (K, 23) float64 → (K,) float64, 0 to 1."""
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
    """Add up content and function words under their weights."""
    return DELTA * content + (1 - DELTA) * function


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Divide; the result is 0 where `whole` is 0."""
    return part / np.where(whole > 0, whole, 1)
