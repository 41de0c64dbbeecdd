"""One queue of images for all requests, and one thread that captions them in batches.

Whenever the model is free, it takes the images that wait, oldest first, up to the size of a batch.
So a single image never waits for others, and under load the batches fill up. Images of different
requests share a batch if they ask for the same decoding options. While further images are being
decoded, a batch that is not full waits for them, for a moment.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...model.generation.options import DecodingOptions
from ...pipeline.stage.errors import ConfigError
from ..results import Caption
from .limits import RequestError, out_of_memory
from .metrics import Metrics
from .request_options import as_field_names, invalid_option

logger = logging.getLogger(__name__)

WAIT_S, WAITS = 0.002, 10  # how long, and how often, a batch waits for images being decoded


class BatchCaptioner(Protocol):
    """What the queue needs of a `Captioner`."""

    def caption_pixels(
        self,
        pixels: Sequence[NDArray[np.uint8]],
        options: DecodingOptions,
        *,
        details: bool = False,
    ) -> list[list[Caption]]:
        """Caption a batch, see `Captioner.caption_pixels`."""


@dataclass(frozen=True)
class Job:
    """How to caption an image; images with equal jobs may share a batch.

    Attributes:
        options: decoding options.
        details: whether to compute the probability and the attention of each word.
        alone: differs for images that may not share a batch. The random numbers of a batch are
            drawn together, so a sampled caption would depend on the other images.
    """

    options: DecodingOptions
    details: bool = False
    alone: object = None


@dataclass(eq=False)
class WaitingImage:
    """An image that waits for its captions.

    Attributes:
        pixels: (V, 3, H, W) uint8.
        job: how to caption it.
        captions: its captions, best first.
    """

    pixels: NDArray[np.uint8]
    job: Job
    captions: "asyncio.Future[list[Caption]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class CaptionQueue:
    """Captions images in batches, in a thread of its own.

    Args:
        captioner: the model.
        max_batch: the number of images of a batch, at most; 1 turns batching off.
        metrics: where batches are counted.
    """

    def __init__(self, captioner: BatchCaptioner, max_batch: int, metrics: Metrics) -> None:
        self.captioner, self.max_batch, self.metrics = captioner, max_batch, metrics
        self._waiting: deque[WaitingImage] = deque()
        self._arrived = asyncio.Event()
        self._num_expected = 0
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    def __len__(self) -> int:
        """The number of images that wait, without those of the batch being captioned."""
        return len(self._waiting)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Announce an image that is decoded during the `with` block, and may join a batch then."""
        self._num_expected += 1
        try:
            yield
        finally:
            self._num_expected -= 1

    async def caption(self, pixels: NDArray[np.uint8], job: Job) -> list[Caption]:
        """Return the captions of an image, best first.

        If the caller is cancelled, an image that still waits leaves the queue.
        """
        image = WaitingImage(pixels, job)
        self._waiting.append(image)
        self._arrived.set()
        try:
            return await image.captions
        finally:
            with suppress(ValueError):  # it is in a batch already
                self._waiting.remove(image)

    async def run(self) -> None:
        """Caption batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            for _ in range(WAITS):
                if not self._num_expected or len(self._waiting) >= self.max_batch:
                    break
                await asyncio.sleep(WAIT_S)
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                continue
            try:
                found = await loop.run_in_executor(self._model_thread, self._caption, batch)
            except Exception as error:
                answer = answer_to(error)
                for image in batch:
                    if not image.captions.done():
                        image.captions.set_exception(answer)
            else:
                for image, captions in zip(batch, found, strict=True):
                    if not image.captions.done():
                        image.captions.set_result(captions)

    def _next_batch(self) -> list[WaitingImage]:
        """Remove the oldest image from the queue, and those that may share its batch."""
        batch: list[WaitingImage] = []
        others: deque[WaitingImage] = deque()
        for image in self._waiting:
            fits = len(batch) < self.max_batch and (not batch or image.job == batch[0].job)
            (batch if fits else others).append(image)
        self._waiting = others
        return batch

    def _caption(self, batch: Sequence[WaitingImage]) -> list[list[Caption]]:
        job = batch[0].job
        self.metrics.batch_images.observe(len(batch))
        with self.metrics.batch_seconds.time():
            return self.captioner.caption_pixels(
                [image.pixels for image in batch], job.options, details=job.details
            )

    def close(self) -> None:
        """End the thread, once it has finished its batch."""
        self._model_thread.shutdown(wait=False, cancel_futures=True)


def answer_to(error: Exception) -> RequestError:
    """Log an error, unless the request caused it, and return what to answer."""
    if isinstance(error, ConfigError):  # a rule that depends on the model's vocabulary
        return invalid_option(as_field_names(str(error)))
    logger.error("images could not be captioned", exc_info=error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return out_of_memory()
    message = "The model could not caption the images. The server's log says why."
    return RequestError(500, "internal_error", message)
