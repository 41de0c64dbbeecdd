"""The views of an image: the parts of it that are encoded separately, and their order."""

from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, top, right, bottom

WHOLE: Box = (0, 0, 1, 1)


@dataclass(frozen=True)
class View:
    """A part of an image, mirrored or not, that is encoded like an image of its own.

    Attributes:
        box: the part, as fractions of the image's width and height.
        mirrored: whether left and right are swapped.
    """

    box: Box
    mirrored: bool

    @property
    def is_whole(self) -> bool:
        """Whether the view covers the whole image."""
        return self.box == WHOLE

    def pixel_box(self, width: int, height: int) -> Box:
        """Return the box in pixels of an image of this size."""
        left, top, right, bottom = self.box
        return left * width, top * height, right * width, bottom * height


# Features with V views hold the first V of these, so the order is part of the file format.
VIEWS = (
    View(WHOLE, mirrored=False),
    View(WHOLE, mirrored=True),
    View((0, 0, 7 / 8, 7 / 8), mirrored=False),
    View((1 / 8, 1 / 8, 1, 1), mirrored=True),
    View((1 / 8, 0, 1, 7 / 8), mirrored=False),
    View((0, 1 / 8, 7 / 8, 1), mirrored=True),
)
