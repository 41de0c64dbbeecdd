"""The interface of a caption decoder: what training and generation call."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...pipeline.text.vocab import BOS
from .config import DecoderConfig
from .inputs import Words


class Decoder(nn.Module, ABC):
    """Image features and previous tokens → scores of the next token.

    A subclass computes the same thing in two ways: `forward` for whole captions in training,
    `init_state` and `step` token by token in generation.

    Letters in shapes: N images, B captions, T tokens, R rows, D feature width, P grid cells, H
    output width, V vocabulary.

    Attributes:
        config: what the decoder is made of.
        uses_grid: whether its features are (N, P, D) grids instead of (N, D) pooled vectors.
    """

    config: DecoderConfig
    uses_grid = False

    @abstractmethod
    def init_state(self, features: Tensor, words: Words | None = None) -> Any:
        """Return the state before the first token, one row per image.

        Args:
            features: (N, D), or (N, P, D) with `uses_grid`; any float dtype.
            words: of similar images, if the config asks for `neighbours`; else None.

        Returns:
            A `DecoderState`, or another class with the methods of `State`, and with `repeat`.
        """

    @abstractmethod
    def step(self, token_ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Advance every row by one token.

        Args:
            token_ids: (R,) int64, the previous token of each row; BOS at the first step.
            state: from `init_state` or the previous step.

        Returns:
            logits: (R, V), unnormalised.
            state: the next state.
        """

    @abstractmethod
    def forward(
        self,
        features: Tensor,
        inputs: Tensor,
        image_index: Tensor | None = None,
        lengths: Tensor | None = None,
        words: Words | None = None,
    ) -> Tensor:
        """Read whole captions, predicting each token from the image and the tokens before it.

        Args:
            features: (N, D), or (N, P, D) with `uses_grid`; any float dtype.
            inputs: (B, T) int64, starting with BOS.
            image_index: (B,) int64, which of the N images each caption describes; default 0 … B-1.
            lengths: (B,) int64 on the CPU, tokens of each caption including BOS, descending; saves
                the work on padding. Default T each.
            words: as for `init_state`.

        Returns:
            (B, T, H) outputs, for `logits` or `cross_entropy`. The caller drops the padding first,
            so that no time is spent on its logits.
        """

    @abstractmethod
    def logits(self, outputs: Tensor) -> Tensor:
        """Score the vocabulary: (…, H) outputs of `forward` → (…, V) logits."""

    def cross_entropy(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the mean cross-entropy of outputs, a scalar in nats.

        Args:
            outputs: (R', H), R' ≥ R. Rows beyond the targets are padding and are ignored.
            targets: (R,) int64.
            label_smoothing: share of the target probability spread evenly over the vocabulary.
        """
        logits = self.logits(outputs[: len(targets)])
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    def init_weights(self) -> None:
        """Draw the initial weights; by default those that torch's layers start with."""

    def center_features(self, parts: Iterable[Tensor]) -> None:
        """Set what should be known of the features before training, such as their mean.

        Args:
            parts: (n, D), or (n, P, D) with `uses_grid`, of training images; together they may be
                larger than memory.
        """

    def start_tokens(self, batch_size: int) -> Tensor:
        """Return (B,) int64, BOS for every row, on the decoder's device."""
        return torch.full((batch_size,), BOS, device=next(self.parameters()).device)
