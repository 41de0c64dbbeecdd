"""Cross-entropy of a linear layer's logits, which are never all in memory at once.

Letters in shapes: R rows, H width, V classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .padding import pad_rows, round_up

# Rows whose logits exist at a time: few enough for a CPU's cache, many enough to fill a GPU.
CPU_ROWS, GPU_ROWS = 512, 16384


def linear_cross_entropy(
    inputs: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Equal to `F.cross_entropy(F.linear(inputs, weight, bias), targets, label_smoothing=…)`.

    Args:
        inputs: (R', H) of any float type; rows behind the R of the targets have no part. Under
            autocast the products, with the bias, and the gradients of the logits are in its type,
            as torch's are; softmax and sums are in the weights' type.
        weight: (V, H).
        bias: (V,).
        targets: (R,) int64.
        label_smoothing: share of the target given to all classes alike.

    Returns:
        Scalar, the mean over the rows in nats. It can be differentiated once.
    """
    kind = inputs.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    loss: Tensor = _LinearCrossEntropy.apply(inputs, weight, bias, targets, label_smoothing, dtype)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients on the way forward, while the logits of a chunk are at hand."""

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
        # The classes that fill up the last aligned block have no probability.
        width = round_up(num_classes)
        cast = pad_rows(weight, width).to(dtype)
        padded_bias = pad_rows(bias, width, -torch.inf).to(dtype)
        words = inputs.to(dtype)
        inputs_grad = torch.zeros_like(words)
        weight_grad = weight.new_zeros(cast.shape)
        bias_grad = bias.new_zeros(len(cast))
        loss = bias.new_zeros(())
        with torch.autocast(inputs.device.type, enabled=False):
            for start in range(0, num_targets, rows):
                chunk = words[start : start + rows]
                target = targets[start : start + rows, None]
                whole = torch.addmm(padded_bias, chunk, cast.T)
                logits = whole[: len(target)]
                probs = F.softmax(logits, 1, dtype=bias.dtype)
                # By the likeliest class, whose probability is not 0. An exp of all
                # log-probabilities would take longer than the softmax.
                most = logits.amax(1, keepdim=True).to(bias.dtype)
                log_most = probs.amax(1, keepdim=True).log()
                # In this order: the difference of two logits is exact, or nearly.
                chosen = logits.gather(1, target) - most + log_most
                loss -= (1 - label_smoothing) * chosen.sum()
                if label_smoothing:
                    of_all = logits[:, :num_classes].sum(dtype=bias.dtype)
                    of_all -= num_classes * (most - log_most).sum()
                    loss -= label_smoothing / num_classes * of_all
                    probs -= label_smoothing / num_classes
                difference = logits.copy_(probs)
                share = 1 - label_smoothing + label_smoothing / num_classes
                difference.scatter_(1, target, chosen.exp_().sub_(share).to(dtype))

                bias_grad += difference.sum(0, dtype=bias.dtype)
                whole[len(target) :] = 0
                torch.mm(whole, cast, out=inputs_grad[start : start + len(chunk)])
                if dtype == weight.dtype:
                    weight_grad.addmm_(whole.T, chunk)
                else:
                    weight_grad += whole.T @ chunk
        weight_grad, bias_grad = weight_grad[:num_classes], bias_grad[:num_classes]
        ctx.save_for_backward(inputs_grad, weight_grad, bias_grad)
        ctx.inputs_dtype, ctx.num_targets = inputs.dtype, num_targets
        return loss / num_targets

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs_grad, weight_grad, bias_grad = ctx.saved_tensors
        # Only now, so that no half-precision product is of numbers as small as 1 / R.
        factor = loss_grad / ctx.num_targets
        return (
            (inputs_grad * factor).to(ctx.inputs_dtype),
            weight_grad * factor,
            bias_grad * factor,
            None,
            None,
            None,
        )
