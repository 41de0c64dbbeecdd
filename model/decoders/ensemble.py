"""Ensembles: several decoders that generate one caption by averaging their probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Decoder
from .inputs import Words
from .state import State

ROWS_IN_CACHE = 32  # four members with 2,500 words: 1.3 MB


@dataclass(frozen=True)
class EnsembleState:
    """The states of all members, in order. Row i of each state belongs to the same caption."""

    members: tuple[State, ...]

    @property
    def attention(self) -> Tensor | None:
        """(R, P), of the first member; see `DecoderState`."""
        return getattr(self.members[0], "attention", None)

    def __len__(self) -> int:
        return len(self.members[0])

    def select(self, images: Tensor, parents: Tensor) -> "EnsembleState":
        """See `State.select`."""
        return EnsembleState(tuple(member.select(images, parents) for member in self.members))


class Ensemble(nn.Module):
    """Decoders that share a vocabulary, used as one decoder.

    Members may differ in everything else: cell, sizes, features, attention.

    Args:
        members: at least one decoder, all on one device.
    """

    def __init__(self, members: Sequence[Decoder]) -> None:
        super().__init__()
        sizes = {member.config.vocab_size for member in members}
        assert len(sizes) == 1, f"members have different vocabulary sizes: {sizes}"
        self.members = tuple(members)
        # A ModuleList registers the members, so that train(), eval() and to() apply to them.
        self.member_modules = nn.ModuleList(members)

    def init_state(
        self, features: Sequence[Tensor], words: Sequence[Words | None] | None = None
    ) -> EnsembleState:
        """Return the state before the first token, one row per image.

        Args:
            features: one tensor per member, each with features of the same N images.
            words: of these images, one entry per member.
        """
        words = words or [None] * len(self.members)
        inputs = zip(self.members, features, words, strict=True)
        return EnsembleState(tuple(member.init_state(f, w) for member, f, w in inputs))

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
        results = [member.step(token_ids, member_state) for member, member_state in pairs]
        mean = mean_log_probs([logits for logits, _ in results])
        return mean, EnsembleState(tuple(next_state for _, next_state in results))

    def start_tokens(self, batch_size: int) -> Tensor:
        """Return (batch_size,) int64 tokens, all BOS, on the members' device."""
        return self.members[0].start_tokens(batch_size)


def mean_log_probs(logits: Sequence[Tensor]) -> Tensor:
    """Return the log of the members' mean probability.

    On a CPU a few rows are computed at a time, so that they stay in its cache.

    Args:
        logits: (R, V) of each member.

    Returns:
        (R, V) float32.
    """
    rows_together = ROWS_IN_CACHE if logits[0].device.type == "cpu" else max(1, len(logits[0]))
    means = []
    for part in zip(*(member.split(rows_together) for member in logits), strict=True):
        log_probs = torch.stack([member.float().log_softmax(1) for member in part])
        means.append(log_probs.logsumexp(0) - math.log(len(part)))
    return torch.cat(means)


def join_decoders(decoders: Sequence[Decoder], num_views: int = 1) -> Decoder | Ensemble:
    """Return one model that averages over all decoders and all views of an image.

    Returns:
        The decoder itself if there is only one, with one view. Otherwise an ensemble with a member
        for each view of each decoder: all views of the first decoder, then all of the second, ….
    """
    members = [decoder for decoder in decoders for _ in range(num_views)]
    return members[0] if len(members) == 1 else Ensemble(members)
