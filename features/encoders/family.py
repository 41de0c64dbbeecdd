"""The interface of an encoder family: a library of pretrained networks that showtell can use."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...pipeline.stage.errors import ConfigError
from ..reading.transform import Transform

FILE_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class PretrainedNetwork:
    """A network with its weights and everything that belongs to them.

    Attributes:
        network: eval mode, float32, on the CPU, without its classifier; (B, 3, H, W) normalized
            pixels → (B, D) features, or (B, D, 1, 1).
        transform: the preprocessing that these weights were trained with.
        name: `<encoder>-<weights>`, and `-<image size>` if it differs from the weights' own.
        weights_sha256: of the weights, in hex.
    """

    network: nn.Module
    transform: Transform
    name: str
    weights_sha256: str


class EncoderFamily(ABC):
    """A library of pretrained networks."""

    @abstractmethod
    def list_encoders(self) -> list[str]:
        """Return the names that `--encoder` accepts."""

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


def is_weights_file(weights: str) -> bool:
    """Whether `--weights` gives a file rather than a name."""
    return Path(weights).suffix in FILE_SUFFIXES
