import pytest
import torch

from showtell.model.kernels.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_a_share_p_and_keeps_the_mean(p):
    torch.manual_seed(0)
    dropped = Dropout(p)(torch.ones(1000, 999))
    share = float((dropped == 0).float().mean())
    assert share == pytest.approx(p, abs=1 / 512 + 0.002)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)
    assert len(dropped.unique()) == 2


def test_values_are_dropped_independently():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(40_000, 16)) > 0).double()
    between = torch.corrcoef(kept.T) - torch.eye(16)
    assert between.abs().max() < 0.025  # 5 standard deviations
    following = torch.corrcoef(torch.stack([kept[:-1, 0], kept[1:, 0]]))
    assert following[0, 1].abs() < 0.025


def test_gradient_equals_the_mask():
    torch.manual_seed(0)
    values = torch.randn(50, 7, requires_grad=True)
    dropped = Dropout(0.25)(values)
    dropped.sum().backward()
    torch.testing.assert_close(values.grad * values, dropped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_shape_are_kept(dtype):
    dropped = Dropout(0.5)(torch.ones(3, 5, dtype=dtype))
    assert dropped.dtype == dtype and dropped.shape == (3, 5)


def test_same_seed_drops_the_same_values():
    draws = [(torch.manual_seed(5), Dropout(0.5)(torch.ones(99)))[1] for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[1], Dropout(0.5)(torch.ones(99)))


@pytest.mark.parametrize(("p", "train"), [(0.5, False), (0.0, True)])
def test_nothing_is_dropped_in_eval_mode_or_with_p_0(p, train):
    values = torch.randn(20)
    assert torch.equal(Dropout(p).train(train)(values), values)


def test_p_1_drops_everything_and_empty_input_is_allowed():
    assert Dropout(1.0)(torch.ones(9)).tolist() == [0] * 9
    assert Dropout(0.5)(torch.ones(0, 4)).shape == (0, 4)
