import pytest
import torch

from showtell.model.kernels import topk as largest
from showtell.model.kernels.topk import topk


@pytest.mark.parametrize("width", [1, 10, 128, 1000, 2543])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_topk_equals_torchs(width: int, count: int) -> None:
    generator = torch.Generator().manual_seed(width)
    values = torch.rand(9, width, generator=generator)
    count = min(count, width)
    found, places = topk(values, count)
    expected = values.topk(count, 1)
    assert torch.equal(found, expected.values) and torch.equal(places, expected.indices)


def test_equal_and_infinite_values_are_found_once_each(monkeypatch) -> None:
    monkeypatch.setattr(largest, "ROWS", 4)
    values = torch.full((3, 403), -torch.inf)
    values[:, [1, 402, 40]] = torch.tensor([5.0, 5.0, 7.0])
    found, places = topk(values, 5)
    assert found.tolist() == [[7, 5, 5, -torch.inf, -torch.inf]] * 3
    assert torch.equal(values.gather(1, places), found)
    assert all(len(set(row)) == 5 for row in places.tolist())


def test_indices_in_a_slice_are_relative_to_the_slice() -> None:
    values = torch.rand(4, 2560, generator=torch.Generator().manual_seed(0))[:, :2543]
    assert torch.equal(topk(values, 10)[1], values.topk(10, 1).indices)
