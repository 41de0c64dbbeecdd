"""What a training step minimises: the cross-entropy of captions, and scheduled sampling.

The policy-gradient loss of `--scst` is in scst.py.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...pipeline.text.vocab import EOS, PAD
from ..decoders.base import Decoder
from ..generation.constraints import NEVER_WRITTEN
from ..kernels.padding import pad_rows, round_rows
from .batches import CaptionBatch

# Number of tokens or images in this process → their share of the whole batch. A mean over them is
# multiplied by it; the sum of the products over all processes is the mean over the batch.
Share = Callable[[int], float]


def whole(count: int) -> float:
    """Return the share of a process that trains alone: 1."""
    return 1.0


def caption_loss(decoder: Decoder, batch: CaptionBatch, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of a batch's non-padding tokens, a scalar in nats."""
    outputs = decoder(
        batch.features, batch.inputs, batch.image_index, batch.lengths, batch.words
    )  # (B, T, H)
    outputs = outputs.flatten(0, 1)[batch.nonpad]  # (R, H)
    targets = batch.targets.flatten()[batch.nonpad]
    return decoder.cross_entropy(
        pad_rows(outputs, round_rows(len(outputs))), targets, label_smoothing
    )


@torch.no_grad()
def mix_inputs(decoder: Decoder, batch: CaptionBatch, rate: float) -> CaptionBatch:
    """Replace some input tokens by tokens drawn from the decoder: scheduled sampling.

    Each token after BOS is replaced with probability `rate` by a draw from the decoder's
    prediction at that position, which itself follows the mixed inputs before it.

    Args:
        decoder: in train mode; dropout acts on the encoded image.
        batch: only its inputs change.
        rate: 0 replaces nothing, 1 every token.

    Source: Bengio et al. 2015, arXiv:1506.03099.
    """
    inputs = batch.inputs.clone()
    state = decoder.init_state(batch.features, batch.words).repeat(batch.image_index)
    is_chosen = torch.rand(inputs.shape, device=inputs.device) < rate
    for position in range(inputs.shape[1] - 1):
        logits, state = decoder.step(inputs[:, position], state)
        for token in (*NEVER_WRITTEN, EOS):  # none of them is an input before another token
            logits[:, token] = -torch.inf
        drawn = torch.multinomial(logits.float().softmax(1), 1)[:, 0]
        following = inputs[:, position + 1]
        is_replaced = is_chosen[:, position + 1] & (following != PAD)
        inputs[:, position + 1] = drawn.where(is_replaced, following)
    return replace(batch, inputs=inputs)
