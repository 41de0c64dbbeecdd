import pytest
import torch
from torch import nn
from torch.nn import functional

from showtell.features.device import cpu_multiplies_int8
from showtell.features.encoders import quantization
from showtell.features.encoders.fusion import FusedConvolution, fuse_activations
from showtell.features.encoders.quantization import (
    Affine,
    Dequantize,
    Quantize,
    QuantizedConvolution,
    QuantizedMaxPool,
    draw_examples,
    quantize,
)
from showtell.features.reading.transform import Transform
from showtell.pipeline.stage.errors import ConfigError

needs_int8 = pytest.mark.skipif(not cpu_multiplies_int8(), reason="this CPU has no VNNI")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_bytes(values):
    """Bytes that cover the range of the values, and how they stand for them."""
    affine = Affine.over(float(values.min()), float(values.max()))
    return Quantize(affine)(values), affine


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_bytes_cover_the_range_and_hit_zero_exactly(low, high):
    affine = Affine.over(low, high)
    values = torch.cat([torch.linspace(low, high, 1001), torch.zeros(1)])
    back = Dequantize(affine)(Quantize(affine)(values))
    assert (back - values).abs().max() <= 0.5 * affine.scale * (1 + 1e-3)
    assert back[-1] == 0
    assert 0 <= affine.zero_point <= 255


def test_values_beyond_the_range_take_the_last_byte():
    assert Quantize(Affine(0.1, 10))(torch.tensor([-9.0, 99.0])).tolist() == [0, 255]


@needs_int8
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(
    "geometry", [{}, {"padding": 1}, {"stride": 2, "padding": 1}, {"groups": 4, "padding": 1}]
)
def test_a_convolution_of_bytes_is_that_of_the_numbers_they_stand_for(geometry, activation, adds):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, **geometry).requires_grad_(False)
    layer = FusedConvolution(conv, activation, []) if activation != "none" else conv
    inputs, inputs_affine = as_bytes(noise(2, 8, 9, 9) + 0.5)
    numbers = Dequantize(inputs_affine)(inputs).double()
    # The nearest multiple of each channel's own step, of which there are 127 to either side.
    steps = conv.weight.double().abs().amax((1, 2, 3), keepdim=True) / 127
    weight = (conv.weight.double() / steps).round() * steps
    options = {"stride": 1, "padding": 0, "groups": 1} | geometry
    expected = functional.conv2d(numbers, weight, conv.bias.double(), **options)
    other, other_affine = as_bytes(noise(*expected.shape, seed=1)) if adds else (None, None)
    if other is not None:
        expected += Dequantize(other_affine)(other).double()
    if activation == "relu":
        expected = expected.relu()
    outputs_affine = Affine.over(float(expected.min()), float(expected.max()))

    quantized = QuantizedConvolution(layer, inputs_affine, outputs_affine, other_affine)
    found = quantized(inputs, *([other] if adds else []))
    assert found.dtype == torch.uint8
    reference = Quantize(outputs_affine)(expected)
    # A sum that lies in the middle may be rounded to either side.
    assert (found.int() - reference.int()).abs().max() <= 1
    assert (found == reference).float().mean() > 0.98


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"ceil_mode": True}])
def test_maxima_of_bytes_are_torchs_of_numbers(options):
    pool = nn.MaxPool2d(3, **options)
    values = torch.randint(0, 256, (2, 5, 12, 13), dtype=torch.uint8)
    found = QuantizedMaxPool(pool)(values.contiguous(memory_format=torch.channels_last))
    assert torch.equal(found.float(), pool(values.float()))


