"""METEOR's Java program, which `showtell eval --official` runs beside the native METEOR."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..java import JavaProcess
from ..metric import Floats
from .build_index import JAR, METEOR_DIR
from .counts import NUM_COUNTS, ignore_perfect_chunks
from .normalize import remove_separator

TIMEOUT_S = 300.0  # METEOR loads 60 MB of paraphrases before its first answer


class JavaMeteor(JavaProcess):
    """The Java program, started once for any number of captions.

    It answers `SCORE` with one line of 23 counts for each caption, and `EVAL` with scores.

    Args:
        timeout_s: how long it may take for one answer.
        folder: contains the jar, and the paraphrases in `data/`.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, folder: Path = METEOR_DIR) -> None:
        # The program finds its paraphrases by itself only below a path without spaces and accents.
        paraphrases = folder / "data" / "paraphrase-en.gz"
        options = ("-stdio", "-l", "en", "-norm", "-a", paraphrases)
        super().__init__("METEOR", ("-jar", folder / JAR.name, "-", "-", *options), timeout_s)

    def count(self, references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> list[str]:
        """Return the line of counts of each of N captions.

        Args:
            references: N lists of captions, as words joined by single spaces.
            hypotheses: N captions, as words joined by single spaces.

        Raises:
            ScorerError: the program died, or exceeded the time limit.
        """
        questions = [
            " ||| ".join(("SCORE", *map(remove_separator, captions), remove_separator(hypothesis)))
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


def read_counts(lines: Sequence[str]) -> Floats:
    """Parse N answers to `SCORE`: (N, 23) float64, see `counts.ignore_perfect_chunks`."""
    values = [[float(number) for number in line.split()] for line in lines]
    return ignore_perfect_chunks(np.array(values, np.float64).reshape(-1, NUM_COUNTS))
