"""Small copies of the evaluated images, decoded in parallel."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from ...features.extract import pillow_warnings_ignored
from ...features.reading.batches import count_cores
from ...features.reading.broken_images import reading_reason
from ...features.reading.decode import decode_opened, open_image
from ...features.reading.limits import MAX_PIXELS, DecodingBudget
from ...features.reading.transform import Transform
from ...features.reading.views import Box
from ...features.reading.workers import cancelled_on_exit
from ...pipeline.images.image_files import ImageFiles
from ...pipeline.stage.console import ProgressLine, print_warning
from ...pipeline.stage.errors import DatasetError

# 7 to 12 kB at 320 pixels. A slower method saves 4 % of the size for twice the time.
WEBP = {"quality": 65, "method": 2}


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of an image.

    Attributes:
        webp: the content of its file.
        width: in pixels.
        height: in pixels.
    """

    webp: bytes
    width: int
    height: int


@dataclass(frozen=True)
class ThumbnailMaker:
    """Reads image files and shrinks them.

    Attributes:
        files: where the images are.
        size: the longer side of a thumbnail, in pixels.
        budget: shared by all threads.
    """

    files: ImageFiles
    size: int
    budget: DecodingBudget

    def make(self, file_name: str) -> Thumbnail | str:
        """Return the thumbnail of an image, or the reason why it is unreadable."""
        # Only the size matters: a large JPEG is decoded at a reduced size that is not below it.
        at_least = Transform(self.size, self.size, "bilinear", (), ())
        try:
            content = self.files.read(file_name)
            image, num_bytes = open_image(content, at_least, MAX_PIXELS)
            with self.budget.reserve(num_bytes):
                image = decode_opened(image)
                image.thumbnail((self.size, self.size), Image.Resampling.BICUBIC)
        except (DatasetError, OSError) as error:
            return reading_reason(error)
        file = io.BytesIO()
        image.save(file, "WEBP", **WEBP)
        return Thumbnail(file.getvalue(), image.width, image.height)


def make_thumbnails(
    files: ImageFiles, file_names: Sequence[str], size: int
) -> list[Thumbnail | None]:
    """Shrink images in threads; print one warning if some cannot be read.

    Args:
        files: where the images are.
        file_names: N names.
        size: the longer side of a thumbnail, in pixels.

    Returns:
        N thumbnails, None for an unreadable image.
    """
    maker = ThumbnailMaker(files, size, DecodingBudget.for_threads())
    made: list[Thumbnail | str] = []
    pool = ThreadPoolExecutor(count_cores(), thread_name_prefix="thumbnail")
    with (
        pillow_warnings_ignored(),
        cancelled_on_exit(pool),
        ProgressLine("thumbnails", len(file_names), "img") as progress,
    ):
        for thumbnail in pool.map(maker.make, file_names):
            made.append(thumbnail)
            progress.advance(1)
    broken = [(n, t) for n, t in zip(file_names, made, strict=True) if isinstance(t, str)]
    if broken:
        name, reason = broken[0]
        print_warning(
            f"{len(broken):,} of {len(made):,} images are not shown because they could not be "
            f"read. The first is {files.locate(name)}: {reason}."
        )
    return [None if isinstance(thumbnail, str) else thumbnail for thumbnail in made]


def encoded_box(transform: Transform, width: int, height: int) -> Box:
    """Return the part of an image that the encoder reads: left, top, right, bottom as fractions."""
    if transform.resize_size is None:
        return 0.0, 0.0, 1.0, 1.0
    sides = transform.resized_size(width, height)
    left, top = (max(0.0, (side - transform.crop_size) / 2 / side) for side in sides)
    return left, top, 1 - left, 1 - top