class Residual(nn.Module):
    """Small, and with all that a ResNet is made of."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 16, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, 1)
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 32, 1)
        self.shortcut, self.last = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 1)
        self.relu, self.mean = nn.ReLU(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.pool(self.relu(self.stem(x)))
        x = self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))
        return self.mean(self.relu(self.last(x) + x)).flatten(1)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Residual().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return fuse_activations(network)[0]


@needs_int8
def test_all_convolutions_work_on_bytes_and_nothing_else_does(network):
    quantized = quantize(network, noise(8, 3, 64, 64), "x")
    kinds = [type(module) for module in quantized.modules()]
    assert kinds.count(QuantizedConvolution) == 5
    assert kinds.count(Quantize) == kinds.count(Dequantize) == 1
    assert not {nn.Conv2d, FusedConvolution, nn.MaxPool2d} & set(kinds)
    with torch.inference_mode():
        other = noise(8, 3, 64, 64, seed=1)
        expected, found = network(other), quantized(other)
    assert 0 < torch.dist(found, expected) < 0.05 * expected.norm()


@needs_int8
def test_the_network_that_is_quantized_stays_as_it_is(network):
    examples = noise(4, 3, 64, 64)
    with torch.inference_mode():
        before = network(examples)
        quantize(network, examples, "x")
        assert torch.equal(network(examples), before)


@needs_int8
def test_a_network_that_would_be_far_off_is_refused(network, monkeypatch):
    monkeypatch.setattr(quantization, "MAX_ERROR", 1e-4)
    with pytest.raises(ConfigError, match=r"does not suit \{x\}: .* would be .*% off"):
        quantize(network, noise(4, 3, 64, 64), "{x}")


@needs_int8
def test_a_network_is_judged_by_pictures_whose_ranges_it_does_not_know(network):
    quiet, loud = noise(4, 3, 64, 64), 9 * noise(4, 3, 64, 64, seed=1)
    quantize(network, torch.cat([loud, quiet]), "x")
    with pytest.raises(ConfigError, match="% off"):
        quantize(network, torch.cat([quiet, loud]), "x")


class Odd(nn.Module):
    """Layers that bytes cannot do, between those that they can."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.twice, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.same, self.mean = nn.Conv2d(8, 8, 3, padding="same"), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.twice(3 * self.twice(x))
        x = self.relu(self.last(self.same(self.mirrored(x)) * x.sigmoid()))
        return self.mean(x).flatten(1)


@needs_int8
def test_what_bytes_cannot_do_is_done_with_numbers():
    torch.manual_seed(0)
    network, joined = fuse_activations(Odd().eval().requires_grad_(False))
    assert joined == 2
    quantized = quantize(network, noise(8, 3, 32, 32), "x")
    kinds = [type(module) for module in quantized.modules()]
    assert kinds.count(QuantizedConvolution) == 2
    assert kinds.count(nn.Conv2d) == 3
    with torch.inference_mode():
        other = noise(8, 3, 32, 32, seed=1)
        expected, found = network(other), quantized(other)
    assert 0 < torch.dist(found, expected) < 0.05 * expected.norm()


class Overwriting(nn.Module):
    """Rectifies in place what another layer reads afterwards."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.third, self.relu = nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.first(x)
        y = self.relu(x)
        return functional.relu(self.second(x)) + functional.relu(self.third(y))


def test_a_network_that_overwrites_what_others_read_is_refused():
    network, joined = fuse_activations(Overwriting().eval())
    assert joined == 2
    with pytest.raises(ConfigError, match=r"its layer relu\w* overwrites what others read"):
        quantize(network, noise(4, 3, 16, 16), "x")


def test_a_network_whose_layers_cannot_be_told_apart_is_refused():
    with pytest.raises(ConfigError, match=r"does not suit x: no layers .* --precision bf16"):
        quantize(nn.Flatten(), noise(2, 3, 64, 64), "x")


def test_examples_are_always_the_same_and_hold_dark_and_light():
    # Others make other features: then the features stage needs another VERSION.
    transform = Transform(64, 64, "bilinear", (0.5,) * 3, (0.25,) * 3)
    examples = draw_examples(transform)
    assert examples.shape == (4 * quantization.NUM_EXAMPLES, 3, 64, 64)
    assert torch.equal(draw_examples(transform), examples)
    assert examples.sum(dtype=torch.int64) == 255 * examples.numel() // 2
    for half in examples.chunk(2):
        assert half.min() < 15 and half.max() > 240
