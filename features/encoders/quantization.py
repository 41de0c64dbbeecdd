"""A frozen network in 8-bit integers, for CPUs that multiply those fastest.

Each convolution takes bytes and writes bytes. A weight is a multiple of its output channel's own
step; a value between layers is one of 256 that are spread evenly over the range of its layer. The
ranges are those of pictures that the project draws, so that nothing has to be kept beside the
weights: whoever quantizes them gets the same network, but for the last bits of a range.

Source: Jacob et al. 2018, arXiv:1712.05877.
"""

import operator
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ...pipeline.datasets.scene_drawing import LANDSCAPES, draw_landscape
from ...pipeline.datasets.scenes import choose_scenes, draw_scene
from ...pipeline.stage.errors import ConfigError
from ..reading.transform import Transform
from .fusion import FusedConvolution, geometry_of, is_call, is_plain_convolution

# Scenes whose ranges are taken, and as many to judge by; other pictures make another network, and
# the features stage another VERSION.
NUM_EXAMPLES = 16
BATCH_SIZE = 8  # of examples in the network at once
MAX_ERROR = 0.15  # mean relative distance of features, above which a network is refused


@dataclass(frozen=True)
class Affine:
    """How bytes stand for numbers: value = scale · (byte − zero_point).

    Attributes:
        scale: between two neighbours.
        zero_point: the byte of 0, which padding must hit exactly.
    """

    scale: float
    zero_point: int

    @classmethod
    def over(cls, low: float, high: float) -> "Affine":
        """Spread over a range, which is widened to hold 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-12) / 255
        return cls(scale, round(-low / scale))


class Quantize(nn.Module):
    """Numbers → bytes, (…) float32 → (…) uint8."""

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.affine = affine

    def forward(self, values: Tensor) -> Tensor:
        """Take the nearest byte."""
        scaled = values.float() / self.affine.scale
        return scaled.add_(self.affine.zero_point).round_().clamp_(0, 255).to(torch.uint8)


class Dequantize(nn.Module):
    """Bytes → numbers, (…) uint8 → (…) float32."""

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.affine = affine

    def forward(self, values: Tensor) -> Tensor:
        """Say what the bytes stand for."""
        return values.float().sub_(self.affine.zero_point).mul_(self.affine.scale)


class QuantizedMaxPool(nn.Module):
    """Maxima of bytes: the largest byte is that of the largest number.

    torch's own layer counts places in the type of the values, which bytes are too small for.

    Args:
        pool: its geometry is taken over.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        self.geometry = [[size, size] if isinstance(size, int) else [*size] for size in sizes]
        self.ceil_mode = pool.ceil_mode

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, H, W) uint8 → (B, C, H', W') uint8."""
        result: Tensor = torch.ops.quantized.max_pool2d(values, *self.geometry, self.ceil_mode)
        return result


class QuantizedConvolution(nn.Module):
    """A convolution of bytes, with what was joined to it; cannot be copied or saved.

    Args:
        conv: float32.
        inputs: of what it takes.
        outputs: of what it writes.
        added: of what it adds before its activation, which is then overwritten.
    """

    def __init__(
        self,
        conv: FusedConvolution | nn.Conv2d,
        inputs: Affine,
        outputs: Affine,
        added: Affine | None = None,
    ) -> None:
        super().__init__()
        if isinstance(conv, FusedConvolution):
            geometry, self.activation, self.scalars = conv.geometry, conv.activation, conv.scalars
        else:
            geometry, self.activation, self.scalars = geometry_of(conv), "none", []
        padding, stride, dilation, groups = geometry
        weight = conv.weight.detach()
        scales = weight.abs().amax((1, 2, 3)).clamp_min(1e-12) / 127  # of each output channel
        weight = (weight / scales[:, None, None, None]).round().to(torch.int8)
        self.geometry = ([*stride], [*padding], [*dilation], groups)
        pack = torch.ops.onednn.qconv_prepack
        self.weight = nn.Buffer(
            pack(weight, scales, inputs.scale, inputs.zero_point, *self.geometry)
        )
        self.scales = nn.Buffer(scales)
        self.zero_points = nn.Buffer(torch.zeros(len(scales), dtype=torch.int32))
        self.bias = conv.bias
        self.inputs, self.outputs, self.added = inputs, outputs, added

    def forward(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C, H, W) uint8, and perhaps (B, C', H', W') to add → (B, C', H', W') uint8."""
        convolve = torch.ops.onednn.qconv2d_pointwise
        layer = (self.weight, self.scales, self.zero_points)
        given = (inputs, self.inputs.scale, self.inputs.zero_point, *layer)
        rest = (self.bias, *self.geometry, self.outputs.scale, self.outputs.zero_point, torch.uint8)
        after = (self.activation, self.scalars, "")
        if other is None or self.added is None:
            result: Tensor = convolve(*given, *rest, *after)
        else:
            added = (self.added.scale, self.added.zero_point, "sum", 1.0)
            other = other.contiguous(memory_format=torch.channels_last)
            result = convolve.binary(*given, other, *rest, *added, *after)
        return result


