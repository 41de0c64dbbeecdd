"""The frozen network: pixels to vectors, and nothing that training could change.

The classifier is gone, batch normalisations are folded into the convolutions before them, and what
is left always runs in eval mode without gradients. The transform that the weights carry comes
along, so that whoever prepares pixels for this network uses the right one.
"""

from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..pipeline.errors import ConfigError, WeightsError
from .device import choose_precision
from .statedict import find_head
from .transform import Transform
from .weights import PretrainedNetwork, load_weights

# What networks raise for a picture of a size that they cannot take.
SIZE_ERRORS = (RuntimeError, AssertionError, ValueError, IndexError)


class Backbone(nn.Module):
    """A pretrained network without its classifier.

    Attributes:
        transform: picture → pixels, for this network.
        feature_dim: D, width of the pooled features.
        name: `<encoder>-<weights>`, e.g. `resnet50-caffe`.
        weights_sha256: of the weights, in hex.
        dtype: of the computation; pixels come as uint8 and features leave as float32.
    """

    def __init__(
        self, pretrained: PretrainedNetwork, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.transform: Transform = pretrained.transform
        self.name = pretrained.name
        self.weights_sha256 = pretrained.weights_sha256
        self.dtype = dtype
        network = pretrained.network.eval()
        network.set_submodule(find_head(network), nn.Identity())
        fold_batch_norms(network)
        self.network = network.to(memory_format=torch.channels_last).to(device, dtype)
        mean, std = (torch.tensor(v) for v in (self.transform.mean, self.transform.std))
        # (x / 255 - mean) / std as one product and one sum.
        self.scale = nn.Buffer((1 / (255 * std)).view(1, 3, 1, 1).to(device))
        self.shift = nn.Buffer((-mean / std).view(1, 3, 1, 1).to(device))
        self.requires_grad_(False)
        super().train(False)
        self.feature_dim = self._try_out()

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the pooled features of a batch.

        Args:
            pixels: (B, 3, H, W) uint8, RGB, on any device.

        Returns:
            (B, D) float32, on the network's device.
        """
        pixels = pixels.to(self.scale.device, non_blocking=True)
        normalised = pixels.to(torch.float32, memory_format=torch.channels_last)
        normalised = normalised.mul_(self.scale).add_(self.shift).to(self.dtype)
        features: Tensor = self.network(normalised)
        return features.flatten(1).float()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode: in train mode the running statistics would drift."""
        return super().train(False)

    def _try_out(self) -> int:
        """Run one black picture through the network.

        Returns:
            Width of its features.

        Raises:
            ConfigError: the network cannot take pictures of this size.
            WeightsError: its features are not finite.
        """
        size = self.transform.crop_size
        black = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        try:
            features = self(black)
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
        return int(features.shape[1])


def load_backbone(
    encoder: str, weights: str, image_size: int | None, device: torch.device, precision: str
) -> Backbone:
    """Load a pretrained network and make it a backbone.

    Args:
        encoder: a classification network of torchvision's.
        weights: as for `load_weights`.
        image_size: side of the crop in pixels; None is the weights' own.
        device: where to compute.
        precision: `auto`, `fp32`, `bf16` or `fp16`.

    Raises:
        ConfigError: an option that cannot be.
        WeightsError: weights that cannot be had.
    """
    dtype = choose_precision(precision, device)
    return Backbone(load_weights(encoder, weights, image_size), device, dtype)


def fold_batch_norms(network: nn.Module) -> int:
    """Fold each batch normalisation into the convolution before it, in place.

    A network that cannot be traced, or a normalisation that follows something else, stays as it is.

    Args:
        network: in eval mode, float32.

    Returns:
        Number of batch normalisations folded.
    """
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # tracing runs the network's own code on proxies: anything may come
        return 0
    modules = dict(network.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    num_calls = Counter(str(node.target) for node in calls)
    pairs = [
        (str(before.target), str(node.target))
        for node in calls
        if type(modules[node.target]) is nn.BatchNorm2d
        and (before := node.args[0]) in calls
        and type(modules[before.target]) is nn.Conv2d
        and len(before.users) == 1
    ]
    # A layer that is called twice may be followed by another normalisation each time.
    pairs = [pair for pair in pairs if num_calls[pair[0]] == num_calls[pair[1]] == 1]
    for conv, norm in pairs:
        network.set_submodule(conv, fuse_conv_bn_eval(modules[conv], modules[norm]))
        network.set_submodule(norm, nn.Identity())
    return len(pairs)
