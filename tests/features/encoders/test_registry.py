import pytest
import torch
from torch import nn

from showtell.features.encoders import registry
from showtell.features.encoders.backbone import Backbone
from showtell.features.encoders.family import EncoderFamily, PretrainedNetwork
from showtell.features.encoders.registry import check_weights, load_pretrained
from showtell.features.reading.transform import Transform
from showtell.pipeline.stage.errors import ConfigError


class MeanColors(EncoderFamily):
    """A family of one network, whose features are the mean of each color channel."""

    def list_encoders(self) -> list[str]:
        return ["mean-colors"]

    def load(self, encoder: str, weights: str) -> PretrainedNetwork:
        transform = Transform(8, None, "bilinear", (0.0,) * 3, (1.0,) * 3)
        network = nn.AdaptiveAvgPool2d(1).eval()
        return PretrainedNetwork(network, transform, f"{encoder}-{weights}", "0" * 64)


def test_another_family_adds_its_encoders(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES, MeanColors()])
    check_weights("mean-colors", "auto")
    with pytest.raises(ConfigError, match=r"'IMAGENET1K_V1' is not available .* one of default"):
        check_weights("mean-colors", "IMAGENET1K_V1")
    loaded = load_pretrained("mean-colors", "auto", 16)
    assert (loaded.name, loaded.transform.crop_size) == ("mean-colors-default-16", 16)
    backbone = Backbone(loaded, torch.device("cpu"), torch.float32)
    white = torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)
    assert backbone.feature_dim == 3
    torch.testing.assert_close(backbone(white), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("encoder", "near"),
    [("resnet5", "resnet50"), ("ResNet50", "resnet50"), ("efficientnet-b0", "efficientnet_b0")],
)
def test_unknown_encoder_suggests_similar_names(encoder, near):
    with pytest.raises(ConfigError, match=rf"none of the .* known encoders. Did you mean .*{near}"):
        load_pretrained(encoder, "DEFAULT")


@pytest.mark.parametrize("encoder", ["", "qqqq", "fasterrcnn_resnet50_fpn", "quantized_resnet50"])
def test_networks_that_do_not_classify_are_not_encoders(encoder):
    with pytest.raises(ConfigError, match=r"none of the \d+ known encoders"):
        load_pretrained(encoder, "DEFAULT")