def quantize(network: nn.Module, examples: Tensor, name: str) -> fx.GraphModule:
    """Let a network compute in bytes wherever it convolves.

    Args:
        network: float32, on the CPU, from `fuse_activations`; stays as it is.
        examples: (B, 3, H, W) float32, normalised. The bytes cover the ranges of the first half,
            and the second half tells how far off they are.
        name: of the network, for errors.

    Returns:
        The network in bytes; it takes and gives float32.

    Raises:
        ConfigError: it has nothing to quantize, or its features would be far off.
    """

    def refuse(reason: str) -> ConfigError:
        return ConfigError(
            f"--precision int8 does not suit {name}: {reason}. Use --precision bf16 or fp32."
        )

    if not isinstance(network, fx.GraphModule):
        raise refuse("no layers of it can be joined")
    if writer := _find_shared_overwriting(network):
        raise refuse(f"its layer {writer} overwrites what others read")
    seen, judged = examples.chunk(2)
    with torch.inference_mode():
        watcher = _Watcher(network)
        for batch in seen.split(BATCH_SIZE):
            watcher.run(batch)
        quantized = _rewrite(network, watcher.affines())
        errors = [_distances(quantized(b), network(b)) for b in judged.split(BATCH_SIZE)]
    error = float(torch.cat(errors).mean())
    if not error <= MAX_ERROR:
        raise refuse(f"features of drawn pictures would be {error:.0%} off")
    return quantized


def _distances(features: Tensor, expected: Tensor) -> Tensor:
    """Relative distance of each row, (B, …) → (B,)."""
    distances: Tensor = (features - expected).flatten(1).norm(dim=1)
    norms: Tensor = expected.flatten(1).norm(dim=1)
    return distances / norms


def draw_examples(transform: Transform) -> Tensor:
    """Pictures of the drawn dataset and their negatives, always the same: (B, 3, H, W) uint8.

    Features of photographs are 6.5 % off (Caffe's ResNet-50). Without the negatives it would be
    more: 8.0 % where an earlier choice of scenes had 6.7 %, and photographs themselves 6.0 %.
    """
    rng = random.Random("quantization")
    landscapes = {name: draw_landscape(name, rng) for name in LANDSCAPES}
    scenes = choose_scenes({"train": 2 * NUM_EXAMPLES}, rng)
    pictures = [draw_scene(scene, landscapes[scene.landscape], rng) for _, scene in scenes]
    pixels = torch.from_numpy(np.stack([transform(picture) for picture in pictures]))
    return torch.cat([part for half in pixels.chunk(2) for part in (half, 255 - half)])


def _find_shared_overwriting(network: fx.GraphModule) -> str | None:
    """A layer that writes over its input, which others read too: it would not write over bytes."""
    modules = dict(network.named_modules())
    for node in network.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        in_place = getattr(layer, "inplace", False) or node.target is operator.iadd
        if in_place and isinstance(node.args[0], fx.Node) and len(node.args[0].users) > 1:
            return str(node.name)
    return None


class _Watcher(fx.Interpreter):
    """Runs a network and notes the range of each value in it, over all runs."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.ranges: dict[str, tuple[float, float]] = {}

    def run_node(self, node: fx.Node) -> Any:
        """Note the range of what the node gives, before the next may overwrite it."""
        result = super().run_node(node)
        if isinstance(result, Tensor):
            low, high = self.ranges.get(node.name, (0.0, 0.0))
            self.ranges[node.name] = min(low, float(result.min())), max(high, float(result.max()))
        return result

    def affines(self) -> dict[str, Affine]:
        """Name of each node → how bytes stand for its values."""
        return {name: Affine.over(*limits) for name, limits in self.ranges.items()}


def _rewrite(network: fx.GraphModule, affines: dict[str, Affine]) -> fx.GraphModule:
    """Put bytes between the convolutions, and numbers before and after all else.

    Args:
        network: float32; stays as it is.
        affines: name of each node → how bytes stand for its values; more may follow.
    """
    modules = dict(network.named_modules())
    graph, result = fx.Graph(), fx.GraphModule(network, network.graph)
    numbers: dict[fx.Node, fx.Node] = {}  # of the old graph → of the new, as float32
    bytes_: dict[fx.Node, fx.Node] = {}  # and as uint8, where something wanted or made them

    def add_layer(target: str, layer: nn.Module, *args: fx.Node) -> fx.Node:
        result.add_submodule(target, layer)
        return graph.call_module(target, args)

    def as_number(node: fx.Node) -> fx.Node:
        if node not in numbers:
            target = f"{node.name}_dequantized"
            numbers[node] = add_layer(target, Dequantize(affines[node.name]), bytes_[node])
        return numbers[node]

    def as_bytes(node: fx.Node) -> fx.Node:
        if node not in bytes_:
            target = f"{node.name}_quantized"
            bytes_[node] = add_layer(target, Quantize(affines[node.name]), numbers[node])
        return bytes_[node]

    for node in network.graph.nodes:
        if is_call(node, modules, FusedConvolution) or is_plain_convolution(node, modules):
            operands = node.args
            layer = QuantizedConvolution(
                modules[node.target],
                affines[operands[0].name],
                affines[node.name],
                *(affines[other.name] for other in operands[1:]),
            )
            bytes_[node] = add_layer(f"{node.name}_int8", layer, *map(as_bytes, operands))
        elif is_call(node, modules, nn.MaxPool2d) and node.args[0] in bytes_:
            affines[node.name] = affines[node.args[0].name]
            pool = QuantizedMaxPool(modules[node.target])
            bytes_[node] = add_layer(f"{node.name}_int8", pool, bytes_[node.args[0]])
        else:
            numbers[node] = graph.node_copy(node, as_number)
    result.graph = graph
    result.delete_all_unused_submodules()
    return result.eval()
