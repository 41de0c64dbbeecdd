"""The interface of an encoder family: a library of pretrained networks that showtell can use."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...pipeline.stage.errors import ConfigError
from ..reading.transform import Transform

FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin", ".tar")


def map_to_cells(feature_map: Tensor) -> Tensor:
    """Return a feature map (B, D, H, W) as grid cells (B, P, D), row by row from the top left."""
    return feature_map.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class PretrainedNetwork:
    """A network with its weights and everything that belongs to them.

    Attributes:
        network: eval mode, float32, on the CPU, without its classifier; (B, 3, H, W) normalized
            pixels → (B, D) features, or (B, D, 1, 1). It may also return a pair: the features, and
            its feature map before pooling, which `to_cells` converts.
        transform: the preprocessing that these weights were trained with.
        name: `<encoder>-<weights>`, and `-<image size>` if it differs from the weights' own.
        weights_sha256: of the weights, in hex.
        to_cells: converts the feature map to grid cells (B, P, G); the width G may differ from D.
            It returns None if the network has no grid features.
    """

    network: nn.Module
    transform: Transform
    name: str
    weights_sha256: str
    to_cells: Callable[[Any], Tensor | None] = map_to_cells


class EncoderFamily(ABC):
    """A library of pretrained networks."""

    @abstractmethod
    def list_encoders(self) -> list[str]:
        """Return the names that `--encoder` accepts."""

    def has_encoder(self, encoder: str) -> bool:
        """Return whether `--encoder` names a network of this family.

        Raises:
            ConfigError: it does, but the family's library is not installed.
        """
        return encoder in self.list_encoders()

    @abstractmethod
    def load(self, encoder: str, weights: str) -> PretrainedNetwork:
        """Load a network, downloading its weights if necessary.

        Raises:
            WeightsError: the weights cannot be downloaded or verified, or do not fit.
        """

    def check_weights(self, encoder: str, weights: str) -> None:
        """Refuse weights that the encoder does not have, before anything is downloaded.

        Raises:
            ConfigError: there are no such weights.
            MissingArtifactError: the weights file does not exist.
        """
        choices = self.auto_choices(encoder)
        if weights not in choices:
            raise ConfigError(
                f"--weights {weights!r} is not available for --encoder {encoder}, expected one of "
                f"{', '.join(choices)}."
            )

    def auto_choices(self, encoder: str) -> tuple[str, ...]:
        """Return the weights that `--weights auto` may stand for, the preferred ones first."""
        return ("default",)

    def choose_auto(self, encoder: str) -> str:
        """Return one of `auto_choices`: on disk already, or else downloaded now.

        Raises:
            WeightsError: none can be downloaded.
        """
        return self.auto_choices(encoder)[0]

    def resize(self, pretrained: PretrainedNetwork, image_size: int) -> PretrainedNetwork:
        """Return the network for another `--image-size`.

        Args:
            pretrained: from `load`; its network may be modified.
            image_size: side of the crop in pixels.

        Raises:
            ConfigError: the network does not support this size.
        """
        transform = pretrained.transform.with_crop_size(image_size)
        return replace(pretrained, transform=transform, name=f"{pretrained.name}-{image_size}")


def network_name(encoder: str, weights: str) -> str:
    """Return `<encoder>-<weights>`, which is also a folder name, so slashes become hyphens.

    Args:
        encoder: e.g. `resnet50` or `timm/vit_base_patch16_clip_224.openai`.
        weights: their name, or the stem of their file. A name that the encoder ends with is not
            repeated: `timm-vit_base_patch16_clip_224.openai`.
    """
    name = encoder.replace("/", "-")
    return name if name.endswith(f".{weights}") else f"{name}-{weights}"


def is_weights_file(weights: str) -> bool:
    """Whether `--weights` gives a file rather than a name."""
    return Path(weights).suffix in FILE_SUFFIXES
