"""The encoder families. To add one, write a subclass of `EncoderFamily` and list it here."""

import difflib

from ...pipeline.stage.errors import ConfigError
from .family import EncoderFamily, PretrainedNetwork
from .timm_models import TimmModels
from .torchvision_models import TorchvisionModels

AUTO = "auto"

FAMILIES: list[EncoderFamily] = [TorchvisionModels(), TimmModels()]


def find_family(encoder: str) -> EncoderFamily:
    """Return the family that an encoder belongs to.

    Raises:
        ConfigError: there is no such encoder, and the message names similar ones; or its library is
            not installed.
    """
    for family in FAMILIES:
        if family.has_encoder(encoder):
            return family
    names = [name for family in FAMILIES for name in family.list_encoders()]
    similar = difflib.get_close_matches(encoder.lower(), names, n=4)
    hint = f"Did you mean {', '.join(similar)}?" if similar else "Try resnet50 or efficientnet_b0."
    raise ConfigError(f"--encoder {encoder!r} is none of the {len(names)} known encoders. {hint}")


def check_weights(encoder: str, weights: str) -> None:
    """Refuse an unknown encoder or weights that it does not have; downloads nothing.

    Raises:
        ConfigError: there is no such encoder, or it has no such weights.
        MissingArtifactError: the weights file does not exist.
    """
    family = find_family(encoder)
    if weights != AUTO:
        family.check_weights(encoder, weights)


def load_pretrained(encoder: str, weights: str, image_size: int | None = None) -> PretrainedNetwork:
    """Load a pretrained network without its classifier.

    Args:
        encoder: a name of one of the families, e.g. `resnet50`.
        weights: a name that the family knows, e.g. `IMAGENET1K_V1`; a file; or `auto`.
        image_size: side of the crop in pixels; None is the weights' own.

    Raises:
        ConfigError: there is no such encoder, or it has no such weights.
        WeightsError: the weights cannot be downloaded or verified, or do not fit.
    """
    check_weights(encoder, weights)
    family = find_family(encoder)
    if weights == AUTO:
        weights = family.choose_auto(encoder)
    pretrained = family.load(encoder, weights)
    if image_size in (None, pretrained.transform.crop_size):
        return pretrained
    assert image_size is not None
    return family.resize(pretrained, image_size)
