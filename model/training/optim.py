"""Optimizer, learning-rate schedule and running mean of the weights."""

import math
from typing import cast

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import TrainConfig
from ..decoders.decoder import Decoder


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


def average_weights(decoder: Decoder, decay: float) -> AveragedModel:
    """A running mean of the weights, `decay` of it kept at every step."""
    average = AveragedModel(decoder, multi_avg_fn=get_ema_multi_avg_fn(decay))
    copy = cast(Decoder, average.module)
    copy.cell.flatten_parameters()  # they are scattered, which cuDNN minds
    return average.eval()


def make_optimizer(decoder: Decoder, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW that decays the matrices only: biases and rare words' vectors should not fade."""
    decayed = {
        id(parameter): parameter.ndim > 1 and name not in ("embedding.weight", "output_weight")
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
