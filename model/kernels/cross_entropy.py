"""Cross-entropy of a linear layer, computed in chunks: memory never holds all logits.

Letters in shapes: R rows, H input width, V classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .padding import pad_rows, round_up

# Rows per chunk: small enough for a CPU's cache, large enough to use a whole GPU.
CPU_ROWS, GPU_ROWS = 512, 16384


def linear_cross_entropy(
    inputs: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Return `F.cross_entropy(F.linear(inputs, weight, bias), targets, label_smoothing=…)`.

    Under autocast the matrix products and the gradients of the logits use its dtype, as in torch;
    softmax and sums use the dtype of the weights.

    Args:
        inputs: (R', H), any float dtype. Rows beyond the R targets are padding and are ignored.
        weight: (V, H).
        bias: (V,).
        targets: (R,) int64.
        label_smoothing: share of the target probability spread evenly over all classes.

    Returns:
        Scalar, the mean over the R rows, in nats. It can be differentiated only once.
    """
    kind = inputs.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    loss: Tensor = _LinearCrossEntropy.apply(inputs, weight, bias, targets, label_smoothing, dtype)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, while the logits of a chunk are in the cache."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        label_smoothing: float,
        dtype: torch.dtype,
    ) -> Tensor:
        num_targets, num_classes = len(targets), len(weight)
        rows = CPU_ROWS if inputs.device.type == "cpu" else GPU_ROWS
        # Padding classes have bias -inf, and so probability 0.
        padded_classes = round_up(num_classes)
        cast_weight = pad_rows(weight, padded_classes).to(dtype)
        cast_bias = pad_rows(bias, padded_classes, -torch.inf).to(dtype)
        cast_inputs = inputs.to(dtype)
        inputs_grad = torch.zeros_like(cast_inputs)
        weight_grad = weight.new_zeros(cast_weight.shape)
        bias_grad = bias.new_zeros(len(cast_weight))
        loss = bias.new_zeros(())
        with torch.autocast(inputs.device.type, enabled=False):
            for start in range(0, num_targets, rows):
                chunk = cast_inputs[start : start + rows]
                target = targets[start : start + rows, None]
                logits = torch.addmm(cast_bias, chunk, cast_weight.T)
                nonpad = logits[: len(target)]
                target_term, smoothing_term = _replace_logits_by_gradient(
                    nonpad, target, num_classes, label_smoothing, bias.dtype
                )
                loss -= target_term
                loss -= smoothing_term
                logits_grad = logits
                bias_grad += nonpad.sum(0, dtype=bias.dtype)
                logits_grad[len(target) :] = 0
                torch.mm(logits_grad, cast_weight, out=inputs_grad[start : start + len(chunk)])
                if dtype == weight.dtype:
                    weight_grad.addmm_(logits_grad.T, chunk)
                else:
                    weight_grad += logits_grad.T @ chunk
        ctx.save_for_backward(inputs_grad, weight_grad[:num_classes], bias_grad[:num_classes])
        ctx.inputs_dtype, ctx.num_targets = inputs.dtype, num_targets
        return loss / num_targets

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs_grad, weight_grad, bias_grad = ctx.saved_tensors
        # Divide by R only here: half-precision gradients would underflow in the forward pass.
        factor = loss_grad / ctx.num_targets
        return (
            (inputs_grad * factor).to(ctx.inputs_dtype),
            weight_grad * factor,
            bias_grad * factor,
            None,
            None,
            None,
        )


def _replace_logits_by_gradient(
    logits: Tensor, target: Tensor, num_classes: int, label_smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Overwrite logits with the gradient of their summed loss, and return the loss.

    Args:
        logits: (R, V'), V' ≥ V, overwritten; padding classes are −inf.
        target: (R, 1) int64.
        num_classes: V.
        label_smoothing: as in `linear_cross_entropy`.
        dtype: dtype of the softmax and of sums.

    Returns:
        Two scalars whose sum is the negative loss, summed over rows: the term of the target class
        and the term of label smoothing.
    """
    smoothing_per_class = label_smoothing / num_classes
    target_share = 1 - label_smoothing + smoothing_per_class
    probs = F.softmax(logits, 1, dtype=dtype)
    # log p = (logit - max logit) + log(max p), which saves a log_softmax. max p is never 0. The
    # logits are subtracted first, because their difference is nearly exact.
    max_logit = logits.amax(1, keepdim=True).to(dtype)
    max_log_prob = probs.amax(1, keepdim=True).log()
    target_log_prob = logits.gather(1, target) - max_logit + max_log_prob
    target_term = (1 - label_smoothing) * target_log_prob.sum()
    smoothing_term = torch.zeros_like(target_term)
    if label_smoothing:
        sum_log_probs = logits[:, :num_classes].sum(dtype=dtype)
        sum_log_probs -= num_classes * (max_logit - max_log_prob).sum()
        smoothing_term = smoothing_per_class * sum_log_probs
        probs -= smoothing_per_class
    logits.copy_(probs)
    target_grad = target_log_prob.exp_().sub_(target_share)
    logits.scatter_(1, target, target_grad.to(logits.dtype))
    return target_term, smoothing_term
