"""What captioning returns. Nothing here imports torch, because ONNX models return it too."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Token:
    """A token of a caption, as the decoder saw it.

    Attributes:
        text: the word, or the piece of a word; empty for the end of the caption.
        log_prob: its log-probability given the tokens before it, in nats.
        attention: (P,) float32, where the decoder attended: the weights of the grid cells, row by
            row from the top left. None for a decoder without attention.
    """

    text: str
    log_prob: float
    attention: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Caption:
    """A caption of an image.

    Attributes:
        text: words joined by spaces.
        log_prob: of the whole caption and its end, in nats.
        score: what captions are ranked by, see `Hypothesis.score`.
        tokens: its tokens and the end of the caption; empty unless asked for.
    """

    text: str
    log_prob: float
    score: float
    tokens: tuple[Token, ...] = ()

    def __str__(self) -> str:
        return self.text
