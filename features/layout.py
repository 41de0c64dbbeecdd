"""The names in a features folder: the folder itself and how the weights appear in it."""

from pathlib import Path

from .config import FeaturesConfig
from .encoders.family import is_weights_file


def features_dir(config: FeaturesConfig) -> Path:
    """Return `data/<dataset>/features/<encoder>-<weights>[-<image size>]`."""
    name = f"{config.encoder}-{weights_label(config.weights)}"
    if config.image_size is not None:
        name += f"-{config.image_size}"
    return config.dataset_dir / "features" / name


def weights_label(weights: str) -> str:
    """Return the weights as they appear in paths: the name, or a file's name without suffix."""
    return Path(weights).stem if is_weights_file(weights) else weights


def absolute_weights(weights: str) -> str:
    """Return a weights file as an absolute path, and a name unchanged."""
    return str(Path(weights).resolve()) if is_weights_file(weights) else weights
