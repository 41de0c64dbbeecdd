import hashlib
import io
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from torchvision import models
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from showtell.features.encoders import weights as weights_module
from showtell.features.encoders.weights import load_weights
from showtell.features.reading.transform import caffe_transform, from_torchvision
from showtell.pipeline.stage.errors import ConfigError, WeightsError

ENTRY = ResNet18_Weights.IMAGENET1K_V1


def refused_url():
    """A loopback address that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def content():
    """A weight file of resnet18."""
    torch.manual_seed(1)
    file = io.BytesIO()
    torch.save(models.resnet18(weights=None).state_dict(), file)
    return file.getvalue()


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """An empty cache of torch.hub's, and no hub but loopback."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(ENTRY.value, "url", f"{refused_url()}/resnet18-00000000.pth")
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def serve(monkeypatch):
    """Serve one weight file on loopback as torchvision's, perhaps badly."""
    servers = []

    def start(body, *, name_of=None, length=None, status=200, hang=None):
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                if hang is not None:
                    hang.wait(20)
                self.send_response(status)
                self.send_header("Content-Length", str(length or len(body)))
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        digest = hashlib.sha256(body if name_of is None else name_of).hexdigest()[:8]
        url = f"http://127.0.0.1:{server.server_port}/resnet18-{digest}.pth"
        monkeypatch.setattr(ENTRY.value, "url", url)
        return url.rsplit("/", 1)[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_hub_weights_are_fetched_once_and_verified(checkpoints, serve, content, monkeypatch):
    name = serve(content)
    loaded = load_weights("resnet18", "IMAGENET1K_V1", None)
    assert [path.name for path in checkpoints.iterdir()] == [name]
    assert loaded.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert loaded.name == "resnet18-IMAGENET1K_V1"
    assert loaded.transform == from_torchvision(ENTRY.transforms())
    assert not loaded.network.training
    expected = torch.load(io.BytesIO(content), weights_only=True)
    assert torch.equal(loaded.network.fc.weight, expected["fc.weight"])
    monkeypatch.setattr(ENTRY.value, "url", f"{refused_url()}/{name}")  # the hub is gone
    assert load_weights("resnet18", "DEFAULT", None).weights_sha256 == loaded.weights_sha256


def test_hub_that_cannot_be_reached_says_what_else_to_do(checkpoints):
    with pytest.raises(WeightsError) as caught:
        load_weights("resnet18", "IMAGENET1K_V1", None)
    message = str(caught.value)
    assert "resnet18-00000000.pth cannot be fetched" in message
    assert "refused" in message
    assert f"into {checkpoints} by hand" in message
    assert "--weights FILE" in message
    assert "--weights caffe" in message
    assert "\n" not in message


def test_hub_that_does_not_answer_is_given_up(checkpoints, serve, content, monkeypatch):
    ended = threading.Event()
    serve(content, hang=ended)
    monkeypatch.setattr(weights_module, "HUB_TIMEOUT_S", 0.3)
    try:
        with pytest.raises(WeightsError, match=r"no answer within|timed out"):
            load_weights("resnet18", "IMAGENET1K_V1", None)
    finally:
        ended.set()
    assert not list(checkpoints.glob("*"))


@pytest.mark.parametrize("fault", ["truncated", "other content", "error page"])
def test_hub_failure_leaves_no_file(checkpoints, serve, content, fault):
    body = content[:5000] if fault == "truncated" else b"<html>not here</html>"
    length = len(content) if fault == "truncated" else None
    serve(body, name_of=content, length=length, status=404 if fault == "error page" else 200)
    with pytest.raises(WeightsError, match="cannot be fetched from torchvision's hub"):
        load_weights("resnet18", "IMAGENET1K_V1", None)
    assert not list(checkpoints.glob("*"))


def test_socket_timeout_is_put_back(checkpoints, serve, content):
    before = socket.getdefaulttimeout()
    serve(content)
    load_weights("resnet18", "IMAGENET1K_V1", None)
    assert socket.getdefaulttimeout() == before


def test_damaged_file_in_the_cache_is_named(checkpoints, serve, content):
    name = serve(content)
    checkpoints.mkdir(parents=True)
    (checkpoints / name).write_bytes(content[:-100])
    with pytest.raises(WeightsError, match=rf"{name} is damaged: its sha256 .*Delete it"):
        load_weights("resnet18", "IMAGENET1K_V1", None)
    assert (checkpoints / name).exists()


def test_file_brings_weights_and_the_encoders_transform(tmp_path, content):
    path = tmp_path / "mine.pth"
    path.write_bytes(content)
    loaded = load_weights("resnet18", str(path), None)
    expected = torch.load(path, weights_only=True)
    assert torch.equal(loaded.network.conv1.weight, expected["conv1.weight"])
    assert loaded.name == "resnet18-mine"
    assert loaded.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert loaded.transform == from_torchvision(ResNet18_Weights.DEFAULT.transforms())


def test_file_named_like_the_caffe_conversion_is_not_special(tmp_path):
    path = tmp_path / "resnet50-caffe-1.0.4.pth"
    torch.save(models.resnet50(weights=None).state_dict(), path)
    loaded = load_weights("resnet50", str(path), None)
    assert loaded.network.layer2[0].conv1.stride == (1, 1)
    assert loaded.transform == from_torchvision(ResNet50_Weights.DEFAULT.transforms())
    assert loaded.transform != caffe_transform()


def test_file_that_does_not_fit_names_itself(tmp_path, content):
    path = tmp_path / "mine.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"mine\.pth does not fit --encoder resnet34: .*missing"):
        load_weights("resnet34", str(path), None)


def test_missing_file_is_an_error(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path / "none.safetensors"):
        with pytest.raises(WeightsError, match=rf"{path.name} does not exist"):
            load_weights("resnet18", str(path), None)


def test_image_size_scales_the_transform_and_enters_the_name(tmp_path, content):
    (tmp_path / "mine.pth").write_bytes(content)
    mine = str(tmp_path / "mine.pth")
    larger = load_weights("resnet18", mine, 448)
    assert (larger.transform.crop_size, larger.transform.resize_size) == (448, 512)
    assert larger.name == "resnet18-mine-448"
    assert load_weights("resnet18", mine, 224).name == "resnet18-mine"


@pytest.mark.parametrize(
    ("encoder", "near"),
    [("resnet5", "resnet50"), ("ResNet50", "resnet50"), ("efficientnet-b0", "efficientnet_b0")],
)
def test_unknown_encoder_names_near_ones(encoder, near):
    with pytest.raises(ConfigError, match=rf"none of torchvision's .* Did you mean .*{near}"):
        load_weights(encoder, "DEFAULT", None)


@pytest.mark.parametrize("encoder", ["", "qqqq", "fasterrcnn_resnet50_fpn", "quantized_resnet50"])
def test_networks_that_do_not_classify_are_unknown(encoder):
    with pytest.raises(ConfigError, match="none of torchvision's"):
        load_weights(encoder, "DEFAULT", None)


def test_unknown_weights_list_the_encoders_own():
    with pytest.raises(ConfigError, match=r"'V3' is none of resnet50's: IMAGENET1K_V1, .*_V2, DEF"):
        load_weights("resnet50", "V3", None)


def test_caffe_is_for_resnet50_only():
    with pytest.raises(ConfigError, match="caffe is for resnet50 only, got --encoder resnet18"):
        load_weights("resnet18", "caffe", None)
