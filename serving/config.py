"""Options of `showtell caption` and `export`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..features.config import device_option, max_pixels_option
from ..model.generation.options import MAX_BEAM, DecodingOptions
from ..pipeline.stage.options import StageConfig, argument, option


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(DecodingOptions, StageConfig):
    """Options of `showtell caption`."""

    images: list[Path] = argument("Image files, or folders of images.", metavar="IMAGE")
    run: str | None = option(
        None,
        "Run to caption with, by name or folder. Default: the newest, or the built-in model if "
        "there is none.",
        group="Input",
        metavar="RUN",
    )
    model: str | None = option(
        None,
        "Bundle to caption with: a folder made by 'showtell export', or the built-in flickr8k.",
        group="Input",
        metavar="BUNDLE",
    )
    weights: str | None = option(
        None,
        "File with the encoder's weights, if it was moved after training.",
        group="Input",
        metavar="FILE",
    )
    max_pixels: int = max_pixels_option()
    device: str = device_option()
    given: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_not_both("run", "model")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(StageConfig):
    """Options of `showtell export`."""

    run: str = argument("Run to export.", metavar="RUN")
    output: Path = argument("Folder of the bundle, new or empty.", metavar="OUT")
    half: bool = option(False, "Store the weights in float16, in half the space.", group="Content")
    consensus: bool = option(
        False,
        "Add the features and captions of the training images, for --preset consensus.",
        group="Content",
    )
    beam: int = option(
        5, "Beam size, unless a caller gives another.", at_least=1, limit=MAX_BEAM, group="Decoding"
    )
    length_penalty: float = option(
        1.0,
        "Length penalty, unless a caller gives another.",
        at_least=0,
        limit=10,
        group="Decoding",
    )
    license: str = option(
        "other", "License to name in the model card.", group="Model card", metavar="NAME"
    )

    def result_options(self) -> dict[str, Any]:
        """Return the options that determine the content of the bundle, as JSON values."""
        return {k: v for k, v in super().result_options().items() if k != "output"}
