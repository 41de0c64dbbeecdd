"""The frozen network: pixels to vectors, and nothing that training could change.

The classifier is gone, batch normalisations are folded into the convolutions before them, and what
is left always runs in eval mode without gradients. The transform that the weights carry comes
along, so that whoever prepares pixels for this network uses the right one.
"""

import torch
from torch import Tensor, nn

from ...pipeline.stage.errors import ConfigError, WeightsError
from ..device import choose_precision
from ..reading.transform import Transform
from .fusion import fold_batch_norms, fuse_activations
from .quantization import draw_examples, quantize
from .state_dict import find_head
from .weights import PretrainedNetwork, load_weights

# What networks raise for a picture of a size that they cannot take.
SIZE_ERRORS = (RuntimeError, AssertionError, ValueError, IndexError)
POOLS_ALL = (1, (1, 1))
PROBE_SIZE = 64  # side of the picture that joined layers are tried on


class Backbone(nn.Module):
    """A pretrained network without its classifier.

    Attributes:
        transform: picture → pixels, for this network.
        feature_dim: D, width of the pooled features.
        name: `<encoder>-<weights>`, e.g. `resnet50-caffe`.
        weights_sha256: of the weights, in hex.
        dtype: of what goes into the network; pixels come as uint8 and features leave as float32.
        grid_places: R, places of the map that is averaged into the pooled features; 0 where the
            network has no such map.
    """

    def __init__(
        self, pretrained: PretrainedNetwork, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.transform: Transform = pretrained.transform
        self.name = pretrained.name
        self.weights_sha256 = pretrained.weights_sha256
        self.dtype = torch.float32 if dtype == torch.int8 else dtype
        network = pretrained.network.eval()
        network.set_submodule(find_head(network), nn.Identity())
        fold_batch_norms(network)
        network = network.to(memory_format=torch.channels_last)
        if device.type == "cpu":
            network = join_layers(network, self.transform.crop_size, self.dtype)
        self.network = network.to(device, self.dtype)
        mean, std = (torch.tensor(v) for v in (self.transform.mean, self.transform.std))
        # (x / 255 - mean) / std as one product and one sum.
        self.scale = nn.Buffer((1 / (255 * std)).view(1, 3, 1, 1).to(device))
        self.shift = nn.Buffer((-mean / std).view(1, 3, 1, 1).to(device))
        self.requires_grad_(False)
        super().train(False)
        self.feature_dim, self.grid_places = self._try_out()
        if dtype == torch.int8:
            examples = self._normalise(draw_examples(self.transform))
            self.network = quantize(self.network, examples, self.name)

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the pooled features of a batch.

        Args:
            pixels: (B, 3, H, W) uint8, RGB, on any device.

        Returns:
            (B, D) float32, on the network's device.
        """
        pixels = pixels.to(self.scale.device, non_blocking=True)
        features: Tensor = self.network(self._normalise(pixels))
        return features.flatten(1).float()

    def _normalise(self, pixels: Tensor) -> Tensor:
        """What the network takes for (B, 3, H, W) uint8 pixels on its device."""
        normalised = pixels.to(torch.float32, memory_format=torch.channels_last)
        return normalised.mul_(self.scale).add_(self.shift).to(self.dtype)

    @property
    def has_grid(self) -> bool:
        """Whether the pooled features are the mean of a map, which `grid` gives."""
        return self.grid_places > 0

    def grid(self, pixels: Tensor) -> Tensor:
        """Compute the map of a batch before it is pooled.

        Args:
            pixels: (B, 3, H, W) uint8, RGB, on any device.

        Returns:
            (B, R, D) float32, on the network's device; places row by row from the top left.
        """
        return self.pool_and_grid(pixels)[1]

    @torch.inference_mode()
    def pool_and_grid(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what `forward` and `grid` give, in one pass.

        Raises:
            ConfigError: the network has no grid.
        """
        self.require_grid()
        pooled, grid = self._watch_pooling(pixels)
        assert grid is not None
        return pooled, grid.float()

    def require_grid(self) -> None:
        """Refuse a network without a grid.

        Raises:
            ConfigError: it has none.
        """
        if not self.has_grid:
            raise ConfigError(
                f"{self.name} has no grid: its features are not the mean of a map. Leave out "
                "--grid, or choose another --encoder, e.g. resnet50."
            )

    def _watch_pooling(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the network and keep what its average pooling takes in.

        Returns:
            pooled: (B, D) float32.
            grid: (B, R, D) in the network's dtype; None where nothing is pooled to 1×1.
        """
        pooling = dict(self.network.named_modules()).get("avgpool")
        if not isinstance(pooling, nn.AdaptiveAvgPool2d) or pooling.output_size not in POOLS_ALL:
            return self(pixels), None
        taken: list[Tensor] = []
        handle = pooling.register_forward_hook(lambda module, inputs, output: taken.append(*inputs))
        try:
            pooled = self(pixels)
        finally:
            handle.remove()
        return pooled, taken[0].flatten(2).transpose(1, 2)  # (B, D, H, W) → (B, R, D)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode: in train mode the running statistics would drift."""
        return super().train(False)

    def _try_out(self) -> tuple[int, int]:
        """Run one black picture through the network.

        Returns:
            Width of its features.
            Places of the grid, 0 where its mean is not the features.

        Raises:
            ConfigError: the network cannot take pictures of this size.
            WeightsError: its features are not finite.
        """
        size = self.transform.crop_size
        black = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        try:
            features, grid = self._watch_pooling(black)
        except SIZE_ERRORS as error:
            reason = str(error).split("\n")[0].rstrip(".")
            raise ConfigError(
                f"{self.name} cannot take --image-size {size}: {reason}. Leave out --image-size, "
                "or choose another --encoder."
            ) from None
        if not features.isfinite().all():
            raise WeightsError(
                f"{self.name} gives features that are not finite. Choose other --weights."
            )
        if grid is None or not is_pooled(features, grid):
            return features.shape[1], 0
        return features.shape[1], grid.shape[1]


def load_backbone(
    encoder: str, weights: str, image_size: int | None, device: torch.device, precision: str
) -> Backbone:
    """Load a pretrained network and make it a backbone.

    Args:
        encoder: a classification network of torchvision's.
        weights: as for `load_weights`.
        image_size: side of the crop in pixels; None is the weights' own.
        device: where to compute.
        precision: `auto`, `fp32`, `bf16`, `fp16` or `int8`.

    Raises:
        ConfigError: an option that cannot be.
        WeightsError: weights that cannot be had.
    """
    dtype = choose_precision(precision, device)
    return Backbone(load_weights(encoder, weights, image_size), device, dtype)


def is_pooled(features: Tensor, grid: Tensor) -> bool:
    """Whether features (B, D) are the mean of a grid (B, R, D), within the precision of the grid.

    Between the two a network may still have layers: ConvNeXt normalises, MobileNetV3 has a linear
    one.
    """
    mean = grid.float().mean(1)
    rounding = 4 * torch.finfo(grid.dtype).eps
    tolerance = max(rounding, 1e-4) * float(mean.norm())
    return mean.shape == features.shape and float(torch.dist(mean, features)) <= tolerance


def join_layers(network: nn.Module, size: int, dtype: torch.dtype) -> nn.Module:
    """Join convolutions with what follows them, for a CPU, where that is proven to be the same.

    The joined layers are oneDNN's, which not every CPU has for every dtype.

    Args:
        network: float32, on the CPU.
        size: side of its pictures, in pixels.
        dtype: that it will compute in.

    Returns:
        The faster network, or `network` itself; in `dtype`.
    """
    joined, num_joined = fuse_activations(network)
    # Not every network takes so small a picture.
    for side in (min(size, PROBE_SIZE), size) if num_joined else ():
        try:
            same = is_same(joined, network, side, dtype)
        except (RuntimeError, AssertionError, ValueError, AttributeError):
            continue
        return joined.to(dtype) if same else network.to(dtype)
    return network.to(dtype)


def is_same(joined: nn.Module, network: nn.Module, side: int, dtype: torch.dtype) -> bool:
    """Whether two float32 networks agree on noise of this size, and the first runs in `dtype`."""
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    noise = noise.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = network(noise)
        distance = torch.dist(joined(noise), expected)
        if dtype != torch.float32:
            joined.to(dtype)(noise.to(dtype))
    return bool(distance < 1e-3 * expected.norm())
