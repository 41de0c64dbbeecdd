import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from showtell.features.encoders.state_dict import find_head, fit_state_dict, read_state_dict
from showtell.pipeline.stage.errors import WeightsError


def small(num_classes=1000, encoder="resnet18"):
    torch.manual_seed(0)
    return models.get_model(encoder, weights=None, num_classes=num_classes).eval()


def same(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(k == j and torch.equal(v, w) for (k, v), (j, w) in pairs)


def refill(network):
    """Return other weights with the same names."""
    return {
        k: torch.full_like(v, 3) if v.is_floating_point() else v
        for k, v in network.state_dict().items()
    }


@pytest.mark.parametrize("wrap", ["none", "state_dict", "model", "module."])
@pytest.mark.parametrize("suffix", ["pth", "pt"])
def test_state_dict_is_read_as_torch_saves_it(tmp_path, wrap, suffix):
    source, target = small(7), small(7)
    state = refill(source)
    source.load_state_dict(state)
    path = tmp_path / f"weights.{suffix}"
    saved = {f"module.{k}": v for k, v in state.items()} if wrap == "module." else state
    torch.save({wrap: saved} if wrap in ("state_dict", "model") else saved, path)
    fit_state_dict(target, read_state_dict(path), "no")
    assert same(source, target)


def test_state_dict_is_read_from_safetensors(tmp_path):
    source, target = small(7), small(7)
    source.load_state_dict(refill(source))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    fit_state_dict(target, read_state_dict(tmp_path / "w.safetensors"), "no")
    assert same(source, target)


def test_checkpoint_of_torchvisions_training_script_is_read(tmp_path):
    state = {f"module.{key}": value for key, value in small().state_dict().items()}
    options = argparse.Namespace(model="small", lr=0.1)
    torch.save({"model": state, "optimizer": {}, "args": options}, tmp_path / "model_9.pth")
    read = read_state_dict(tmp_path / "model_9.pth")
    assert list(read) == list(small().state_dict())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip", b"\x80\x02X", b"<html>"])
def test_damaged_file_is_a_short_error(tmp_path, content):
    for name in ("bad.pth", "bad.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=r"cannot be read as a state dict: .*torch\.save"):
            read_state_dict(tmp_path / name)


def test_pickled_code_is_refused_and_not_run(tmp_path):
    torch.save(small(2), tmp_path / "whole.pth")
    with pytest.raises(WeightsError) as caught:
        read_state_dict(tmp_path / "whole.pth")
    assert "\n" not in str(caught.value)
    assert "cannot be read as a state dict" in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, np.zeros(3)])
def test_other_content_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"has no state dict|cannot be read as a state dict"):
        read_state_dict(tmp_path / "w.pth")


def test_number_of_classes_comes_from_the_head():
    for encoder in ("resnet18", "squeezenet1_1", "vgg11"):
        source, target = small(5, encoder), small(1000, encoder)
        fit_state_dict(target, source.state_dict(), "no")
        assert target(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_differences_are_counted_and_the_first_is_named():
    network = small()
    state = network.state_dict()
    del state["layer1.0.conv1.weight"]
    del state["fc.bias"]
    state["extra"] = torch.zeros(1)
    state["bn1.weight"] = torch.zeros(3)
    with pytest.raises(WeightsError) as caught:
        fit_state_dict(network, state, "w.pth does not fit")
    message = str(caught.value)
    assert (
        "w.pth does not fit: of its 122 tensors, 2 missing (first: layer1.0.conv1.weight)"
        in message
    )
    assert "1 unexpected (first: extra)" in message
    assert "1 of another shape (first: bn1.weight (3,), expected (64,))" in message


def test_weights_of_another_encoder_are_refused():
    with pytest.raises(WeightsError, match=r"\d+ missing \(first: .*\d+ unexpected"):
        fit_state_dict(small(), models.vgg11(weights=None).state_dict(), "no")


def have_equal_parameters(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_counters_may_be_absent():
    source, network = small(), small()
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    fit_state_dict(network, state, "no")
    assert have_equal_parameters(network, source)


@pytest.mark.parametrize(
    ("encoder", "old"),
    [
        ("densenet121", ("denselayer1.norm1.", "denselayer1.norm.1.")),
        ("vit_b_32", ("mlp.0.", "mlp.linear_1.")),
        ("mnasnet0_5", ("", "")),
    ],
)
def test_names_of_older_files_are_converted(encoder, old):
    source = models.get_model(encoder, weights=None)
    network = models.get_model(encoder, weights=None)
    state = {k.replace(*old) if old[0] else k: v for k, v in source.state_dict().items()}
    fit_state_dict(network, state, "no")
    assert have_equal_parameters(network, source)


def test_auxiliary_classifiers_are_ignored():
    options = {"weights": None, "init_weights": False}
    whole = models.googlenet(aux_logits=True, **options)
    network = models.googlenet(aux_logits=False, **options)
    fit_state_dict(network, whole.state_dict(), "no")
    assert torch.equal(network.fc.weight, whole.fc.weight)


@pytest.mark.parametrize(
    ("encoder", "head", "kind"),
    [
        ("resnet50", "fc", nn.Linear),
        ("squeezenet1_1", "classifier.1", nn.Conv2d),
        ("mobilenet_v3_small", "classifier.3", nn.Linear),
        ("efficientnet_b0", "classifier.1", nn.Linear),
        ("densenet121", "classifier", nn.Linear),
        ("convnext_tiny", "classifier.2", nn.Linear),
        ("vgg11", "classifier.6", nn.Linear),
        ("swin_t", "head", nn.Linear),
    ],
)
def test_head_is_the_classifier(encoder, head, kind):
    network = small(encoder=encoder)
    assert find_head(network) == head
    assert type(network.get_submodule(head)) is kind
