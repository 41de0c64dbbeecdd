import copy

import pytest
import torch
from torch import nn
from torchvision import models

from showtell.features.encoders import backbone as backbone_module
from showtell.features.encoders.backbone import Backbone, load_backbone
from showtell.features.encoders.family import PretrainedNetwork
from showtell.features.encoders.state_dict import find_head
from showtell.features.reading.transform import Transform
from showtell.pipeline.stage.errors import ConfigError, WeightsError

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTHS = {
    "resnet18": 512,
    "resnet50": 2048,
    "mobilenet_v3_small": 1024,
    "efficientnet_b0": 1280,
    "squeezenet1_1": 512,
    "densenet121": 1024,
    "convnext_tiny": 768,
    "vgg11": 4096,
    "swin_t": 768,
}


def pretrained(encoder, size=64, seed=0, std=STD):
    """A network with random weights and batch statistics as after training."""
    torch.manual_seed(seed)
    network = models.get_model(encoder, weights=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    network.set_submodule(find_head(network), nn.Identity())
    transform = Transform(size, size, "bilinear", MEAN, std)
    return PretrainedNetwork(network, transform, f"{encoder}-random", "0" * 64)


def random_pixels(size, num=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=generator)


def reference_features(source, pixels):
    """Run torchvision's own forward in eval mode and fp32."""
    network = copy.deepcopy(source.network)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (source.transform.mean, source.transform.std)
    )
    with torch.no_grad():
        return network((pixels.float() / 255 - mean) / std).flatten(1)


@pytest.mark.parametrize("encoder", WIDTHS)
def test_features_equal_torchvisions_forward(encoder):
    source = pretrained(encoder)
    pixels = random_pixels(64)
    expected = reference_features(source, pixels)
    backbone = Backbone(source, CPU, torch.float32)
    features = backbone(pixels)
    assert backbone.feature_dim == WIDTHS[encoder]
    assert features.shape == (3, backbone.feature_dim)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("encoder", ["resnet50", "mobilenet_v3_small", "convnext_tiny"])
def test_bf16_features_are_close_to_fp32(encoder):
    source = pretrained(encoder)
    pixels = random_pixels(64)
    expected = reference_features(source, pixels)
    features = Backbone(source, CPU, torch.bfloat16)(pixels)
    assert features.dtype == torch.float32
    assert 0 < torch.dist(features, expected) < 0.05 * expected.norm()


def test_normalization_uses_the_scale_of_the_weights():
    source = pretrained("resnet18", std=(1 / 255,) * 3)  # as the Caffe weights: not divided
    pixels = random_pixels(64)
    expected = reference_features(source, pixels)
    torch.testing.assert_close(
        Backbone(source, CPU, torch.float32)(pixels),
        expected,
        rtol=1e-3,
        atol=1e-3 * expected.max(),
    )


def test_running_statistics_never_change():
    source = pretrained("densenet121", size=32)  # has batch norms that follow no convolution
    backbone = Backbone(source, CPU, torch.float32)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    assert any("running_mean" in key for key in before)
    pixels = random_pixels(32)
    first = backbone(pixels)
    backbone.train()
    backbone.train(True)
    assert not any(module.training for module in backbone.modules())
    for _ in range(5):
        again = backbone(pixels)
    assert torch.equal(first, again)
    after = backbone.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_features_carry_no_gradient():
    backbone = Backbone(pretrained("resnet18", 32), CPU, torch.float32)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    with torch.enable_grad():
        assert not backbone(random_pixels(32)).requires_grad


