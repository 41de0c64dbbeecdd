"""A server with a fake model, whose captions depend on nothing but the pixels of their image."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from showtell.features.reading.transform import Transform
from showtell.model.generation.options import DecodingOptions
from showtell.serving.results import Caption, Token
from showtell.serving.server.config import ServeConfig

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from showtell.serving.server.app import create_app
from showtell.serving.server.listen import Server, bind, served_in_thread, url_of
from showtell.serving.server.metrics import Metrics
from showtell.serving.server.service import CaptionService

Color = tuple[int, int, int]


def caption_of(color: Color) -> str:
    """What the fake model says about an image of one color."""
    return "red {} green {} blue {}".format(*color)


def draw(color: Color, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """An image file of one color."""
    content = BytesIO()
    Image.new("RGB", size, color).save(content, kind)
    return content.getvalue()


@dataclass
class FakeCaptioner:
    """Captions an image with its mean color.

    Attributes:
        batches: number of images of each batch so far.
        error: raised instead of captioning.
        is_free: cleared by a test that wants batches to wait.
    """

    batches: list[int] = field(default_factory=list)
    error: Exception | None = None
    is_free: threading.Event = field(default_factory=threading.Event)
    backbone: Any = field(
        default_factory=lambda: SimpleNamespace(
            transform=Transform(8, None, "bilinear", (0.0,) * 3, (1.0,) * 3)
        )
    )

    def __post_init__(self) -> None:
        self.is_free.set()

    def caption_pixels(
        self, pixels: Sequence[NDArray[np.uint8]], options: Any, *, details: bool = False
    ) -> list[list[Caption]]:
        self.batches.append(len(pixels))
        assert self.is_free.wait(20)
        if self.error:
            raise self.error
        return [self._caption(views, options, details) for views in pixels]

    def _caption(self, views: NDArray[np.uint8], options: Any, details: bool) -> list[Caption]:
        assert views.shape == (options.views, 3, 8, 8)
        text = caption_of(tuple(round(float(mean)) for mean in views[0].mean((1, 2))))
        words = [*text.split(), ""]
        grid = np.full(4, 0.25, np.float32)
        tokens = tuple(Token(word, -0.5, grid) for word in words) if details else ()
        return [
            Caption(text, -0.5 * len(words) - rank, -1.0 - rank, tokens)
            for rank in range(options.n_best)
        ]


@dataclass(frozen=True)
class Running:
    """A server that runs in a thread."""

    captioner: FakeCaptioner
    service: CaptionService
    server: Server
    client: httpx.Client
    address: tuple[str, int]

    def post(self, *images: bytes, **data: Any) -> httpx.Response:
        """Send images in one form."""
        files = [("images", ("photo", image)) for image in images]
        return self.client.post("/caption", files=files, data=data)


@contextmanager
def run_server(captioner: Any, **options: Any) -> Iterator[Running]:
    """Run a server on a free port of this machine."""
    config = ServeConfig(**{"port": 0, "stop_timeout": 5.0, **options})
    service = CaptionService(captioner, config, DecodingOptions(), Metrics())
    model = {"name": "fake", "encoder": "none", "has_attention": True, "crop": None}
    server = Server(create_app(service, config, model), service, config.stop_timeout)
    listener = bind("127.0.0.1", config.port)
    address, url = listener.getsockname(), url_of(listener)
    with served_in_thread(server, listener), httpx.Client(base_url=url, timeout=20) as client:
        try:
            yield Running(captioner, service, server, client, address)
        finally:
            captioner.is_free.set()


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start a server with a fake model; takes fields of `ServeConfig`."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(run_server(FakeCaptioner(), **options))


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A server with default options, for tests that do not change it."""
    with run_server(FakeCaptioner()) as server:
        yield server
