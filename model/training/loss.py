"""What a training step minimises, and how: the loss, the learning rate, the optimizer."""

from dataclasses import replace

import torch
from torch import Tensor

from ...pipeline.text.vocab import EOS, PAD
from ..decoders.decoder import Decoder
from ..generation.constraints import FORBIDDEN
from ..kernels.cross_entropy import linear_cross_entropy
from ..kernels.padding import pad_rows, round_rows
from .batches import CaptionBatch


def caption_loss(decoder: Decoder, batch: CaptionBatch, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the real words of a batch, a scalar in nats; padding never enters."""
    outputs = decoder(batch.features, batch.inputs, batch.owners, batch.lengths)  # (B, T, H)
    outputs = outputs.flatten(0, 1)[batch.real]  # (R, H)
    words = decoder.project(pad_rows(outputs, round_rows(len(outputs))))  # (R', E), R' ≥ R
    targets = batch.targets.flatten()[batch.real]
    return linear_cross_entropy(
        words, decoder.word_weight, decoder.output_bias, targets, label_smoothing
    )


@torch.no_grad()
def mix_inputs(decoder: Decoder, batch: CaptionBatch, rate: float) -> CaptionBatch:
    """Put words that the decoder itself would write in the place of some of the inputs.

    Each word after BOS is, with this probability, one drawn from the decoder's prediction, which
    was made behind earlier inputs mixed in the same way.

    Args:
        decoder: in train mode; its dropout acts on what the predictions know of the image.
        batch: its targets stay.
        rate: 0 changes nothing, 1 replaces every word.

    Source: Bengio et al. 2015, arXiv:1506.03099.
    """
    inputs = batch.inputs.clone()
    state = decoder.init_state(batch.features).take(batch.owners)
    chosen = torch.rand(inputs.shape, device=inputs.device) < rate
    for position in range(inputs.shape[1] - 1):
        logits, state = decoder.step(inputs[:, position], state)
        for word in (*FORBIDDEN, EOS):  # what is never the word before another
            logits[:, word] = -torch.inf
        drawn = torch.multinomial(logits.float().softmax(1), 1)[:, 0]
        following = inputs[:, position + 1]
        replaced = chosen[:, position + 1] & (following != PAD)
        inputs[:, position + 1] = drawn.where(replaced, following)
    return replace(batch, inputs=inputs)