def test_features_of_an_image_do_not_depend_on_its_batch():
    backbone = Backbone(pretrained("resnet18", 64), CPU, torch.float32)
    pixels = random_pixels(64, num=5)
    whole = backbone(pixels)
    for i in range(5):
        torch.testing.assert_close(backbone(pixels[i : i + 1])[0], whole[i], rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_memory_order_of_pixels():
    backbone = Backbone(pretrained("resnet18", 64), CPU, torch.float32)
    pixels = random_pixels(64)
    kept = pixels.clone()
    last = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(backbone(pixels), backbone(last))
    assert torch.equal(pixels, kept)


def test_fused_layers_that_fail_or_differ_are_not_used(monkeypatch):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("mkldnn_bf16 needs avx512")

    class Wrong(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 512)

    source = pretrained("resnet18")
    pixels = random_pixels(64)
    expected = reference_features(source, pixels)
    for impostor in (Broken(), Wrong()):
        monkeypatch.setattr(
            backbone_module, "fuse_activations", lambda network, impostor=impostor: impostor
        )
        features = Backbone(copy.deepcopy(source), CPU, torch.float32)(pixels)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_unsupported_image_size_is_an_error():
    with pytest.raises(ConfigError, match="squeezenet1_1-random does not support --image-size 8"):
        Backbone(pretrained("squeezenet1_1", size=8), CPU, torch.float32)
    with pytest.raises(ConfigError, match="random does not support --image-size 64: Wrong"):
        Backbone(pretrained("vit_b_32", size=64), CPU, torch.float32)


def test_features_that_are_not_finite_are_an_error():
    source = pretrained("resnet18", 32)
    source.network.layer4[1].conv2.weight.data[0, 0, 1, 1] = float("nan")
    with pytest.raises(WeightsError, match="not finite"):
        Backbone(source, CPU, torch.float32)


def test_backbone_is_loaded_from_a_file(tmp_path):
    source = pretrained("resnet18")
    whole = models.resnet18()
    whole.load_state_dict(source.network.state_dict(), strict=False)
    torch.save(whole.state_dict(), tmp_path / "mine.pth")
    backbone = load_backbone("resnet18", str(tmp_path / "mine.pth"), 64, CPU, "fp32")
    assert (backbone.name, backbone.feature_dim) == ("resnet18-mine-64", 512)
    assert (backbone.transform.crop_size, backbone.transform.resize_size) == (64, 73)
    assert len(backbone.weights_sha256) == 64
    pixels = random_pixels(64)
    expected = reference_features(source, pixels)
    torch.testing.assert_close(backbone(pixels), expected, rtol=1e-4, atol=1e-4)


def test_backbone_refuses_fp16_on_a_cpu():
    with pytest.raises(ConfigError, match="fp16 is for GPUs"):
        load_backbone("resnet18", "IMAGENET1K_V1", None, CPU, "fp16")


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet_b0"])
def test_grid_is_the_input_of_torchvisions_pooling(encoder):
    source = pretrained(encoder)
    pixels = random_pixels(64)
    network, maps = copy.deepcopy(source.network), []
    network.avgpool.register_forward_hook(lambda m, i, o: maps.append(i[0]))
    plain = PretrainedNetwork(network, source.transform, "plain", "0" * 64)
    expected = reference_features(plain, pixels)
    backbone = Backbone(source, CPU, torch.float32)
    pooled, grid = backbone.pool_and_grid(pixels)
    assert backbone.has_grid
    assert backbone.num_cells == 4
    assert grid.shape == (3, 4, backbone.feature_dim)
    assert grid.dtype == torch.float32
    rows = [maps[0][:, :, y, x] for y in range(2) for x in range(2)]
    torch.testing.assert_close(grid, torch.stack(rows, 1), rtol=1e-4, atol=1e-4 * grid.abs().max())
    torch.testing.assert_close(grid.mean(1), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(pooled, backbone(pixels))
    assert torch.equal(backbone.grid(pixels), grid)


def test_grid_in_bf16_is_found():
    backbone = Backbone(pretrained("resnet18"), CPU, torch.bfloat16)
    pooled, grid = backbone.pool_and_grid(random_pixels(64))
    assert (pooled.dtype, grid.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(grid.mean(1), pooled, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("encoder", ["densenet121", "mobilenet_v3_small", "convnext_tiny"])
def test_network_without_plain_average_pooling_has_no_grid(encoder):
    backbone = Backbone(pretrained(encoder), CPU, torch.float32)
    assert not backbone.has_grid
    message = f"{encoder}-random has no grid features.*Leave out --grid, or choose another"
    with pytest.raises(ConfigError, match=message):
        backbone.grid(random_pixels(64))
