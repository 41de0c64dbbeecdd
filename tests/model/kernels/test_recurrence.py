"""Recurrent layers against torch's own in float64."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from showtell.features.device import cpu_multiplies_bf16
from showtell.model.kernels import recurrence
from showtell.model.kernels.recurrence import read_shared_rows
from showtell.model.kernels.recurrence_backward import run_layer

CELLS = [nn.GRU, nn.LSTM, nn.RNN]
LENGTHS = torch.tensor([5, 5, 3, 1])
MANY_LENGTHS = torch.tensor([9] * 2 + [5] * 20 + [4] + [1] * 18)  # 41 captions, 23, 22, 2


@pytest.fixture
def poisoned_memory():
    """Fill what is not initialised with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random_case(cell_type: type[nn.RNNBase], lengths: torch.Tensor = LENGTHS):
    torch.manual_seed(0)
    cell = cell_type(7, 6, batch_first=True).double()
    num_captions, num_steps = len(lengths), int(lengths[0])
    inputs = torch.randn(num_captions, num_steps, 7, dtype=torch.float64, requires_grad=True)
    num_states = 2 if cell_type is nn.LSTM else 1
    start = [
        torch.randn(num_captions, 6, dtype=torch.float64, requires_grad=True)
        for _ in range(num_states)
    ]
    return cell, inputs, start


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("lengths", [LENGTHS, MANY_LENGTHS])
@pytest.mark.parametrize("cell_type", CELLS)
def test_run_layer_has_torchs_outputs_and_gradients(
    cell_type: type[nn.RNNBase], lengths: torch.Tensor
) -> None:
    cell, inputs, start = random_case(cell_type, lengths)
    packed = pack_padded_sequence(inputs, lengths, batch_first=True)
    factors = torch.randn(len(packed.data), 6, dtype=torch.float64)
    leaves = [inputs, *start, *cell.parameters()]

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
def test_run_layer_starts_from_zeros_by_default(cell_type: type[nn.RNNBase]) -> None:
    cell, inputs, _ = random_case(cell_type)
    packed = pack_padded_sequence(inputs, LENGTHS, batch_first=True)
    factors = torch.randn(14, 6, dtype=torch.float64)
    leaves = [inputs, *cell.parameters()]
    outputs, expected = run_layer(cell, 0, packed).data, cell(packed)[0].data
    torch.testing.assert_close(outputs, expected)
    found = torch.autograd.grad((outputs * factors).sum(), leaves, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad((expected * factors).sum(), leaves))


@pytest.mark.parametrize("cell_type", CELLS)
def test_run_layer_uses_the_weights_of_its_layer(cell_type: type[nn.RNNBase]) -> None:
    _, inputs, start = random_case(cell_type)
    deep = cell_type(7, 6, num_layers=2, batch_first=True).double()
    packed = pack_padded_sequence(inputs, LENGTHS, batch_first=True)
    below = run_layer(deep, 0, packed, tuple(start))
    outputs = run_layer(deep, 1, below, tuple(start))
    states = tuple(torch.stack([part, part]) for part in start)
    expected, _ = deep(packed, states if cell_type is nn.LSTM else states[0])
    torch.testing.assert_close(outputs.data, expected.data)


@pytest.mark.parametrize("hidden_index", [None, torch.tensor([1, 1, 0, 2, 0])])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell_type", CELLS)
def test_shared_rows_equal_separate_rows(
    cell_type: type[nn.RNNBase], num_layers: int, hidden_index: torch.Tensor | None
) -> None:
    torch.manual_seed(0)
    cell = cell_type(7, 6, num_layers, batch_first=True).double()
    inputs, input_index = torch.randn(3, 7, dtype=torch.float64), torch.tensor([2, 0, 0, 2, 1])
    num_states = 2 if cell_type is nn.LSTM else 1
    num_rows = 5 if hidden_index is None else 3
    hidden = tuple(
        torch.randn(num_layers, num_rows, 6, dtype=torch.float64) for _ in range(num_states)
    )
    outputs, after = read_shared_rows(cell, inputs, input_index, hidden, hidden_index)
    if hidden_index is not None:
        hidden = tuple(part[:, hidden_index] for part in hidden)
    expected, end = cell(inputs[input_index][:, None], hidden if num_states == 2 else hidden[0])
    torch.testing.assert_close(outputs, expected[:, 0])
    torch.testing.assert_close(after, end if num_states == 2 else (end,))


@pytest.mark.skipif(not cpu_multiplies_bf16(), reason="torch's LSTM needs bf16 instructions")
@pytest.mark.parametrize("cell_type", CELLS)
def test_run_layer_is_as_exact_as_torch_under_autocast(cell_type: type[nn.RNNBase]) -> None:
    """Products are in bfloat16, but rounding does not accumulate over the steps."""
    torch.manual_seed(0)
    cell = cell_type(32, 64, batch_first=True)
    packed = pack_padded_sequence(torch.randn(8, 20, 32), torch.full((8,), 20), batch_first=True)
    start = [torch.randn(8, 64) for _ in range(2 if cell_type is nn.LSTM else 1)]
    states = tuple(part[None] for part in start)
    states = states if cell_type is nn.LSTM else states[0]

    def run(own: bool, autocast: bool) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = run_layer(cell, 0, packed, tuple(start)) if own else cell(packed, states)[0]
        assert outputs.data.dtype == torch.float32 or not own
        grads = torch.autograd.grad(outputs.data.square().sum(), cell.parameters())
        assert all(grad.dtype == torch.float32 for grad in grads)
        return [outputs.data.detach().float(), *grads]

    exact = run(own=False, autocast=False)
    for true, ours, theirs in zip(exact, run(True, True), run(False, True), strict=True):
        assert 0 < (ours - true).norm() < 1.1 * (theirs - true).norm()


@pytest.mark.parametrize("attention", ["none", "adaptive"])
@pytest.mark.parametrize("image_as", ["first-input", "initial-state"])
def test_run_layer_always_starts_in_float32(
    random_decoder, monkeypatch, attention: str, image_as: str
) -> None:
    outputs: list[torch.Tensor] = []

    def spy(*args: object) -> PackedSequence:
        outputs.append((packed := run_layer(*args)).data)
        return packed

    monkeypatch.setattr(recurrence, "run_layer", spy)
    gru = random_decoder(attention=attention, image_as=image_as).float().train()
    features = torch.rand((3, 4, 6) if attention != "none" else (3, 6))
    with torch.autocast("cpu", torch.bfloat16):
        gru(features, torch.randint(4, 12, (3, 5)), lengths=torch.tensor([5, 3, 2]))
    assert [output.dtype for output in outputs] == [torch.float32]


def test_weights_changed_before_the_backward_pass_are_an_error() -> None:
    cell, inputs, start = random_case(nn.GRU)
    packed = pack_padded_sequence(inputs, LENGTHS, batch_first=True)
    outputs = run_layer(cell, 0, packed, tuple(start))
    with torch.no_grad():
        cell.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.data.sum().backward()
