import hashlib
import io
import socket
import threading

import pytest
import torch
from torchvision.models import ResNet18_Weights

from showtell.features.encoders import hub
from showtell.features.encoders.registry import load_pretrained
from showtell.features.encoders.torchvision_models import transform_from_preset
from showtell.pipeline.stage.errors import WeightsError

ENTRY = ResNet18_Weights.IMAGENET1K_V1


def test_weights_are_downloaded_once_and_verified(
    checkpoints, serve, content, monkeypatch, refused_url
):
    name = serve(content)
    loaded = load_pretrained("resnet18", "IMAGENET1K_V1")
    assert [path.name for path in checkpoints.iterdir()] == [name]
    assert loaded.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert loaded.name == "resnet18-IMAGENET1K_V1"
    assert loaded.transform == transform_from_preset(ENTRY.transforms())
    assert not loaded.network.training
    expected = torch.load(io.BytesIO(content), weights_only=True)
    assert torch.equal(loaded.network.conv1.weight, expected["conv1.weight"])
    monkeypatch.setattr(ENTRY.value, "url", f"{refused_url}/{name}")  # the hub is gone
    assert load_pretrained("resnet18", "DEFAULT").weights_sha256 == loaded.weights_sha256


def test_unreachable_hub_error_lists_the_alternatives(checkpoints):
    with pytest.raises(WeightsError) as caught:
        load_pretrained("resnet18", "IMAGENET1K_V1")
    message = str(caught.value)
    assert "resnet18-00000000.pth cannot be downloaded" in message
    assert "refused" in message
    assert f"into {checkpoints} by hand" in message
    assert "--weights FILE" in message
    assert "--weights caffe" in message
    assert "\n" not in message


def test_hub_that_does_not_answer_times_out(checkpoints, serve, content, monkeypatch):
    ended = threading.Event()
    serve(content, hang=ended)
    monkeypatch.setattr(hub, "HUB_TIMEOUT_S", 0.3)
    try:
        with pytest.raises(WeightsError, match=r"no answer within|timed out"):
            load_pretrained("resnet18", "IMAGENET1K_V1")
    finally:
        ended.set()
    assert not list(checkpoints.glob("*"))


@pytest.mark.parametrize("fault", ["truncated", "other content", "error page"])
def test_failed_download_leaves_no_file(checkpoints, serve, content, fault):
    body = content[:5000] if fault == "truncated" else b"<html>not here</html>"
    length = len(content) if fault == "truncated" else None
    serve(body, hash_of=content, length=length, status=404 if fault == "error page" else 200)
    with pytest.raises(WeightsError, match="cannot be downloaded from torchvision's hub"):
        load_pretrained("resnet18", "IMAGENET1K_V1")
    assert not list(checkpoints.glob("*"))


def test_socket_timeout_is_restored(checkpoints, serve, content):
    before = socket.getdefaulttimeout()
    serve(content)
    load_pretrained("resnet18", "IMAGENET1K_V1")
    assert socket.getdefaulttimeout() == before


def test_damaged_file_in_the_cache_is_an_error(checkpoints, serve, content):
    name = serve(content)
    checkpoints.mkdir(parents=True)
    (checkpoints / name).write_bytes(content[:-100])
    with pytest.raises(WeightsError, match=rf"{name} is damaged: its sha256 .*Delete it"):
        load_pretrained("resnet18", "IMAGENET1K_V1")
    assert (checkpoints / name).exists()
