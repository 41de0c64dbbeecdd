"""The backbone: a frozen pretrained network that encodes images as feature vectors.

It runs in eval mode without gradients. Batch norms are folded into the convolutions before them.
The transform that the weights were trained with is stored beside the network.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...pipeline.stage.errors import ConfigError, WeightsError
from ..device import choose_precision
from ..reading.transform import Transform
from .family import PretrainedNetwork
from .fusion import fold_batch_norms, fuse_activations
from .registry import load_pretrained

# Raised by networks for an image size that they do not support.
SIZE_ERRORS = (RuntimeError, AssertionError, ValueError, IndexError)
GLOBAL_POOLING = (1, (1, 1))  # output sizes of a layer that pools the whole feature map
PROBE_SIZE = 64  # side of the image that fused layers are first tested on, in pixels


class Backbone(nn.Module):
    """A frozen pretrained network that turns uint8 images into feature vectors.

    Attributes:
        transform: the preprocessing that the weights were trained with.
        feature_dim: D, the width of the pooled features.
        name: `<encoder>-<weights>`, e.g. `resnet50-caffe`.
        weights_sha256: SHA-256 of the weights, in hex.
        dtype: the dtype that the network computes in.
        num_cells: P, the number of grid cells, i.e. of positions in the feature map before pooling;
            0 without grid features.
        grid_dim: G, the width of the grid features; usually D. 0 without grid features.
    """

    def __init__(
        self,
        pretrained: PretrainedNetwork,
        device: torch.device,
        dtype: torch.dtype,
        *,
        fuse: bool = True,
    ) -> None:
        """Prepare a pretrained network for inference.

        Args:
            pretrained: the network with its transform; the network is modified.
            device: where to run it.
            dtype: precision of the network.
            fuse: fuse layers on a CPU, which is faster; fused layers cannot be exported.

        Raises:
            ConfigError: the network does not support the image size.
            WeightsError: its features are not finite.
        """
        super().__init__()
        self.transform: Transform = pretrained.transform
        self.name = pretrained.name
        self.weights_sha256 = pretrained.weights_sha256
        self.dtype = dtype
        self.to_cells = pretrained.to_cells
        network = pretrained.network.eval()
        fold_batch_norms(network)
        network = network.to(memory_format=torch.channels_last)
        if device.type == "cpu" and fuse:
            network = fuse_for_cpu(network, self.transform.crop_size, self.dtype)
        self.network = network.to(device, self.dtype)
        mean, std = (torch.tensor(v) for v in (self.transform.mean, self.transform.std))
        # (x / 255 - mean) / std, written as x * scale + shift.
        self.scale = nn.Buffer((1 / (255 * std)).view(1, 3, 1, 1).to(device))
        self.shift = nn.Buffer((-mean / std).view(1, 3, 1, 1).to(device))
        self.requires_grad_(False)
        super().train(False)
        self.feature_dim, self.num_cells, self.grid_dim = self._probe()

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the pooled features of a batch.

        Args:
            pixels: (B, 3, H, W) uint8, RGB, on any device.

        Returns:
            (B, D) float32, on the network's device.
        """
        return self._run(pixels)[0]

    def _run(self, pixels: Tensor) -> tuple[Tensor, Any]:
        """Return the pooled features (B, D) float32, and the feature map if the network has it."""
        pixels = pixels.to(self.scale.device, non_blocking=True)
        features, feature_map = as_pair(self.network(self._normalize(pixels)))
        return features.flatten(1).float(), feature_map

    def _normalize(self, pixels: Tensor) -> Tensor:
        """Return the network's input for (B, 3, H, W) uint8 pixels on its device."""
        normalized = pixels.to(torch.float32, memory_format=torch.channels_last)
        return normalized.mul_(self.scale).add_(self.shift).to(self.dtype)

    @property
    def has_grid(self) -> bool:
        """Whether there are grid features."""
        return self.num_cells > 0

    def grid(self, pixels: Tensor) -> Tensor:
        """Compute the grid features of a batch: its feature map before pooling.

        Args:
            pixels: (B, 3, H, W) uint8, RGB, on any device.

        Returns:
            (B, P, G) float32, on the network's device; cells row by row from the top left.
        """
        return self.pool_and_grid(pixels)[1]

    @torch.inference_mode()
    def pool_and_grid(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the results of `forward` and `grid` in one pass.

        Raises:
            ConfigError: the network has no grid features.
        """
        self.require_grid()
        pooled, grid = self._capture_pooling(pixels)
        assert grid is not None
        return pooled, grid.float()

    def require_grid(self) -> None:
        """Check that the network has grid features.

        Raises:
            ConfigError: it has none.
        """
        if not self.has_grid:
            raise ConfigError(
                f"{self.name} has no grid features: its pooled features are not computed from one "
                "square feature map. Leave out --grid, or choose another --encoder, e.g. resnet50."
            )

    def _capture_pooling(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the network and also return its feature map as grid cells.

        A network that does not return its feature map has one before its global average pooling.

        Returns:
            pooled: (B, D) float32.
            grid: (B, P, G) in the network's dtype; None if there is no feature map.
        """
        layer = self._find_pooling()
        if layer is None:
            pooled, feature_map = self._run(pixels)
            return pooled, None if feature_map is None else self.to_cells(feature_map)
        captured: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _, inputs, output: captured.append(*inputs))
        try:
            pooled = self(pixels)
        finally:
            handle.remove()
        return pooled, self.to_cells(captured[0])

    def _find_pooling(self) -> nn.Module | None:
        """Return the global average pooling of a torchvision network; None for other networks."""
        layer = dict(self.network.named_modules()).get("avgpool")
        is_global = isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in GLOBAL_POOLING
        return layer if is_global else None

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode whatever `mode` is, because a frozen network is never trained."""
        return super().train(False)

    def _probe(self) -> tuple[int, int, int]:
        """Run one black image through the network; return (feature_dim, num_cells, grid_dim).

        Raises:
            ConfigError: the network does not support this image size.
            WeightsError: its features are not finite.
        """
        size = self.transform.crop_size
        black = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        try:
            features, grid = self._capture_pooling(black)
        except SIZE_ERRORS as error:
            reason = str(error).split("\n")[0].rstrip(".")
            raise ConfigError(
                f"{self.name} does not support --image-size {size}: {reason}. Leave out "
                "--image-size, or choose another --encoder."
            ) from None
        if not features.isfinite().all():
            raise WeightsError(
                f"{self.name} computes features that are not finite. Choose other --weights."
            )
        has_grid = grid is not None and (self._find_pooling() is None or is_pooled(features, grid))
        if grid is None or not has_grid:
            return features.shape[1], 0, 0
        return features.shape[1], grid.shape[1], grid.shape[2]


def load_backbone(
    encoder: str,
    weights: str,
    image_size: int | None,
    device: torch.device,
    precision: str,
    *,
    fuse: bool = True,
) -> Backbone:
    """Load a pretrained network as a backbone.

    Args:
        encoder: e.g. `resnet50`; any name of the registry.
        weights: as for `load_pretrained`.
        image_size: side of the crop in pixels; None uses the size of the weights' transform.
        device: where to compute.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        fuse: see `Backbone`.

    Raises:
        ConfigError: an option is invalid.
        WeightsError: the weights cannot be downloaded or verified, or do not fit the encoder.
    """
    dtype = choose_precision(precision, device)
    return Backbone(load_pretrained(encoder, weights, image_size), device, dtype, fuse=fuse)


def as_pair(output: Any) -> tuple[Tensor, Any]:
    """Return a network's features and its feature map, which is None if it returns no pair."""
    features, feature_map = output if isinstance(output, tuple) else (output, None)
    return features, feature_map


