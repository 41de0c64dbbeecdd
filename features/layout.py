"""The path of a features folder, and how paths and manifests name the weights."""

from pathlib import Path

from .config import FeaturesConfig
from .encoders.family import is_weights_file, network_name


def features_dir(config: FeaturesConfig) -> Path:
    """Return `data/<dataset>/features/<encoder>-<weights>[-<image size>]`."""
    name = network_name(config.encoder, weights_label(config.weights))
    if config.image_size is not None:
        name += f"-{config.image_size}"
    return config.dataset_dir / "features" / name


def weights_label(weights: str) -> str:
    """Return the part of a path that names the weights: their name, or the file's stem."""
    return Path(weights).stem if is_weights_file(weights) else weights


def absolute_weights(weights: str) -> str:
    """Return the absolute path if `weights` is a file, else `weights` unchanged."""
    return str(Path(weights).resolve()) if is_weights_file(weights) else weights
