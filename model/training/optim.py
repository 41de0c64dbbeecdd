"""Optimizer, learning-rate schedule and running mean of the weights."""

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import TrainConfig
from ..decoders.base import Decoder


def learning_rate_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step; it depends on nothing else, so resuming needs no state.

    `one-cycle` warms up over the first 30 % of the steps (Smith and Topin 2018, arXiv:1708.07120),
    `cosine` over the first 2 %; both then fall to 0 along a cosine. `constant` never changes.
    The names are the choices of `--schedule` in model/config.py.
    """
    if config.schedule == "constant":
        return config.learning_rate
    warmup = (0.3 if config.schedule == "one-cycle" else 0.02) * total_steps
    if step < warmup:
        return config.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * step / warmup)) / 2)
    share = (step - warmup) / max(total_steps - warmup, 1)
    return config.learning_rate * (1 + math.cos(math.pi * share)) / 2


def average_weights(decoder: Decoder, decay: float) -> AveragedModel:
    """Return a running mean of the weights that keeps the share `decay` of itself at each step."""
    average = AveragedModel(decoder, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for layer in average.modules():
        if isinstance(layer, nn.RNNBase):
            layer.flatten_parameters()  # the copies are scattered, which slows cuDNN down
    return average.eval()


def make_optimizer(decoder: Decoder, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on matrices only: not on biases and vectors of rare words."""
    is_decayed = {
        id(parameter): parameter.ndim > 1 and name not in ("embedding.weight", "output_weight")
        for name, parameter in decoder.named_parameters()
    }
    groups = [
        {
            "params": [p for p in decoder.parameters() if is_decayed[id(p)] == decay],
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for decay in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
