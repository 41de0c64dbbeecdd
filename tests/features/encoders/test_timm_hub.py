import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from safetensors.torch import save

from showtell.features.encoders import hub
from showtell.features.encoders.registry import load_pretrained
from showtell.pipeline.stage.errors import HubUnreachableError, WeightsError

timm = pytest.importorskip("timm")

ENCODER, REPO = "timm/test_vit.r160_in1k", "models--timm--test_vit.r160_in1k"


@pytest.fixture(scope="session")
def weights() -> bytes:
    return save(timm.create_model("test_vit").state_dict())


@pytest.fixture
def cache(tmp_path, monkeypatch, refused_url):
    """An empty cache; the Hub cannot be reached until `serve_hub` is called."""
    from huggingface_hub import constants

    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    set_endpoint(monkeypatch, refused_url)
    return tmp_path


def set_endpoint(monkeypatch, url):
    from huggingface_hub import constants

    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def serve_hub(monkeypatch, cache):
    """Serve one repository with the weights in a file of the given name, as the Hub would."""
    servers = []

    def start(name: str, content: bytes, hang: threading.Event | None = None) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                if hang is not None:
                    hang.wait(20)
                exists = self.path == f"/{ENCODER}/resolve/main/{name}"
                self.send_response(200 if exists else 404)
                self.send_header("X-Error-Code", "" if exists else "EntryNotFound")
                self.send_header("X-Repo-Commit", "c" * 40)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content) if exists else 0))
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        set_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_weights_are_downloaded_once(cache, serve_hub, weights, monkeypatch, refused_url):
    serve_hub("model.safetensors", weights)
    loaded = load_pretrained(ENCODER, "auto")
    assert loaded.name == "timm-test_vit.r160_in1k"
    assert loaded.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert loaded.transform.crop_size == 160
    set_endpoint(monkeypatch, refused_url)
    assert load_pretrained("timm/test_vit", "auto").weights_sha256 == loaded.weights_sha256


def test_repository_without_safetensors_is_read_as_a_state_dict(cache, serve_hub, tmp_path):
    import io

    import torch

    file = io.BytesIO()
    torch.save(timm.create_model("test_vit").state_dict(), file)
    serve_hub("pytorch_model.bin", file.getvalue())
    assert load_pretrained(ENCODER, "r160_in1k").transform.crop_size == 160


def test_unreachable_hub_error_gives_the_command(cache):
    with pytest.raises(HubUnreachableError) as caught:
        load_pretrained(ENCODER, "auto")
    message = str(caught.value)
    assert f"The weights of --encoder {ENCODER} are not in the cache" in message
    assert "refused" in message
    assert "'hf download timm/test_vit.r160_in1k model.safetensors'" in message
    assert "--weights FILE" in message
    assert "\n" not in message


def test_offline_mode_makes_no_request(cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        load_pretrained(ENCODER, "auto")


def test_hub_that_does_not_answer_times_out(serve_hub, monkeypatch):
    ended = threading.Event()
    serve_hub("model.safetensors", b"", hang=ended)
    monkeypatch.setattr(hub, "HUB_TIMEOUT_S", 0.3)
    started = time.perf_counter()
    try:
        with pytest.raises(HubUnreachableError, match=r"no answer within|timed out"):
            load_pretrained(ENCODER, "auto")
        assert time.perf_counter() - started < 5
    finally:
        ended.set()


def test_damaged_file_in_the_cache_is_named(cache, serve_hub, weights):
    serve_hub("model.safetensors", weights)
    load_pretrained(ENCODER, "auto")
    (blob,) = (path for path in (cache / REPO / "blobs").iterdir())
    blob.write_bytes(weights[:-1] + b"\xff")
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged: .*Delete"):
        load_pretrained(ENCODER, "auto")
