"""A fake torchvision hub on loopback, and an empty weights cache."""

import hashlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from torchvision import models
from torchvision.models import ResNet18_Weights, ResNet50_Weights

ENTRIES = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
}


@pytest.fixture
def refused_url() -> str:
    """An address on loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def checkpoints(tmp_path, monkeypatch, refused_url) -> Path:
    """The folder of an empty weights cache; the hub cannot be reached until `serve` is called."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for encoder, entry in ENTRIES.items():
        monkeypatch.setattr(entry.value, "url", f"{refused_url}/{encoder}-00000000.pth")
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="session")
def content() -> bytes:
    """A weights file of resnet18."""
    torch.manual_seed(1)
    file = io.BytesIO()
    torch.save(models.resnet18(weights=None).state_dict(), file)
    return file.getvalue()


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., str]]:
    """Serve a weights file as the hub would, or as a faulty one; returns the name of the file."""
    servers = []

    def start(
        body: bytes,
        *,
        encoder: str = "resnet18",
        hash_of: bytes | None = None,
        length: int | None = None,
        status: int = 200,
        hang: threading.Event | None = None,
    ) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                if hang is not None:
                    hang.wait(20)
                self.send_response(status)
                self.send_header("Content-Length", str(length or len(body)))
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        digest = hashlib.sha256(body if hash_of is None else hash_of).hexdigest()[:8]
        url = f"http://127.0.0.1:{server.server_port}/{encoder}-{digest}.pth"
        monkeypatch.setattr(ENTRIES[encoder].value, "url", url)
        return url.rsplit("/", 1)[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
