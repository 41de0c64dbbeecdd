"""Scaled dot-product attention, with a faster backward pass on the CPU."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Return `F.scaled_dot_product_attention` of these arguments.

    On the CPU, plain matrix products take the place of torch's fused kernel. That one is made for
    long sequences: for captions in bfloat16, its backward pass takes five times as long.

    Args:
        query: (N, A, Q, W), of A heads.
        key: (N, A, C, W).
        value: (N, A, C, W).
        mask: bool, broadcast to (N, A, Q, C): which keys a query may attend to. None for all.
        causal: whether query i attends to the first i + 1 keys only; without a mask.

    Returns:
        (N, A, Q, W).
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    return attention_weights(query, key, mask, causal=causal).to(value.dtype) @ value


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Return the (N, A, Q, C) weights that `attend` averages the values with."""
    scores = (query / math.sqrt(query.shape[3])) @ key.transpose(2, 3)
    if causal:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        zero = scores.new_zeros(())
        scores = scores + zero.where(mask, -torch.inf)
    return scores.softmax(3)
