"""Recurrent layers that are trained on the CPU, against torch's own in float64."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from showtell.model.recurrence import run_layer

CELLS = [nn.GRU, nn.LSTM, nn.RNN]
LENGTHS = torch.tensor([5, 5, 3, 1])


def random_case(cell_type: type[nn.RNNBase], dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    cell = cell_type(7, 6, batch_first=True).to(dtype)
    words = torch.randn(4, 5, 7, dtype=dtype, requires_grad=True)
    num_states = 2 if cell_type is nn.LSTM else 1
    start = [torch.randn(4, 6, dtype=dtype, requires_grad=True) for _ in range(num_states)]
    return cell, words, start


@pytest.mark.parametrize("cell_type", CELLS)
def test_outputs_and_gradients_are_those_of_torch(cell_type: type[nn.RNNBase]) -> None:
    cell, words, start = random_case(cell_type)
    packed = pack_padded_sequence(words, LENGTHS, batch_first=True)
    factors = torch.randn(14, 6, dtype=torch.float64)
    leaves = [words, *start, *cell.parameters()]

    outputs = run_layer(cell, 0, packed, tuple(start))
    found = torch.autograd.grad((outputs.data * factors).sum(), leaves, retain_graph=True)
    states = tuple(part[None] for part in start)
    expected, _ = cell(packed, states if cell_type is nn.LSTM else states[0])
    reference = torch.autograd.grad((expected.data * factors).sum(), leaves)

    torch.testing.assert_close(outputs.data, expected.data)
    assert torch.equal(outputs.batch_sizes, expected.batch_sizes)
    for one, other in zip(found, reference, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cell_type", CELLS)
def test_upper_layers_have_matrices_of_their_own(cell_type: type[nn.RNNBase]) -> None:
    _, words, start = random_case(cell_type)
    deep = cell_type(7, 6, num_layers=2, batch_first=True).double()
    packed = pack_padded_sequence(words, LENGTHS, batch_first=True)
    below = run_layer(deep, 0, packed, tuple(start))
    outputs = run_layer(deep, 1, below, tuple(start))
    states = tuple(torch.stack([part, part]) for part in start)
    expected, _ = deep(packed, states if cell_type is nn.LSTM else states[0])
    torch.testing.assert_close(outputs.data, expected.data)


@pytest.mark.parametrize("cell_type", CELLS)
def test_under_autocast_products_are_in_bfloat16_and_gradients_near(
    cell_type: type[nn.RNNBase],
) -> None:
    cell, words, start = random_case(cell_type, torch.float32)
    packed = pack_padded_sequence(words, LENGTHS, batch_first=True)
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = run_layer(cell, 0, packed, tuple(start)).data
        assert outputs.dtype == (torch.bfloat16 if enabled else torch.float32)
        grads.append(torch.autograd.grad(outputs.float().square().sum(), cell.parameters()))
    for exact, near in zip(*grads, strict=True):
        assert near.dtype == torch.float32
        assert (near - exact).norm() < 0.03 * exact.norm()
