"""How a picture becomes the pixels that a network was trained on (PIL and numpy, no torch).

A `Transform` belongs to the weights: it goes into the manifest of their features, and whoever
captions a new picture uses the same object.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..pipeline.errors import ConfigError

# Wider results than this many crops are never made in full: a 1×5000 line would take gigabytes.
MAX_CROPS_ACROSS = 16


class Preset(Protocol):
    """What is read of torchvision's `ImageClassification`."""

    resize_size: list[int]
    crop_size: list[int]
    interpolation: Any
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Transform:
    """Picture → pixels; the network normalises them itself, in whole batches.

    Attributes:
        crop_size: side of the square that the network sees, in pixels.
        resize_size: length that the shorter side is resized to before the square is cut from the
            centre; None squashes the whole picture into the square instead.
        interpolation: `bilinear` or `bicubic`, always antialiased.
        mean: of R, G and B, in units of 0 to 1.
        std: of R, G and B, in units of 0 to 1.
    """

    crop_size: int
    resize_size: int | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # JSON has lists
        object.__setattr__(self, "std", tuple(self.std))
        if self.crop_size < 1 or (self.resize_size or self.crop_size) < self.crop_size:
            raise ConfigError(
                f"the crop must be at least 1 pixel and no larger than the resized picture, got "
                f"crop_size={self.crop_size}, resize_size={self.resize_size}."
            )

    def __call__(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Resize and crop one picture, to the byte as torchvision's preset does.

        Args:
            image: mode RGB, any size.

        Returns:
            (3, crop_size, crop_size) uint8, RGB. A view whose memory is (H, W, 3): copied into a
            batch in channels_last order it needs no transposition.
        """
        assert image.mode == "RGB", image.mode
        size = self.resized(*image.size)
        resample = Image.Resampling[self.interpolation.upper()]
        left, top = (round((side - self.crop_size) / 2) for side in size)
        window = (left, top, left + self.crop_size, top + self.crop_size)
        if max(size) > MAX_CROPS_ACROSS * self.crop_size:
            cut = image.resize(
                (self.crop_size,) * 2, resample, box=_source_box(image, size, window)
            )
        else:
            cut = image.resize(size, resample).crop(window)
        return np.asarray(cut, dtype=np.uint8).transpose(2, 0, 1)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Size in pixels of the resized picture from which the square is cut."""
        if self.resize_size is None:
            return self.crop_size, self.crop_size
        # The longer side is rounded down, as torchvision does.
        if width <= height:
            return self.resize_size, int(self.resize_size * height / width)
        return int(self.resize_size * width / height), self.resize_size

    def decode_size(self, width: int, height: int) -> tuple[int, int]:
        """Smallest size that a JPEG of this size may be decoded to, for `Image.draft`.

        The decoder halves a large picture almost for free; it never goes below this size, so that
        the resize still only shrinks.
        """
        return self.resized(width, height)

    def scaled_to(self, image_size: int) -> "Transform":
        """The same for another crop, in pixels; the resize follows in proportion."""
        resize_size = self.resize_size and round(self.resize_size * image_size / self.crop_size)
        return replace(self, crop_size=image_size, resize_size=resize_size)

    def describe(self) -> dict[str, Any]:
        """The transform as JSON values; `Transform(**described)` makes it again."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def from_torchvision(preset: Preset, image_size: int | None = None) -> Transform:
    """Take over torchvision's preset of some weights.

    Args:
        preset: what `weights.transforms()` returns for classification.
        image_size: side of the crop in pixels; None is the preset's own.
    """
    own = Transform(
        crop_size=preset.crop_size[0],
        resize_size=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    return own.scaled_to(image_size or own.crop_size)


def caffe_transform(image_size: int = 224) -> Transform:
    """The transform of the Caffe ResNets: the whole picture squashed, only the mean subtracted.

    The published means are of B, G, R in units of 0 to 255; the converted weights take RGB.
    """
    return Transform(
        crop_size=image_size,
        resize_size=None,
        interpolation="bilinear",
        mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
    )


def _source_box(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int]
) -> tuple[float, float, float, float]:
    """The part of `image` that, resized to `size`, would lie in `window`."""
    across, down = image.width / size[0], image.height / size[1]
    left, top, right, bottom = window
    return (
        left * across,
        top * down,
        min(right * across, image.width),
        min(bottom * down, image.height),
    )
