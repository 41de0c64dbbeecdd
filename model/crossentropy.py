"""Cross-entropy of a linear layer's logits, which are never all in memory at once.

Letters in shapes: R rows, H width, V classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .aligned import empty_rows

# Rows whose logits exist at a time: few enough for a CPU's cache, many enough to fill a GPU.
CPU_ROWS, GPU_ROWS = 512, 8192


def linear_cross_entropy(
    inputs: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Equal to `F.cross_entropy(F.linear(inputs, weight, bias), targets, label_smoothing=…)`.

    Args:
        inputs: (R, H) of any float type. Under autocast the products are in its type; softmax and
            sums are in the weights' type.
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
        num_classes = len(weight)
        rows = CPU_ROWS if inputs.device.type == "cpu" else GPU_ROWS
        products = empty_rows(inputs, min(rows, len(inputs)), num_classes, dtype)
        inputs_grad = torch.empty_like(inputs, dtype=dtype)
        weight_grad, bias_grad = torch.zeros_like(weight), torch.zeros_like(bias)
        loss = torch.zeros_like(bias[0])
        cast = weight.to(dtype)
        with torch.autocast(inputs.device.type, enabled=False):
            for start in range(0, len(inputs), rows):
                chunk = inputs[start : start + rows].to(dtype)
                target = targets[start : start + rows, None]
                logits = torch.mm(chunk, cast.T, out=products[: len(chunk)]).to(bias.dtype)
                logits += bias
                loss -= (1 - label_smoothing) * logits.gather(1, target).sum()
                loss -= label_smoothing / num_classes * logits.sum()
                most = logits.amax(1, keepdim=True)
                probabilities = logits.sub_(most).exp_()
                total = probabilities.sum(1, keepdim=True)
                loss += (total.log() + most).sum()

                difference = probabilities.div_(total).sub_(label_smoothing / num_classes)
                share = difference.new_full(target.shape, label_smoothing - 1)
                difference.scatter_add_(1, target, share)
                bias_grad += difference.sum(0)
                difference = difference.to(dtype)
                torch.mm(difference, cast, out=inputs_grad[start : start + len(chunk)])
                if dtype == weight.dtype:
                    weight_grad.addmm_(difference.T, chunk)
                else:
                    weight_grad += difference.T @ chunk
        ctx.save_for_backward(inputs_grad, weight_grad, bias_grad)
        ctx.inputs_dtype = inputs.dtype
        return loss / len(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs_grad, weight_grad, bias_grad = ctx.saved_tensors
        # Only now, so that no half-precision product is of numbers as small as 1 / R.
        factor = loss_grad / len(inputs_grad)
        return (
            (inputs_grad * factor).to(ctx.inputs_dtype),
            weight_grad * factor,
            bias_grad * factor,
            None,
            None,
            None,
        )
