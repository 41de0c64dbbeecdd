"""What the server refuses: the error of a request, and the limits on its size and on the queue."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.responses import JSONResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MB = 1_000_000

# The status of an error that nobody receives, as nginx logs it.
CLIENT_LEFT = 499


class RequestError(Exception):
    """A request, or an image of it, is refused.

    Attributes:
        status: HTTP status.
        code: short name of the reason, for programs.
        message: the reason in a sentence, for people.
        headers: further headers of the response.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def as_json(self) -> dict[str, str]:
        """Return the value of "error" in a response."""
        return {"code": self.code, "message": self.message}

    def response(self) -> JSONResponse:
        """Return the response to a request that is refused."""
        return JSONResponse({"error": self.as_json()}, self.status, self.headers)


class Places:
    """The places of images in the server, from the arrival of a request to its answer.

    Args:
        limit: the number of places.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Take places during the `with` block.

        Raises:
            RequestError: not enough of them are free.
        """
        if self.taken + count > self.limit:
            raise server_full(f"{self.taken} images wait, and the limit is {self.limit}")
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count


def server_full(reason: str) -> RequestError:
    """Return the error of a request that comes while the server has too much to do."""
    message = f"The server is full: {reason}. Send the request again in a second."
    return RequestError(429, "queue_full", message, {"Retry-After": "1"})


def out_of_memory() -> RequestError:
    """Return the error of an image or a batch that does not fit into memory."""
    return RequestError(503, "out_of_memory", "The server has not enough memory at the moment.")


class BodyLimit:
    """ASGI middleware that limits the size of bodies, also of those of unknown length.

    Args:
        app: what answers the requests within the limits.
        max_bytes: the limit for one body.
        max_total_bytes: the limit for the bodies of all requests that are being answered.
    """

    def __init__(self, app: App, max_bytes: int, max_total_bytes: int) -> None:
        self.app, self.max_bytes, self.max_total_bytes = app, max_bytes, max_total_bytes
        self.total_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if int(stated) > self.max_bytes:  # the HTTP parser has checked that it is a number
            await body_too_large(self.max_bytes).response()(scope, receive, send)
            return
        scope["received_bytes"] = 0

        async def count() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            scope["received_bytes"] += size
            self.total_bytes += size
            if scope["received_bytes"] > self.max_bytes:
                raise body_too_large(self.max_bytes)
            if self.total_bytes > self.max_total_bytes:
                raise server_full("it holds too many bytes of images")
            return message

        try:
            await self.app(scope, count, send)
        finally:
            self.total_bytes -= scope["received_bytes"]


def body_too_large(max_bytes: int) -> RequestError:
    """Return the error of a body above the limit."""
    return RequestError(
        413,
        "body_too_large",
        f"The body of the request has more than {max_bytes / MB:g} MB. Send fewer or smaller "
        f"images in one request.",
    )
