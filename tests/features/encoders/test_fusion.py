import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models

from showtell.features.encoders.fusion import FusedConvolution, fold_batch_norms, fuse_activations

HAS_ONEDNN = torch.backends.mkldnn.is_available()
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def randomize_batch_norms(network):
    """Give batch norms random statistics instead of 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.5, 0.5),
                ("running_mean", -0.3, 0.3),
                ("running_var", 0.5, 2.0),
            ):
                values = getattr(module, name).data
                values.copy_(torch.rand(values.shape, generator=generator) * (high - low) + low)
    return network.eval()


def count(network, kind):
    return sum(isinstance(module, kind) for module in network.modules())


def assert_equal_outputs(first, second, inputs, tolerance=1e-5):
    with torch.inference_mode():
        expected, got = first(inputs), second(inputs)
    assert torch.dist(got, expected) < tolerance * expected.norm()


class DependsOnInput(nn.Module):
    """A layer that cannot be traced, because what it calls depends on its input."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, inputs):
        doubled = self.conv(inputs) * 2
        return doubled if doubled.sum() > 0 else -doubled


class PartlyTraceable(nn.Module):
    """A shared convolution is also called inside a layer that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.middle = DependsOnInput(nn.Conv2d(3, 3, 1))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, inputs):
        return self.norm(self.middle.conv(self.middle(self.first(inputs))))


def test_layers_around_one_that_cannot_be_traced_are_folded():
    network = randomize_batch_norms(PartlyTraceable())
    reference = copy.deepcopy(network)
    fold_batch_norms(network)
    assert count(network, nn.BatchNorm2d) == 1
    assert isinstance(network.first[1], nn.Identity)
    assert_equal_outputs(reference, network, noise(2, 3, 8, 8))
    if HAS_ONEDNN:
        assert count(fuse_activations(network), FusedConvolution) == 1
        assert_equal_outputs(reference, fuse_activations(network), noise(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("encoder", "num_left"),
    [("resnet18", 0), ("mobilenet_v3_small", 0), ("densenet121", 62), ("vgg11", 0)],
)
def test_folded_network_computes_the_same(encoder, num_left):
    torch.manual_seed(0)
    network = randomize_batch_norms(models.get_model(encoder, weights=None))
    reference = copy.deepcopy(network)
    fold_batch_norms(network)
    assert count(network, nn.BatchNorm2d) == num_left
    assert_equal_outputs(reference, network, noise(2, 3, 64, 64))


class Shared(nn.Module):
    """A convolution before two batch norms, and an output that two layers use."""

    def __init__(self):
        super().__init__()
        self.twice, self.forked = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.first, self.second, self.third = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x):
        x = self.second(self.twice(self.first(self.twice(x))))
        forked = self.forked(x)
        return self.third(forked) + forked


def test_folding_skips_shared_layers():
    network = randomize_batch_norms(Shared())
    reference = copy.deepcopy(network)
    fold_batch_norms(network)
    assert count(network, nn.BatchNorm2d) == 3
    assert_equal_outputs(reference, network, noise(2, 3, 8, 8))


class Untraceable(nn.Module):
    """Its calls depend on its input."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x.relu() if x.sum() > 0 else x


def test_network_that_cannot_be_traced_is_not_changed():
    network = randomize_batch_norms(Untraceable())
    fold_batch_norms(network)
    assert count(network, nn.BatchNorm2d) == 1
    assert fuse_activations(network) is network


@needs_onednn
@pytest.mark.parametrize(
    ("encoder", "num_fused"),
    [("resnet18", 17), ("mobilenet_v2", 35), ("squeezenet1_1", 26), ("googlenet", 57)],
)
def test_fused_network_computes_the_same(encoder, num_fused):
    torch.manual_seed(0)
    options = {"init_weights": False} if encoder == "googlenet" else {}
    network = randomize_batch_norms(models.get_model(encoder, weights=None, **options))
    fold_batch_norms(network)
    fused = fuse_activations(network)
    assert count(fused, FusedConvolution) == num_fused
    assert count(network, FusedConvolution) == 0
    for inputs in (noise(2, 3, 64, 64), noise(1, 3, 96, 64)):
        assert_equal_outputs(network, fused, inputs)


@needs_onednn
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish()])
def test_each_activation_is_fused_exactly(activation):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), activation).eval()
    fused = fuse_activations(network)
    assert count(fused, FusedConvolution) == 1
    assert_equal_outputs(network, fused, 9 * noise(2, 3, 16, 16))


class Branches(nn.Module):
    """Two convolutions whose outputs meet in different ways."""

    def __init__(self, case):
        super().__init__()
        self.case = case
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.relu, self.silu = nn.ReLU(), nn.SiLU()

    def forward(self, x):
        first = self.relu(self.first(x))
        if self.case == "residual":
            return self.relu(self.second(first) + first)
        if self.case == "residual used later":
            return self.relu(self.second(first) + first) * first
        if self.case == "input as residual":
            return self.relu(self.second(x) + first)
        if self.case == "added in place":
            y = self.second(first)
            y += x
            return self.relu(y)
        if self.case == "two activations":
            return self.silu(self.relu(self.second(first)))
        if self.case == "number":
            return self.relu(self.second(first) + 0.5)
        if self.case == "scaled":
            return self.relu(torch.add(self.second(first), first, alpha=2))
        if self.case == "doubled":
            y = self.second(first)
            return self.relu(y + y)
        return functional.relu(self.second(first) + self.second(first))  # called twice


@needs_onednn
@pytest.mark.parametrize(
    ("case", "num_fused"),
    [
        ("residual", 2),
        ("residual used later", 2),
        ("input as residual", 2),
        ("added in place", 2),
        ("two activations", 2),
        ("number", 1),
        ("scaled", 1),
        ("doubled", 1),
        ("called twice", 1),
    ],
)
def test_fusing_keeps_every_kind_of_addition(case, num_fused):
    torch.manual_seed(0)
    network = Branches(case).eval()
    fused = fuse_activations(network)
    assert count(fused, FusedConvolution) == num_fused
    inputs = noise(2, 4, 8, 8)
    before = inputs.clone()
    assert_equal_outputs(network, fused, inputs)
    assert torch.equal(inputs, before)


def test_padding_that_onednn_does_not_support_is_not_fused():
    for conv in (
        nn.Conv2d(3, 3, 3, padding="same"),
        nn.Conv2d(3, 3, 3, 1, 1, padding_mode="reflect"),
    ):
        network = nn.Sequential(conv, nn.ReLU()).eval()
        assert fuse_activations(network) is network
