"""Answer a request for captions: within the limits, in order, and only while its client waits."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, BinaryIO, Protocol, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from ...features.encoders.backbone import Backbone
from ...features.reading.batches import count_cores
from ...model.generation.options import DecodingOptions
from ..results import Caption
from .config import ServeConfig
from .image_decoder import ImageDecoder
from .limits import Places, RequestError
from .metrics import Metrics
from .queue import BatchCaptioner, CaptionQueue, Job, answer_to
from .request_body import RequestBody, read_body
from .request_options import read_flag, read_options
from .schema import ResultsJson, to_json

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ClientLeftError(Exception):
    """The client has closed the connection; nobody receives an answer."""


class ServedCaptioner(BatchCaptioner, Protocol):
    """What the server needs of a `Captioner`."""

    backbone: Backbone


class CaptionService:
    """Captions the images of requests, with limits on their number and on time.

    Args:
        captioner: the model.
        config: the limits.
        defaults: decoding options of requests that give none.
        metrics: where images and batches are counted.
    """

    def __init__(
        self,
        captioner: ServedCaptioner,
        config: ServeConfig,
        defaults: DecodingOptions,
        metrics: Metrics,
    ) -> None:
        self.config, self.defaults, self.metrics = config, defaults, metrics
        self.places = Places(config.max_queue)
        self.queue = CaptionQueue(captioner, config.max_batch, metrics)
        self.decoder = ImageDecoder(
            captioner.backbone.transform,
            config.max_pixels,
            config.num_workers or count_cores(),
            metrics,
        )
        self._requests: set[asyncio.Task[Any]] = set()
        self._is_stopped = False
        metrics.watch("showtell_places_taken", "Images in the server.", lambda: self.places.taken)
        metrics.watch("showtell_images_waiting", "Decoded images that wait.", self.queue.__len__)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Caption what arrives, during the `async with` block."""
        self._batches = asyncio.create_task(self.queue.run())
        try:
            yield
        finally:
            self._batches.cancel()
            with suppress(asyncio.CancelledError):
                await self._batches
            self.decoder.close()
            self.queue.close()

    @property
    def is_healthy(self) -> bool:
        """Whether the server captions images."""
        return not self._batches.done()

    def stop(self) -> None:
        """Answer all requests at once, with an error."""
        self._is_stopped = True
        for task in self._requests:
            task.cancel()

    async def answer(self, request: Request) -> tuple[int, ResultsJson]:
        """Return the status and the results of a request.

        Raises:
            RequestError: the request is refused.
            ClientLeftError: nobody waits for the results.
        """
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        try:
            return await self._answer(request)
        except asyncio.CancelledError:
            if not self._is_stopped:
                raise
            task.uncancel()
            raise RequestError(503, "stopping", "The server is stopping.") from None
        except ClientDisconnect:
            raise ClientLeftError from None
        finally:
            self._requests.discard(task)
            await request.close()

    async def _answer(self, request: Request) -> tuple[int, ResultsJson]:
        with self.places.reserve(1):
            body = await self._read(request)
            details = read_flag("details", body.options.pop("details", False))
            options = read_options(self.defaults, body.options, self.config.max_beam)
            jobs = [Job(options, details, file if options.sample else None) for file in body.images]
            request.scope["log"] = {"images": len(body.images)}
            with self.places.reserve(len(body.images) - 1):
                results = await self._caption_all(request, body.images, jobs)
        for result in results:
            outcome = result.code if isinstance(result, RequestError) else "captioned"
            self.metrics.images.labels(outcome).inc()
        return to_json(results, details or options.n_best > 1)

    async def _read(self, request: Request) -> RequestBody:
        try:
            async with asyncio.timeout(self.config.timeout):
                return await read_body(request, self.config.max_images)
        except TimeoutError:
            message = f"The request did not arrive within {self.config.timeout:g} s."
            raise RequestError(408, "upload_timeout", message) from None
        except OSError as error:  # of the folder for temporary files
            logger.error("an upload could not be stored", exc_info=error)
            message = f"The server could not store the images: {error.strerror}."
            raise RequestError(503, "out_of_space", message) from None

    async def _caption_all(
        self, request: Request, files: Sequence[BinaryIO], jobs: Sequence[Job]
    ) -> list[list[Caption] | RequestError]:
        work = asyncio.gather(*map(self._caption, files, jobs))
        try:
            async with asyncio.timeout(self.config.timeout):
                return await unless_client_leaves(request, work)
        except TimeoutError:
            message = (
                f"The captions were not ready within {self.config.timeout:g} s. Send fewer images, "
                "or ask for a smaller beam."
            )
            raise RequestError(504, "timeout", message) from None

    async def _caption(self, file: BinaryIO, job: Job) -> list[Caption] | RequestError:
        """Return the captions of an image, or why it has none."""
        try:
            with self.queue.expecting():
                pixels = await self.decoder.decode(file, job.options.views)
            return await self.queue.caption(pixels, job)
        except RequestError as error:
            return error
        except Exception as error:
            return answer_to(error)


async def unless_client_leaves(request: Request, work: "asyncio.Future[T]") -> T:
    """Wait for `work`; cancel it if the client closes the connection.

    Args:
        request: its body has been read.
        work: a task, or several from `asyncio.gather`.

    Raises:
        ClientLeftError: the client left first.
    """
    client = asyncio.create_task(until_client_leaves(request))
    either: set[asyncio.Future[Any]] = {work, client}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientLeftError
        return work.result()
    finally:
        client.cancel()
        work.cancel()
        await asyncio.gather(*either, return_exceptions=True)


async def until_client_leaves(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
