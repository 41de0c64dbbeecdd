"""timm's image models: convolutional networks and vision transformers, under the names `timm/NAME`.

The weights come from timm's repositories on the Hugging Face Hub (`timm_hub.py`) or from a file.
A network returns its pooled features and the feature map that they are computed from: patch tokens
of a vision transformer, without class and register tokens.
"""

import math
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...pipeline.stage.errors import ConfigError, WeightsError
from ...pipeline.stage.files import hash_file, require_file
from ..reading.transform import Transform
from . import timm_hub
from .family import (
    FILE_SUFFIXES,
    EncoderFamily,
    PretrainedNetwork,
    is_weights_file,
    map_to_cells,
    network_name,
)
from .state_dict import load_state_dict, read_state_dict

PREFIX = "timm/"


class TimmModels(EncoderFamily):
    """timm's image models; `timm/NAME` or, for certain weights, `timm/NAME.TAG`."""

    def list_encoders(self) -> list[str]:
        """Return the names of the models, with and without the tags of their weights."""
        if find_spec("timm") is None:
            return []
        import timm

        names = {*timm.list_models(), *timm.list_models(pretrained=True)}
        return sorted(PREFIX + name for name in names)

    def has_encoder(self, encoder: str) -> bool:
        """Return whether timm has a model of this name.

        Raises:
            ConfigError: timm is not installed.
        """
        if not encoder.startswith(PREFIX):
            return False
        if find_spec("timm") is None:
            raise ConfigError(
                f"--encoder {encoder} needs the library timm. Run pip install 'showtell[timm]'."
            )
        import timm

        name, tag = split_name(encoder)
        return timm.is_model(name) and (not tag or tag in list_tags(name))

    def check_weights(self, encoder: str, weights: str) -> None:
        """Refuse weights that the encoder does not have.

        Raises:
            ConfigError: there are no such weights for this encoder.
            MissingArtifactError: the file does not exist.
        """
        name, tag = split_name(encoder)
        known = [tag] if tag else list_tags(name)
        if is_weights_file(weights):
            require_file(Path(weights), "--weights", "a file with a state dict")
        elif weights not in known:
            choices = f"one of {', '.join(known)}, or " if known else ""
            raise ConfigError(
                f"--weights {weights!r} is not available for --encoder {encoder}, expected "
                f"{choices}a file that ends in {', '.join(FILE_SUFFIXES)}."
            )

    def auto_choices(self, encoder: str) -> tuple[str, ...]:
        """Return the tag in the encoder's name, else timm's default tag; none without weights."""
        name, tag = split_name(encoder)
        return (tag,) if tag else tuple(list_tags(name)[:1])

    def choose_auto(self, encoder: str) -> str:
        """Return the tag of the weights, which are downloaded unless they are in the cache.

        Raises:
            WeightsError: timm has no weights for this encoder, or they cannot be downloaded.
        """
        choices = self.auto_choices(encoder)
        if not choices:
            raise WeightsError(f"timm has no weights for --encoder {encoder}. Give --weights FILE.")
        fetch(encoder, choices[0])
        return choices[0]

    def load(self, encoder: str, weights: str) -> PretrainedNetwork:
        """Load a network with its weights.

        Args:
            encoder: e.g. `timm/vit_base_patch16_clip_224.openai`.
            weights: the tag of timm's weights, e.g. `openai`; or a file with a state dict, which
                may have any number of classes.
        """
        name, tag = split_name(encoder)
        is_file = is_weights_file(weights)
        path = Path(weights) if is_file else fetch(encoder, weights)
        model = build(name, tag if is_file else weights)
        fit_weights(model, path, f"{path} does not fit --encoder {encoder}")
        split_batch_norms(model)
        network = TimmNetwork(model.eval())
        return PretrainedNetwork(
            network,
            transform_of(encoder, model),
            network_name(encoder, path.stem if is_file else weights),
            hash_file(path),
            network.to_cells,
        )

    def resize(self, pretrained: PretrainedNetwork, image_size: int) -> PretrainedNetwork:
        """Return the network for another `--image-size`; position embeddings are resampled.

        Raises:
            ConfigError: the network does not support this size.
        """
        model: Any = pretrained.network.model
        if hasattr(model, "set_input_size"):
            try:
                model.set_input_size(img_size=(image_size, image_size))
            except Exception as error:  # each model checks the size in its own way
                reason = str(error).split("\n")[0].rstrip(".")
                raise ConfigError(
                    f"{pretrained.name} does not support --image-size {image_size}: {reason}. "
                    "Leave out --image-size, or choose another --encoder."
                ) from None
        name = f"{pretrained.name}-{image_size}"
        return replace(pretrained, transform=transform_of(name, model, image_size), name=name)


