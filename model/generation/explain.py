"""Explain captions: the probability of each token, and where the decoder attended.

Letters in shapes: N images, K captions per image, T tokens, P grid cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...pipeline.text.vocab import EOS
from ..decoders.state import S, StepModel
from .constraints import word_log_probs


@dataclass(frozen=True)
class TokenScores:
    """What the model computed for the T tokens of a caption and the EOS after them.

    Attributes:
        log_probs: (T + 1,) float32, in nats. They add up to `Hypothesis.log_prob`.
        attention: (T + 1, P) float32, the weights of the grid cells, row by row from the top left.
            They sum to at most 1. None without attention.
    """

    log_probs: NDArray[np.float32]
    attention: NDArray[np.float32] | None


def explain(
    model: StepModel[S], state: S, captions: Sequence[Sequence[Sequence[int]]]
) -> list[list[TokenScores]]:
    """Read finished captions again, one token at a time.

    Args:
        model: a decoder or an ensemble, in eval mode.
        state: from `model.init_state`, of the same N images.
        captions: of each image, the token ids of its captions without BOS and EOS.

    Returns:
        The scores of each caption. With an ensemble, `attention` is that of the first member.
    """
    num_images, num_captions = len(captions), max(map(len, captions), default=0)
    longest = max((len(ids) for found in captions for ids in found), default=0)
    targets = torch.full((num_images, num_captions, longest + 1), EOS)
    for index, found in enumerate(captions):
        for rank, ids in enumerate(found):
            targets[index, rank, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    tokens = model.start_tokens(num_images * num_captions)
    parents = torch.zeros(num_images, num_captions, dtype=torch.int64, device=tokens.device)
    log_probs, attention = [], []
    with torch.no_grad():
        state = state.select(torch.arange(num_images, device=tokens.device), parents)
        for target in targets.to(tokens.device).flatten(0, 1).unbind(1):
            logits, state = model.step(tokens, state)
            log_probs.append(word_log_probs(logits).gather(1, target[:, None])[:, 0])
            # A state need not have it: decoders are free to define their own.
            if (weights := getattr(state, "attention", None)) is not None:
                attention.append(weights.float())
            tokens = target
    shape = (num_images, num_captions, longest + 1)
    scores = torch.stack(log_probs, 1).view(shape).cpu().numpy()
    maps = torch.stack(attention, 1).view(*shape, -1).cpu().numpy() if attention else None
    return [
        [
            TokenScores(
                scores[index, rank, : len(ids) + 1],
                None if maps is None else maps[index, rank, : len(ids) + 1],
            )
            for rank, ids in enumerate(found)
        ]
        for index, found in enumerate(captions)
    ]
