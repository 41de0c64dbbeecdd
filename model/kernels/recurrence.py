"""Recurrent layers on the CPU: as torch's GRU, LSTM and RNN, and sooner.

torch leaves each step of these layers to autograd. On a CPU the gradient of every step is then an
array as large as the whole batch, mostly zeros, and the recurrent matrix gets its gradient step by
step. Here one loop goes back through the steps, and one product makes the matrix's gradient. In a
search many beams read the same word, or go on from the same beam: what the word or the state says
to the gates is computed once for all of them.

Letters in shapes: B captions, W words of all captions, H hidden, G gates of H each, n captions that
go on at a step, R beams. The words lie as in a PackedSequence: the first of all captions, then the
second of those that have two, and so on. Under autocast the products are in its type; in training
all that adds up from step to step is in float32.

Source: backpropagation through time, Werbos 1990; the cells as torch.nn documents them.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

from .padding import inference_linear, pad_rows, round_rows

# The state of n captions: (h,) of GRU and RNN, (h, c) of LSTM; each (n, H).
State = tuple[Tensor, ...]


def run_layer(
    cell: nn.RNNBase, layer: int, words: PackedSequence, start: State | None = None
) -> PackedSequence:
    """Run a layer of a cell over captions.

    Args:
        cell: an nn.GRU, an nn.LSTM, or an nn.RNN of tanh; of one direction.
        layer: which of its layers.
        words: its inputs, (W, E), the longest caption first.
        start: the state before the first words, (B, H) each; default 0.

    Returns:
        The outputs, (W, H), of the type of the weights, as is all that adds up on the way.
    """
    input_weight, weight, input_bias, bias = cell.all_weights[layer]
    if start is None:
        shape = (int(words.batch_sizes[0]), cell.hidden_size)
        start = (weight.new_zeros(shape),) * (2 if cell.mode == "LSTM" else 1)
    start = tuple(part.to(weight.dtype) for part in start)
    data = pad_rows(words.data, round_rows(len(words.data)))
    inputs = F.linear(data, input_weight, input_bias)
    outputs: Tensor = _Run.apply(
        STEPS[type(cell)],
        words.batch_sizes.tolist(),
        inputs,
        weight.to(inputs.dtype),
        bias.to(inputs.dtype),
        *start,
    )
    return words._replace(data=outputs)


@torch.no_grad()
def take_step(
    cell: nn.RNNBase, words: Tensor, which: Tensor, state: State, sources: Tensor | None = None
) -> tuple[Tensor, State]:
    """Let rows read a word each, in all layers; without gradients and dropout.

    Args:
        cell: as in `run_layer`.
        words: (U, E), the different ones.
        which: (R,) int64, the word of each row.
        state: (L, S, H) each, the different ones.
        sources: (R,) int64, the state of each row; by default each has its own.

    Returns:
        The outputs (R, H) and the next state, of the type of the products.
    """
    after: list[State] = []
    inputs = words
    for layer, (input_weight, weight, input_bias, bias) in enumerate(cell.all_weights):
        told = inference_linear(inputs, input_weight, input_bias)
        if layer == 0:
            told = told.index_select(0, which)
        before = tuple(part[layer].to(told.dtype) for part in state)
        product = inference_linear(before[0], weight, bias)
        if sources is not None:
            product = product.index_select(0, sources)
            before = tuple(part.index_select(0, sources) for part in before)
        step = STEPS[type(cell)](told, product, before)
        after.append(step.state)
        inputs = step.state[0]
    return inputs, tuple(torch.stack(parts) for parts in zip(*after, strict=True))


class _GruStep:
    """One step of n captions, forward and back."""

    def __init__(self, inputs: Tensor, product: Tensor, state: State) -> None:
        """Take the step.

        Args:
            inputs: (n, G · H), what the words say to the gates.
            product: (n, G · H), what the state says to them.
            state: before the step.
        """
        (before,) = state
        size = before.shape[1]
        gates = (inputs[:, : 2 * size] + product[:, : 2 * size]).sigmoid_()
        self.reset, self.update = gates.split(size, 1)
        self.recalled = product[:, 2 * size :]
        self.new = torch.addcmul(inputs[:, 2 * size :], self.reset, self.recalled).tanh_()
        self.before = before
        self.state = (torch.lerp(self.new, before, self.update),)

    def go_back(self, grads: State, inputs_grad: Tensor, product_grad: Tensor) -> State:
        """Go back over the step.

        Args:
            grads: of `state`.
            inputs_grad: (n, G · H), filled with the gradient of the inputs.
            product_grad: (n, G · H), likewise of the product.

        Returns:
            The gradients of the state before, but for what goes through the product.
        """
        (grad,) = grads
        size = grad.shape[1]
        reset_grad, update_grad, new_grad = inputs_grad.split(size, 1)
        kept = grad * self.update
        torch.mul(grad - kept, 1 - self.new.square(), out=new_grad)
        torch.mul(kept * (1 - self.update), self.before - self.new, out=update_grad)
        through_reset = new_grad * self.reset
        torch.mul(through_reset * (1 - self.reset), self.recalled, out=reset_grad)
        product_grad[:, : 2 * size] = inputs_grad[:, : 2 * size]
        product_grad[:, 2 * size :] = through_reset
        return (kept,)


class _LstmStep:
    """As `_GruStep`."""

    def __init__(self, inputs: Tensor, product: Tensor, state: State) -> None:
        _, self.before = state
        size = self.before.shape[1]
        gates = inputs + product
        self.open, self.forget, self.new, self.output = gates.split(size, 1)
        gates[:, : 2 * size].sigmoid_()
        self.new.tanh_()
        self.output.sigmoid_()
        memory = torch.addcmul(self.open * self.new, self.forget, self.before)
        self.told = memory.tanh()
        self.state = (self.output * self.told, memory)

    def go_back(self, grads: State, inputs_grad: Tensor, product_grad: Tensor) -> State:
        grad, memory_grad = grads
        size = grad.shape[1]
        open_grad, forget_grad, new_grad, output_grad = inputs_grad.split(size, 1)
        through_output = grad * self.output
        memory_grad = torch.addcmul(memory_grad, through_output, 1 - self.told.square())
        torch.mul(through_output * (1 - self.output), self.told, out=output_grad)
        opened, kept = memory_grad * self.open, memory_grad * self.forget
        torch.mul(opened, 1 - self.new.square(), out=new_grad)
        torch.mul(opened * (1 - self.open), self.new, out=open_grad)
        torch.mul(kept * (1 - self.forget), self.before, out=forget_grad)
        product_grad.copy_(inputs_grad)
        return torch.zeros_like(grad), kept


class _RnnStep:
    """As `_GruStep`."""

    def __init__(self, inputs: Tensor, product: Tensor, state: State) -> None:
        self.state = ((inputs + product).tanh_(),)

    def go_back(self, grads: State, inputs_grad: Tensor, product_grad: Tensor) -> State:
        (grad,), (output,) = grads, self.state
        torch.mul(grad, 1 - output.square(), out=inputs_grad)
        product_grad.copy_(inputs_grad)
        return (torch.zeros_like(grad),)


AnyStep = _GruStep | _LstmStep | _RnnStep
STEPS: dict[type[nn.RNNBase], type[AnyStep]] = {
    nn.GRU: _GruStep,
    nn.LSTM: _LstmStep,
    nn.RNN: _RnnStep,
}


class _Run(torch.autograd.Function):
    """All steps of a layer; can be differentiated once.

    The inputs may have rows behind the last word. Products of a step take in some rows behind its
    own, so that they are of few sizes (see `aligned`): zeros on the way forward, those of later
    steps on the way back. What comes of these is left out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        step_type: type[AnyStep],
        sizes: Sequence[int],
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        *state: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.num_rows, ctx.spans = len(inputs), [*pairwise(accumulate(sizes, initial=0))]
        ctx.steps = []
        ctx.ends = [first + round_rows(end - first) for first, end in ctx.spans]
        # Near the end these reach behind the last word.
        ctx.before = inputs.new_zeros(max(len(inputs), *ctx.ends), len(weight[0]))
        for (first, end), padded_end in zip(ctx.spans, ctx.ends, strict=True):
            state = tuple(part[: end - first] for part in state)
            ctx.before[first:end] = state[0]
            product = torch.addmm(bias, ctx.before[first:padded_end], weight.T)[: end - first]
            # What adds up from step to step is in float32.
            step = step_type(
                inputs[first:end].to(state[0].dtype), product.to(state[0].dtype), state
            )
            ctx.steps.append(step)
            state = step.state
        return torch.cat([step.state[0] for step in ctx.steps])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs_grad: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        inputs_grad, product_grad = (
            ctx.before.new_empty(len(ctx.before), len(weight)) for _ in "ab"
        )
        inputs_grad[len(outputs_grad) :] = product_grad[len(outputs_grad) :] = 0
        later: State = tuple(part[:0] for part in ctx.steps[-1].state)
        for (first, end), padded_end in zip(reversed(ctx.spans), reversed(ctx.ends), strict=True):
            # Captions that end here are not in the later steps.
            ended = (0, 0, 0, end - first - len(later[0]))
            grads = [F.pad(part, ended) for part in later]
            grads[0] += outputs_grad[first:end]
            own = product_grad[first:end]
            # What a step has kept is not needed again.
            kept, *rest = ctx.steps.pop().go_back(tuple(grads), inputs_grad[first:end], own)
            if first or any(ctx.needs_input_grad[5:]):  # nobody asks what comes before nothing
                kept = kept + torch.mm(product_grad[first:padded_end], weight)[: end - first]
            later = (kept, *rest)
        weight_grad = product_grad[: ctx.num_rows].T @ ctx.before[: ctx.num_rows]
        return None, None, inputs_grad[: ctx.num_rows], weight_grad, product_grad.sum(0), *later
