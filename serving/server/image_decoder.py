"""Decode the images of requests in threads, with limits on pixels and memory."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...features.reading.broken_images import PIXEL_LIMIT, READ_FAILED, UnreadableImageError
from ...features.reading.decode import decode_opened, open_image
from ...features.reading.formats import UNSUPPORTED
from ...features.reading.limits import DecodingBudget
from ...features.reading.transform import Transform
from ...features.reading.views import VIEWS
from .limits import RequestError, out_of_memory
from .metrics import Metrics


class ImageDecoder:
    """Turn the bytes of image files into pixels, a few at a time.

    Args:
        transform: the preprocessing of the encoder.
        max_pixels: images with more pixels are refused.
        num_workers: number of images decoded at once.
        metrics: where the time is recorded.
    """

    def __init__(
        self, transform: Transform, max_pixels: int, num_workers: int, metrics: Metrics
    ) -> None:
        self.transform, self.max_pixels, self.metrics = transform, max_pixels, metrics
        self.budget = DecodingBudget.for_threads()
        self.pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")

    async def decode(self, file: BinaryIO, num_views: int) -> NDArray[np.uint8]:
        """Return the views of an image, (V, 3, H, W) uint8.

        If the caller is cancelled, an image that no thread has begun with is never decoded.

        Raises:
            RequestError: it is not an image, corrupt, or too large.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, self._decode, file, num_views)

    def _decode(self, file: BinaryIO, num_views: int) -> NDArray[np.uint8]:
        content = file.read()
        with self.metrics.decode_seconds.time():
            try:
                image, num_bytes = open_image(content, self.transform, self.max_pixels)
                with self.budget.reserve(num_bytes):
                    image = decode_opened(image)
                    views = np.stack([self.transform(image, view) for view in VIEWS[:num_views]])
                    del image  # before others may decode
                return views
            except UnreadableImageError as error:
                raise refusal(content, error) from None

    def close(self) -> None:
        """End the threads, once each has finished its image."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def refusal(content: bytes, error: UnreadableImageError) -> RequestError:
    """Return what to answer about an unreadable image."""
    reason = f"The image cannot be read: {error}."
    if str(error).startswith(READ_FAILED):
        return out_of_memory()
    if not content:
        return RequestError(422, "empty_image", "The image is empty: it has 0 bytes.")
    if PIXEL_LIMIT.search(str(error)):
        return RequestError(413, "too_many_pixels", f"The image {error}.")
    if str(error).endswith(UNSUPPORTED):
        return RequestError(415, "format_not_supported", f"The image {error}.")
    if "not an image" in str(error):
        return RequestError(
            415,
            "not_an_image",
            "The file is not an image in a known format. Send a JPEG, PNG, WebP, GIF, AVIF, BMP or "
            "TIFF file.",
        )
    return RequestError(422, "unreadable_image", reason)
