"""METEOR 1.5: its Java program, and its score computed from the program's counts.

The program aligns a caption with its references, which needs paraphrases and takes time. It
answers `SCORE` with one line of 23 counts. The score of any set of captions is a function of the
sum of their counts, so that subsets can be scored without Java; the result equals the program's own
(`EVAL`) except for rounding.

Source: Denkowski and Lavie 2014, ACL W14-3348; weights of content and function words from Denkowski
and Lavie 2011, ACL W11-2107.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocoevalcap.meteor import meteor

from .java import JavaProcess
from .metric import Floats

METEOR_DIR = Path(meteor.__file__).parent
TIMEOUT_S = 300.0  # METEOR loads 60 MB of paraphrases before its first answer

NUM_COUNTS = 23
CAPTION_LENGTH, REFERENCE_LENGTH = 0, 1
MATCHES = slice(4, 20)  # (4 matchers, 4): content words of caption, reference; then function words
CHUNKS, CAPTION_MATCHES, REFERENCE_MATCHES = 20, 21, 22

# The authors' values for English, task "rank".
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MATCHER_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


class Meteor(JavaProcess):
    """The Java program, started once for any number of captions.

    Args:
        timeout_s: how long it may take for one answer.
        folder: contains the jar, and the paraphrases in `data/`.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, folder: Path = METEOR_DIR) -> None:
        # The program finds its paraphrases by itself only below a path without spaces and accents.
        paraphrases = folder / "data" / "paraphrase-en.gz"
        options = ("-stdio", "-l", "en", "-norm", "-a", paraphrases)
        super().__init__(
            "METEOR", ("-jar", folder / meteor.METEOR_JAR, "-", "-", *options), timeout_s
        )

    def count(self, references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> list[str]:
        """Return the line of counts of each of N captions.

        Args:
            references: N lists of captions, as words joined by single spaces.
            hypotheses: N captions, as words joined by single spaces.

        Raises:
            ScorerError: the program died, or exceeded the time limit.
        """
        questions = [
            " ||| ".join(
                ("SCORE", *map(_remove_separator, captions), _remove_separator(hypothesis))
            )
            for captions, hypothesis in zip(references, hypotheses, strict=True)
        ]
        return self.ask(questions, len(questions))

    def score(self, lines: Sequence[str]) -> tuple[float, list[float]]:
        """Score N captions by their lines of counts.

        Returns:
            METEOR of all captions together, and of each; 0 to 1.

        Raises:
            ScorerError: the program died, or exceeded the time limit.
        """
        question = " ||| ".join(("EVAL", *lines))
        *scores, score = self.ask([question], len(lines) + 1)
        return float(score), [float(value) for value in scores]


def read_meteor_counts(lines: Sequence[str]) -> Floats:
    """Parse the program's answers to `SCORE`.

    Args:
        lines: N lines of 23 numbers.

    Returns:
        (N, 23) float64: words of the caption and of the reference; function words of each; for each
        of four matchers, matched content words of each and matched function words of each; chunks;
        matched words of each.
    """
    values = [[float(number) for number in line.split()] for line in lines]
    counts = np.array(values, np.float64).reshape(-1, NUM_COUNTS)
    # METEOR does not penalize a caption that equals its reference for its one chunk.
    is_equal = counts[:, CAPTION_MATCHES] == counts[:, CAPTION_LENGTH]
    is_equal &= counts[:, REFERENCE_MATCHES] == counts[:, REFERENCE_LENGTH]
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


def _remove_separator(caption: str) -> str:
    """Remove the program's separator, as pycocoevalcap removes it from hypotheses."""
    return caption.replace("|||", "").replace("  ", " ")
