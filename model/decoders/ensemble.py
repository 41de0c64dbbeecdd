"""Several decoders that write one caption together, by averaging their probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Decoder
from .state import State


@dataclass(frozen=True)
class EnsembleState:
    """The states of all members, in order; all have the same rows."""

    members: tuple[State, ...]

    def __len__(self) -> int:
        return len(self.members[0])

    def select(self, images: Tensor, parents: Tensor) -> "EnsembleState":
        """See `State.select`."""
        return EnsembleState(tuple(member.select(images, parents) for member in self.members))


class Ensemble(nn.Module):
    """Decoders that share a vocabulary, used as one decoder.

    Members may differ in everything else: cell, sizes, features, attention.

    Args:
        members: in any mode, on one device.
    """

    def __init__(self, members: Sequence[Decoder]) -> None:
        super().__init__()
        sizes = {member.config.vocab_size for member in members}
        assert len(sizes) == 1, f"members have different vocabulary sizes: {sizes}"
        self.members = tuple(members)
        # Registered as well, so that train(), eval() and to() reach the members.
        self.member_modules = nn.ModuleList(members)

    def init_state(self, features: Sequence[Tensor]) -> EnsembleState:
        """Encode the images for each member.

        Args:
            features: one tensor per member: its features of the same N images.
        """
        pairs = zip(self.members, features, strict=True)
        return EnsembleState(tuple(member.init_state(own) for member, own in pairs))

    def step(self, token_ids: Tensor, state: EnsembleState) -> tuple[Tensor, EnsembleState]:
        """Advance every member by one token.

        Args:
            token_ids: (R,) int64, the previous tokens; BOS at the first step.
            state: from `init_state` or the previous step.

        Returns:
            logits: (R, V) float32, the log of the members' mean probability.
            state: the next state.
        """
        pairs = zip(self.members, state.members, strict=True)
        stepped = [member.step(token_ids, own) for member, own in pairs]
        log_probs = torch.stack([logits.float().log_softmax(1) for logits, _ in stepped])
        mean = log_probs.logsumexp(0) - math.log(len(stepped))
        return mean, EnsembleState(tuple(own for _, own in stepped))

    def start_tokens(self, batch_size: int) -> Tensor:
        """Return (R,) int64, BOS for every row, on the members' device."""
        return self.members[0].start_tokens(batch_size)


def join_decoders(decoders: Sequence[Decoder], num_views: int = 1) -> Decoder | Ensemble:
    """Combine decoders, and several views of each image, into one model.

    Returns:
        The decoder itself if there is one with one view; else an ensemble with a member for each
        view of each decoder: all views of the first decoder, then all of the second, ….
    """
    members = [decoder for decoder in decoders for _ in range(num_views)]
    return members[0] if len(members) == 1 else Ensemble(members)
