"""Several decoders that write one caption together: the mean of what they think of each word."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .decoder import Decoder
from .state import DecoderState


@dataclass(frozen=True)
class EnsembleState:
    """The states of all members, in order; each has the same rows."""

    members: tuple[DecoderState, ...]

    def __len__(self) -> int:
        return len(self.members[0])

    def select(self, images: Tensor, parents: Tensor) -> "EnsembleState":
        """See `State.select`."""
        return EnsembleState(tuple(member.select(images, parents) for member in self.members))


class Ensemble(nn.Module):
    """Decoders of one vocabulary, decoded as if they were one.

    They may differ in all else: cell, sizes, features, attention.

    Args:
        members: in any mode, on one device.
    """

    def __init__(self, members: Sequence[Decoder]) -> None:
        super().__init__()
        sizes = {member.config.vocab_size for member in members}
        assert len(sizes) == 1, f"members have vocabularies of {sizes} words"
        self.members = tuple(members)
        self.modules_of_members = nn.ModuleList(members)  # so that mode and device reach them

    def init_state(self, features: Sequence[Tensor]) -> EnsembleState:
        """Show each member its own features of the same images, a row or grid for each image."""
        pairs = zip(self.members, features, strict=True)
        return EnsembleState(tuple(member.init_state(own) for member, own in pairs))

    def step(self, token_ids: Tensor, state: EnsembleState) -> tuple[Tensor, EnsembleState]:
        """Advance every member by one word.

        Args:
            token_ids: (R,) int64, the previous word; BOS at the first step.
            state: from `init_state` or the previous step.

        Returns:
            logits: (R, V) float32, log of the mean of the members' probabilities.
            state: the next state.
        """
        pairs = zip(self.members, state.members, strict=True)
        stepped = [member.step(token_ids, own) for member, own in pairs]
        log_probs = torch.stack([logits.float().log_softmax(1) for logits, _ in stepped])
        mean = log_probs.logsumexp(0) - math.log(len(stepped))
        return mean, EnsembleState(tuple(own for _, own in stepped))

    def start_tokens(self, batch_size: int) -> Tensor:
        """(R,) int64, BOS for every row, on the members' device."""
        return self.members[0].start_tokens(batch_size)


def join_decoders(decoders: Sequence[Decoder], num_views: int = 1) -> Decoder | Ensemble:
    """One model of decoders that look at several views of each image; of one with one, itself.

    An ensemble has a member for each view of each decoder, all views of the first decoder first.
    """
    members = [decoder for decoder in decoders for _ in range(num_views)]
    return members[0] if len(members) == 1 else Ensemble(members)
