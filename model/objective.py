"""What a training step minimises, and how: the loss, the learning rate, the optimizer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pipeline.config import TrainConfig
from .batches import CaptionBatch
from .decoder import Decoder


def caption_loss(decoder: Decoder, batch: CaptionBatch, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the real words of a batch, a scalar in nats; padding never enters."""
    outputs = decoder(batch.features, batch.inputs, batch.owners, batch.lengths)  # (B, T, H)
    logits = decoder.logits(outputs.flatten(0, 1)[batch.real])  # (R, V)
    targets = batch.targets.flatten()[batch.real]
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def learning_rate_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """The schedule, a function of the step alone, so that a resumed run needs no other state.

    `one-cycle` warms up over the first 30 % (Smith and Topin 2018, arXiv:1708.07120), `cosine` over
    the first 2 %; both then fall along a cosine to nothing.
    """
    if config.schedule == "constant":
        return config.learning_rate
    warmup = (0.3 if config.schedule == "one-cycle" else 0.02) * total_steps
    if step < warmup:
        return config.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * step / warmup)) / 2)
    share = (step - warmup) / max(total_steps - warmup, 1)
    return config.learning_rate * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(decoder: Decoder, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW that decays the matrices only: biases and rare words' vectors should not fade."""
    decayed = {
        id(parameter): parameter.ndim > 1 and name != "embedding.weight"
        for name, parameter in decoder.named_parameters()
    }
    groups = [
        {
            "params": [p for p in decoder.parameters() if decayed[id(p)] == decay],
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for decay in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