def is_pooled(features: Tensor, grid: Tensor) -> bool:
    """Return whether features (B, D) are the mean of a grid (B, P, D), up to rounding.

    Some networks apply another layer after pooling, such as ConvNeXt and MobileNetV3.
    """
    mean = grid.float().mean(1)
    rounding = 4 * torch.finfo(grid.dtype).eps
    tolerance = max(rounding, 1e-4) * float(mean.norm())
    return mean.shape == features.shape and float(torch.dist(mean, features)) <= tolerance


def fuse_for_cpu(network: nn.Module, size: int, dtype: torch.dtype) -> nn.Module:
    """Fuse convolutions with the activations that follow them, if that works on this CPU.

    The fused layers call oneDNN, which does not support every dtype on every CPU, so their result
    is compared with that of the original network.

    Args:
        network: float32, on the CPU.
        size: side of the network input, in pixels.
        dtype: the precision of the result.

    Returns:
        The fused network if it gives the same results, else `network`; converted to `dtype`.
    """
    fused = fuse_activations(network)
    # A small image is faster to test with, but not every network supports it.
    for side in (min(size, PROBE_SIZE), size) if fused is not network else ():
        try:
            agrees = is_equivalent(fused, network, side, dtype)
        except (RuntimeError, AssertionError, ValueError, AttributeError):
            continue
        return fused.to(dtype) if agrees else network.to(dtype)
    return network.to(dtype)


def is_equivalent(fused: nn.Module, network: nn.Module, side: int, dtype: torch.dtype) -> bool:
    """Return whether two float32 networks agree on random input and `fused` runs in `dtype`.

    `fused` is converted to `dtype` in place.
    """
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    noise = noise.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected, _ = as_pair(network(noise))
        distance = torch.dist(as_pair(fused(noise))[0], expected)
        if dtype != torch.float32:
            fused.to(dtype)(noise.to(dtype))
    return bool(distance < 1e-3 * expected.norm())
