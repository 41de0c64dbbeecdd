"""Listen for HTTP, with uvicorn, until SIGTERM or Ctrl-C; then finish the accepted requests."""

import asyncio
import logging
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from ...pipeline.stage.errors import ConfigError
from ...pipeline.stage.signals import deferred_signals
from .limits import App
from .request_log import JsonFormatter
from .service import CaptionService

KEEP_ALIVE_S = 65  # above the 60 s for which proxies usually reuse an idle connection
CLOSE_S = 2.0  # to send the last answers


class Server(uvicorn.Server):
    """A uvicorn server that answers unfinished requests when the time to stop is over.

    Args:
        app: the ASGI application.
        service: captions the images of its requests.
        stop_timeout: seconds to finish requests after a signal.
    """

    def __init__(self, app: App, service: CaptionService, stop_timeout: float) -> None:
        self.service, self.stop_timeout = service, stop_timeout
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=round(stop_timeout + CLOSE_S),
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at SIGTERM or Ctrl-C; `timeout` may send it twice.

        A second signal of the user ends the process, see `pipeline/stage/signals.py`.
        """
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and wait for the requests that were accepted."""
        asyncio.get_running_loop().call_later(self.stop_timeout, self.service.stop)
        await super().shutdown(sockets)


def run_server(server: Server, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C. A second signal ends the process at once."""
    with deferred_signals():
        server.run(sockets=[listener])


@contextmanager
def served_in_thread(server: Server, listener: socket.socket) -> Iterator[None]:
    """Answer requests in another thread, during the `with` block."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    listener.listen()  # clients may connect before the thread has started
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address. Clients are refused until a server listens on it.

    Raises:
        ConfigError: the address does not exist, or is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"The server cannot listen on --host {host} --port {port}: {error.strerror}. Another "
            f"port may be free: add --port {port + 1 if port < 65535 else 8000}."
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL of the page, as a browser on this machine opens it."""
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/"


def set_up_logs(level: int) -> None:
    """Write the logs of this process to stderr, as lines of JSON.

    Args:
        level: of showtell's own messages; other libraries log warnings and errors.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger(__name__.partition(".")[0]).setLevel(level)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of malformed forms
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about unusual but readable images
    logging.captureWarnings(True)