class TimmNetwork(nn.Module):
    """A timm model that returns its pooled features and its feature map.

    Args:
        model: without classifier.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return (B, D) pooled features, and the feature map in the model's own layout."""
        feature_map = self.model.forward_features(images)
        return self.model.forward_head(feature_map), feature_map

    def to_cells(self, feature_map: Any) -> Tensor | None:
        """Return a feature map as grid cells (B, P, G), row by row from the top left.

        Args:
            feature_map: (B, G, H, W), (B, H, W, G) or (B, tokens, G); some models return a list.

        Returns:
            None if the model has no square grid of more than one cell.
        """
        if not isinstance(feature_map, Tensor) or feature_map.ndim not in (3, 4):
            return None
        if feature_map.ndim == 3:
            # coat and volo do not declare their class token.
            declared = getattr(self.model, "num_prefix_tokens", None)
            counts = (0, 1) if declared is None else (declared,)
            candidates = [feature_map[:, count:] for count in counts]
            cells = next((c for c in candidates if is_square(c.shape[1])), candidates[0])
        elif str(getattr(self.model, "output_fmt", "NCHW")) == "NHWC":
            cells = feature_map.flatten(1, 2)
        else:
            cells = map_to_cells(feature_map)
        return cells if is_square(cells.shape[1]) and cells.shape[1] > 1 else None


def is_square(number: int) -> bool:
    """Return whether a number of cells fills a square."""
    return math.isqrt(number) ** 2 == number


def split_name(encoder: str) -> tuple[str, str]:
    """Return the name of timm's model, and the tag of its weights or an empty string."""
    name, _, tag = encoder.removeprefix(PREFIX).partition(".")
    return name, tag


def list_tags(name: str) -> list[str]:
    """Return the tags of the weights that timm has for a model, the default first."""
    import timm

    tags = [split_name(found)[1] for found in timm.list_models(f"{name}.*", pretrained=True)]
    default = timm.get_pretrained_cfg(name)
    return sorted(tags, key=lambda tag: tag != (default and default.tag))


def fetch(encoder: str, tag: str) -> Path:
    """Return the file of timm's weights in the cache; download it if necessary.

    Raises:
        WeightsError: timm has no repository for it.
        HubUnreachableError: it cannot be downloaded.
    """
    import timm

    config: Any = timm.get_pretrained_cfg(f"{split_name(encoder)[0]}.{tag}")
    if not config.hf_hub_id:
        raise WeightsError(
            f"timm's weights for --encoder {encoder} are not on the Hugging Face Hub. Download "
            f"{config.url} and give the file with --weights FILE."
        )
    return timm_hub.fetch(encoder, config.hf_hub_id)


def build(name: str, tag: str) -> Any:
    """Build a model without weights and without classifier."""
    import timm

    return timm.create_model(f"{name}.{tag}" if tag else name, num_classes=0)


def fit_weights(model: Any, path: Path, error_prefix: str) -> None:
    """Load a weights file into a model.

    Files of other programs are converted where timm can do that, e.g. those of OpenCLIP.

    Args:
        model: without classifier; changed in place.
        path: a file with a state dict, with or without a classifier of any number of classes.
        error_prefix: the beginning of the error message.

    Raises:
        WeightsError: the file cannot be read or does not fit.
    """
    state = dict(read_state_dict(path))
    # timm's modules define it under this name, but do not attach it to the model.
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(state, model)
        except Exception as error:  # timm's converters expect certain names and shapes
            raise WeightsError(
                f"{error_prefix}: timm cannot convert it ({type(error).__name__}: {error}). Give "
                "--encoder and --weights that belong together."
            ) from None
    classifiers = model.pretrained_cfg.get("classifier") or ()
    for name in (classifiers,) if isinstance(classifiers, str) else classifiers:
        state.pop(f"{name}.weight", None)
        state.pop(f"{name}.bias", None)
    load_state_dict(model, state, error_prefix)


def split_batch_norms(model: nn.Module) -> None:
    """Replace timm's batch norms with activation by two layers, which can be folded and fused."""
    from timm.layers import BatchNormAct2d

    for name, module in list(model.named_modules()):
        if type(module) is BatchNormAct2d and module.affine and module.track_running_stats:
            norm = nn.BatchNorm2d(module.num_features, module.eps)
            norm.load_state_dict(module.state_dict())
            model.set_submodule(name, nn.Sequential(norm.eval(), module.drop, module.act))


def transform_of(name: str, model: Any, image_size: int | None = None) -> Transform:
    """Return the preprocessing that a model's weights were trained with.

    Args:
        name: of the encoder, for errors.
        model: its `pretrained_cfg` describes the preprocessing.
        image_size: side of the crop in pixels; None uses the size of the weights.

    Raises:
        ConfigError: showtell does not have this preprocessing.
    """
    from timm.data import resolve_data_config

    config: Any = resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    channels, height, width = config["input_size"]
    mode, interpolation = config["crop_mode"], config["interpolation"]
    supported = mode in ("center", "squash") and interpolation in ("bilinear", "bicubic")
    if not supported or channels != 3 or height != width:
        raise ConfigError(
            f"--encoder {name} is not supported: its weights expect {height}×{width} images with "
            f"{channels} channels, {mode!r} cropping and {interpolation!r} interpolation. Choose "
            "another --encoder, e.g. timm/vit_base_patch16_clip_224.openai."
        )
    size = image_size or height
    return Transform(
        crop_size=size,
        resize_size=math.floor(size / config["crop_pct"]),
        interpolation=interpolation,
        mean=config["mean"],
        std=config["std"],
        squash=mode == "squash",
    )
