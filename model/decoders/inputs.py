"""The inputs of a decoder: image features, and the words of similar images.

Letters in shapes: N images, S words.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Words(NamedTuple):
    """Words that probably describe each image, highest weight first; see `model/retrieval`.

    Attributes:
        token_ids: (N, S) int32.
        weights: (N, S) float16, at least 0.
    """

    token_ids: Tensor
    weights: Tensor

    def take(self, rows: Tensor) -> "Words":
        """Return the words of the images at (n,) int64 `rows`."""
        return Words(self.token_ids[rows], self.weights[rows])

    def to(self, device: torch.device) -> "Words":
        """Return the words on a device."""
        return Words(*(part.to(device, non_blocking=True) for part in self))


class Inputs(NamedTuple):
    """The arguments of `init_state` for a batch of images.

    Attributes:
        features: (N, D), or (N, P, D) grids; for an ensemble a tuple of one such tensor per member.
        words: `Words` or None; for an ensemble a tuple of one per member.
    """

    features: Any
    words: Any = None

    @classmethod
    def of_members(cls, members: "Sequence[Inputs]") -> "Inputs":
        """Join the inputs of the members of an ensemble."""
        return cls(*(tuple(parts) for parts in zip(*members, strict=True)))

    def to(self, device: torch.device) -> "Inputs":
        """Return the inputs on a device."""
        return Inputs(*(_move(part, device) for part in self))


def _move(part: Any, device: torch.device) -> Any:
    """Move a tensor, `Words`, None, or a tuple of these."""
    if isinstance(part, Tensor | Words):
        return part.to(device)
    return part and tuple(_move(member, device) for member in part)
