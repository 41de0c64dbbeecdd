import pytest
import torch
import torch.nn.functional as F

from showtell.model.kernels import cross_entropy
from showtell.model.kernels.cross_entropy import linear_cross_entropy


def problem(num_rows=7, width=5, num_classes=23, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = [(num_rows, width), (num_classes, width), (num_classes,)]
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    targets = torch.randint(num_classes, (num_rows,), generator=generator)
    return [tensor.requires_grad_() for tensor in tensors], targets


@pytest.mark.parametrize("rows_at_once", [3, 512])
def test_padding_rows_are_ignored(rows_at_once, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CPU_ROWS", rows_at_once)
    parameters, targets = problem()
    few = linear_cross_entropy(parameters[0][:4], *parameters[1:], targets[:4], 0.1)
    more = linear_cross_entropy(*parameters, targets[:4], 0.1)
    torch.testing.assert_close(more, few)
    expected = torch.autograd.grad(few, parameters)
    found = torch.autograd.grad(more, parameters)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def in_two_steps(inputs, weight, bias, targets, label_smoothing):
    return F.cross_entropy(F.linear(inputs, weight, bias), targets, label_smoothing=label_smoothing)


@pytest.mark.parametrize("rows_at_once", [1, 3, 7, 512])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("num_classes", [1, 16, 23])
def test_loss_and_gradients_equal_torchs(rows_at_once, label_smoothing, num_classes, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CPU_ROWS", rows_at_once)
    parameters, targets = problem(num_classes=num_classes)
    found = linear_cross_entropy(*parameters, targets, label_smoothing)
    expected = in_two_steps(*parameters, targets, label_smoothing)
    torch.testing.assert_close(found, expected)
    pairs = zip(
        torch.autograd.grad(3 * found, parameters),
        torch.autograd.grad(3 * expected, parameters),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_large_logits_do_not_overflow():
    parameters, targets = problem(dtype=torch.float32)
    with torch.no_grad():
        parameters[0].mul_(1e3)
    found = linear_cross_entropy(*parameters, targets)
    torch.testing.assert_close(found, in_two_steps(*parameters, targets, 0.0))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(found, parameters))


def test_autocast_applies_to_products_and_not_to_sums():
    parameters, targets = problem(num_rows=600, width=32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(*parameters, targets, 0.1)
    expected = in_two_steps(*parameters, targets, 0.1)
    assert found.dtype == torch.float32
    assert 0 < torch.dist(found, expected) < 0.02 * expected
    pairs = zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        assert 0 < torch.dist(ours, theirs) < 0.02 * theirs.norm()


def test_input_gradient_has_the_inputs_dtype():
    parameters, targets = problem(dtype=torch.float32)
    half = parameters[0].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(half, *parameters[1:], targets).backward()
    assert half.grad.dtype == torch.bfloat16
