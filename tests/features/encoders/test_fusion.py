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


def shake(network):
    """Give batch normalisations statistics that are not the trivial ones."""
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


@pytest.mark.parametrize(
    ("encoder", "num_left"),
    [("resnet18", 0), ("mobilenet_v3_small", 0), ("densenet121", 62), ("vgg11", 0)],
)
def test_folding_keeps_the_function(encoder, num_left):
    torch.manual_seed(0)
    network = shake(models.get_model(encoder, weights=None))
    reference = copy.deepcopy(network)
    folded = fold_batch_norms(network)
    assert folded == count(reference, nn.BatchNorm2d) - num_left
    assert count(network, nn.BatchNorm2d) == num_left
    assert_equal_outputs(reference, network, noise(2, 3, 64, 64))


class Shared(nn.Module):
    """One convolution in front of two normalisations; one result that two layers need."""

    def __init__(self):
        super().__init__()
        self.twice, self.forked = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.first, self.second, self.third = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x):
        x = self.second(self.twice(self.first(self.twice(x))))
        forked = self.forked(x)
        return self.third(forked) + forked


def test_folding_leaves_shared_layers_alone():
    network = shake(Shared())
    reference = copy.deepcopy(network)
    assert fold_batch_norms(network) == 0
    assert_equal_outputs(reference, network, noise(2, 3, 8, 8))


class Untraceable(nn.Module):
    """Looks at its input, so that its calls are not known beforehand."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x.relu() if x.sum() > 0 else x


def test_network_that_cannot_be_traced_stays_as_it_is():
    network = shake(Untraceable())
    assert fold_batch_norms(network) == 0
    assert fuse_activations(network) == (network, 0)


@needs_onednn
@pytest.mark.parametrize(
    ("encoder", "num_joined"),
    [("resnet18", 17), ("mobilenet_v2", 35), ("squeezenet1_1", 26), ("googlenet", 57)],
)
def test_joining_keeps_the_function(encoder, num_joined):
    torch.manual_seed(0)
    options = {"init_weights": False} if encoder == "googlenet" else {}
    network = shake(models.get_model(encoder, weights=None, **options))
    fold_batch_norms(network)
    joined, joins = fuse_activations(network)
    assert joins == num_joined == count(joined, FusedConvolution)
    assert count(network, FusedConvolution) == 0
    for inputs in (noise(2, 3, 64, 64), noise(1, 3, 96, 64)):
        assert_equal_outputs(network, joined, inputs)


@needs_onednn
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish()])
def test_each_activation_is_joined_exactly(activation):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), activation).eval()
    joined, joins = fuse_activations(network)
    assert joins == 1
    assert_equal_outputs(network, joined, 9 * noise(2, 3, 16, 16))


class Branches(nn.Module):
    """Additions of every kind that may or may not be written over their other term."""

    def __init__(self, case):
        super().__init__()
        self.case = case
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.relu = nn.ReLU()

    def forward(self, x):
        other = self.relu(self.first(x))
        if self.case == "free":
            return self.relu(self.second(other) + other)
        if self.case == "read later":
            return self.relu(self.second(other) + other) * other
        if self.case == "input":
            return self.relu(self.second(other) + x)
        if self.case == "view":
            return self.relu(self.second(other) + other[:, :, :1]) + other
        if self.case == "number":
            return self.relu(self.second(other) + 0.5)
        return functional.relu(self.second(other) + self.second(other))


@needs_onednn
@pytest.mark.parametrize(
    ("case", "num_joined"),
    [("free", 2), ("read later", 1), ("input", 1), ("view", 1), ("number", 1), ("called twice", 1)],
)
def test_addition_is_joined_only_where_nobody_else_needs_its_term(case, num_joined):
    torch.manual_seed(0)
    network = Branches(case).eval()
    joined, joins = fuse_activations(network)
    assert joins == num_joined
    inputs = noise(2, 4, 8, 8)
    before = inputs.clone()
    assert_equal_outputs(network, joined, inputs)
    assert torch.equal(inputs, before)


def test_padding_that_onednn_lacks_is_not_joined():
    for conv in (
        nn.Conv2d(3, 3, 3, padding="same"),
        nn.Conv2d(3, 3, 3, 1, 1, padding_mode="reflect"),
    ):
        network = nn.Sequential(conv, nn.ReLU()).eval()
        assert fuse_activations(network) == (network, 0)
