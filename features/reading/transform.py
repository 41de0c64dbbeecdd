"""Image preprocessing with PIL and NumPy: resizing, cropping and the normalization constants.

A `Transform` belongs to the encoder's weights. Its fields are stored in the manifest of the
features, and captioning a new image uses the same transform.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...pipeline.stage.errors import ConfigError
from .views import VIEWS, Box, View

# Resizing all of a very long image, such as 1×5000 pixels, would need gigabytes. If the resized
# image would be longer than this many crops, only the part inside the crop is resized.
MAX_CROPS_ACROSS = 16


@dataclass(frozen=True)
class Transform:
    """Resize and crop an image. The network itself normalizes the pixels, a batch at a time.

    Attributes:
        crop_size: side of the square network input, in pixels.
        resize_size: the shorter side is resized to this length before the square is cut from the
            center; None squashes the whole image into the square instead.
        interpolation: `bilinear` or `bicubic`, always antialiased.
        mean: per channel R, G, B, on a scale of 0 to 1.
        std: per channel R, G, B, on a scale of 0 to 1.
        squash: squash the image into a square of side `resize_size` before the crop.
    """

    crop_size: int
    resize_size: int | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # lists, if read from JSON
        object.__setattr__(self, "std", tuple(self.std))
        if self.crop_size < 1 or (self.resize_size or self.crop_size) < self.crop_size:
            raise ConfigError(
                f"The crop must be at least 1 pixel and no larger than the resized image, got "
                f"crop_size={self.crop_size}, resize_size={self.resize_size}."
            )

    def __call__(self, image: Image.Image, view: View = VIEWS[0]) -> npt.NDArray[np.uint8]:
        """Resize and crop one view of an image; the pixels equal those of torchvision's preset.

        Args:
            image: mode RGB, any size.
            view: the part of the image to encode, and whether to mirror it.

        Returns:
            (3, crop_size, crop_size) uint8, RGB. The array is a transposed view of (H, W, 3)
            memory, so copying it into a channels_last batch is fast.
        """
        assert image.mode == "RGB", image.mode
        box = view.pixel_box(*image.size)
        if view.is_whole:
            square = self._resize_and_crop(image)
        elif self.resize_size is None:
            square = image.resize((self.crop_size, self.crop_size), self._resample, box=box)
        else:
            left, top, right, bottom = map(round, box)
            square = self._resize_and_crop(image.crop((left, top, right, bottom)))
        pixels = np.asarray(square, dtype=np.uint8).transpose(2, 0, 1)
        return pixels[:, :, ::-1] if view.mirrored else pixels

    @property
    def _resample(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        """Resize an image and cut the square from its center."""
        size = self.resized_size(*image.size)
        if image.size == size == (self.crop_size, self.crop_size):
            return image  # Pillow would copy it twice
        left, top = (round((side - self.crop_size) / 2) for side in size)
        crop = (left, top, left + self.crop_size, top + self.crop_size)
        if max(size) > MAX_CROPS_ACROSS * self.crop_size:
            box = _source_box(image, size, crop)
            return image.resize((self.crop_size, self.crop_size), self._resample, box=box)
        return image.resize(size, self._resample).crop(crop)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) in pixels that an image is resized to before the crop."""
        if self.resize_size is None or self.squash:
            side = self.resize_size or self.crop_size
            return side, side
        # The longer side is rounded down, as in torchvision.
        if width <= height:
            return self.resize_size, int(self.resize_size * height / width)
        return int(self.resize_size * width / height), self.resize_size

    def with_crop_size(self, crop_size: int) -> "Transform":
        """Return a copy for another `crop_size`, with `resize_size` scaled in proportion."""
        resize_size = self.resize_size and round(self.resize_size * crop_size / self.crop_size)
        return replace(self, crop_size=crop_size, resize_size=resize_size)

    def describe(self) -> dict[str, Any]:
        """Return the fields as JSON values; `Transform(**fields)` restores the transform.

        `squash` is left out unless it is set, so that earlier features stay valid.
        """
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return fields if self.squash else {k: v for k, v in fields.items() if k != "squash"}


def _source_box(image: Image.Image, size: tuple[int, int], crop: tuple[int, int, int, int]) -> Box:
    """Return the part of `image`, in pixels, that lies inside `crop` after resizing to `size`."""
    scale_x, scale_y = image.width / size[0], image.height / size[1]
    left, top, right, bottom = crop
    return (
        left * scale_x,
        top * scale_y,
        min(right * scale_x, image.width),
        min(bottom * scale_y, image.height),
    )
