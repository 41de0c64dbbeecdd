import pytest
import torch
import torch.nn.functional as F

from showtell.model.kernels.linear import linear


@pytest.mark.parametrize("num_rows", [0, 1, 16, 37])
@pytest.mark.parametrize("autocast", [False, True])
def test_linear_equals_torchs_when_decoding(num_rows, autocast):
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(n, 8, generator=generator) for n in (num_rows, 23))
    bias = torch.randn(23, generator=generator)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = linear(inputs, weight, bias), F.linear(inputs, weight, bias)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


def test_linear_has_gradients() -> None:
    inputs, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    weight.requires_grad_()
    (found,) = torch.autograd.grad(linear(inputs, weight, bias).square().sum(), weight)
    (expected,) = torch.autograd.grad(F.linear(inputs, weight, bias).square().sum(), weight)
    torch.testing.assert_close(found, expected)
