"""How a picture becomes the pixels that a network was trained on (PIL and numpy, no torch).

A `Transform` belongs to the weights: it goes into the manifest of their features, and whoever
captions a new picture uses the same object.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...pipeline.stage.errors import ConfigError

# Wider results than this many crops are never made in full: a 1×5000 line would take gigabytes.
MAX_CROPS_ACROSS = 16

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Preset(Protocol):
    """What is read of torchvision's `ImageClassification`."""

    resize_size: list[int]
    crop_size: list[int]
    interpolation: Any
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class View:
    """A part of a picture, perhaps mirrored, that the network sees as a picture of its own.

    Attributes:
        box: of the part, in units of the picture's width and height.
        mirrored: left to right.
    """

    box: Box
    mirrored: bool

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the picture is left out."""
        return self.box == WHOLE

    def box_in(self, image: Image.Image) -> Box:
        """The part in pixels of `image`."""
        left, top, right, bottom = self.box
        return left * image.width, top * image.height, right * image.width, bottom * image.height


WHOLE: Box = (0, 0, 1, 1)
# The first V are the V views that are cached: their order is part of the format.
VIEWS = (
    View(WHOLE, mirrored=False),
    View(WHOLE, mirrored=True),
    View((0, 0, 7 / 8, 7 / 8), mirrored=False),
    View((1 / 8, 1 / 8, 1, 1), mirrored=True),
    View((1 / 8, 0, 1, 7 / 8), mirrored=False),
    View((0, 1 / 8, 7 / 8, 1), mirrored=True),
)


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

    def __call__(self, image: Image.Image, view: View = VIEWS[0]) -> npt.NDArray[np.uint8]:
        """Resize and crop one picture, to the byte as torchvision's preset does.

        Args:
            image: mode RGB, any size.
            view: what of it.

        Returns:
            (3, crop_size, crop_size) uint8, RGB. A view whose memory is (H, W, 3): copied into a
            batch in channels_last order it needs no transposition.
        """
        assert image.mode == "RGB", image.mode
        if view.is_whole:
            square = self._cut_square(image)
        elif self.resize_size is None:
            size = (self.crop_size, self.crop_size)
            square = image.resize(size, self._resample, box=view.box_in(image))
        else:
            left, top, right, bottom = map(round, view.box_in(image))
            square = self._cut_square(image.crop((left, top, right, bottom)))
        pixels = np.asarray(square, dtype=np.uint8).transpose(2, 0, 1)
        return pixels[:, :, ::-1] if view.mirrored else pixels

    @property
    def _resample(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]

    def _cut_square(self, image: Image.Image) -> Image.Image:
        """Resize a picture and cut the square from its centre."""
        size = self.resized(*image.size)
        resample = self._resample
        left, top = (round((side - self.crop_size) / 2) for side in size)
        window = (left, top, left + self.crop_size, top + self.crop_size)
        if max(size) > MAX_CROPS_ACROSS * self.crop_size:
            square = (self.crop_size, self.crop_size)
            return image.resize(square, resample, box=_source_box(image, size, window))
        return image.resize(size, resample).crop(window)

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
        the resize still only shrinks. (That of a view's part may enlarge a little: all views are
        of the one picture that the plain view is of.)
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
