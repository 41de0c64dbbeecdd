"""What captioning returns. Nothing here imports torch, because ONNX models return it too."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..model.generation.hypothesis import Hypothesis
from ..pipeline.text.vocab import Vocab


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
        text: as people write it: words joined by spaces, or by nothing in Chinese, Japanese, Thai.
        log_prob: of the whole caption and its end, in nats.
        score: what captions are ranked by, see `Hypothesis.score`.
        tokens: its tokens and the end of the caption; empty unless asked for.
        words: its words, in Chinese its characters.
    """

    text: str
    log_prob: float
    score: float
    tokens: tuple[Token, ...] = ()
    words: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        hypothesis: Hypothesis,
        vocab: Vocab,
        log_probs: NDArray[np.float32] | None = None,
        attention: NDArray[np.float32] | None = None,
    ) -> "Caption":
        """Return a hypothesis in words.

        Args:
            hypothesis: of T tokens.
            vocab: the vocabulary of its tokens.
            log_probs: (T + 1,) of its tokens and EOS; None leaves out the tokens.
            attention: (T + 1, P), the weights of the grid cells; None without attention.
        """
        tokens: tuple[Token, ...] = ()
        if log_probs is not None:
            texts = [*(vocab.words[token_id] for token_id in hypothesis.token_ids), ""]
            maps = [None] * len(texts) if attention is None else list(attention)
            tokens = tuple(map(Token, texts, log_probs.tolist(), maps))
        words = tuple(filter(None, vocab.decode(hypothesis.token_ids).split(" ")))
        text = vocab.to_text(hypothesis.token_ids)
        return cls(text, hypothesis.log_prob, hypothesis.score, tokens, words)

    def __str__(self) -> str:
        return self.text

    @property
    def word_probs(self) -> list[float]:
        """The probability of each of `words` given those before it; needs `tokens`."""
        words, sums, word = self.words or self.text.split(" "), list[float](), ""
        for token in self.tokens[:-1]:
            piece = token.text.removeprefix(" ")
            if not sums or word == words[len(sums) - 1]:
                sums.append(token.log_prob)
                word = piece
            else:  # the next piece of a word of several
                sums[-1] += token.log_prob
                word += piece
        return [math.exp(log_prob) for log_prob in sums]
