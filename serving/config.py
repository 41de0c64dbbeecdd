"""Options of `showtell caption`."""

from dataclasses import dataclass
from pathlib import Path

from ..model.generation.options import DecodingOptions
from ..pipeline.stage.options import StageConfig, argument, option


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(DecodingOptions, StageConfig):
    """Options of `showtell caption`."""

    images: list[Path] = argument("Image files, or folders of them.")
    run: str | None = option(None, "Run to use; default the newest.")
    weights: str | None = option(None, "Where the encoder's weights file is now, if it was moved.")
    device: str = option("auto", "cpu, cuda, cuda:1, …; auto takes the GPU where there is one.")
