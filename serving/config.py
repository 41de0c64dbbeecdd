"""Options of `showtell caption`."""

from dataclasses import dataclass
from pathlib import Path

from ..features.config import device_option, max_pixels_option
from ..model.generation.options import DecodingOptions
from ..pipeline.stage.options import StageConfig, argument, option


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(DecodingOptions, StageConfig):
    """Options of `showtell caption`."""

    images: list[Path] = argument("Image files, or folders of images.", metavar="IMAGE")
    run: str | None = option(
        None,
        "Run to caption with, by name or folder. Default: the newest.",
        group="Input",
        metavar="RUN",
    )
    weights: str | None = option(
        None,
        "File with the encoder's weights, if it was moved after training.",
        group="Input",
        metavar="FILE",
    )
    max_pixels: int = max_pixels_option()
    device: str = device_option()
