import re
import shutil
from argparse import Namespace
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import showtell as package
from showtell.features.config import FeaturesConfig
from showtell.features.encoders import timm_models
from showtell.features.encoders.backbone import Backbone, load_backbone
from showtell.features.encoders.family import network_name
from showtell.features.encoders.registry import check_weights, load_pretrained
from showtell.features.encoders.timm_models import TimmModels, TimmNetwork, transform_of
from showtell.features.extract import extract
from showtell.features.layout import features_dir
from showtell.features.store import FeatureStore
from showtell.features.verify import features_checks
from showtell.model.config import TrainConfig
from showtell.model.training.data import decoder_config
from showtell.pipeline.stage.errors import ConfigError, MissingArtifactError, WeightsError

timm = pytest.importorskip("timm")

CPU = torch.device("cpu")
VIT = "timm/test_vit.r160_in1k"
NUM_CLASSES = 7  # of a user's own data

# Encoder → options that make it small, image size, width and cells of its grid, and pooled width.
FAMILIES = {
    "timm/resnet50_clip.openai": ({}, 64, (4, 2048), 2048),
    "timm/vit_base_patch32_clip_224.openai": ({"depth": 1}, 224, (49, 768), 768),
    "timm/vit_base_patch16_siglip_224.webli": ({"depth": 1}, 64, (16, 768), 768),
    "timm/vit_small_patch14_dinov2.lvd142m": ({"depth": 1}, 70, (25, 384), 384),
    "timm/vit_small_patch14_reg4_dinov2.lvd142m": ({"depth": 1}, 70, (25, 384), 384),
    "timm/swin_tiny_patch4_window7_224": ({"depths": (1, 1, 1, 1)}, 224, (49, 768), 768),
    "timm/tf_efficientnet_lite0": ({}, 64, (4, 1280), 1280),
    "timm/test_resnet": ({}, 160, (25, 96), 96),
}


def randomize(model):
    """Random weights and batch statistics. They differ from those of a new network."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.add_(noise if name.endswith("running_var") else 0.04 * (noise - 0.5))
    return model.eval()


def save_random(encoder, path, **options):
    """Write a file of random weights for another number of classes; return the timm model."""
    name = encoder.removeprefix("timm/")
    model = randomize(timm.create_model(name, num_classes=NUM_CLASSES, **options))
    # Cloned, because safetensors refuses tensors that share memory.
    save_file({key: value.clone() for key, value in model.state_dict().items()}, path)
    return model


def random_pixels(size):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)


def normalized(pixels, transform):
    mean, std = (torch.tensor(v)[:, None, None] for v in (transform.mean, transform.std))
    return (pixels / 255 - mean) / std


def timms_features(model, images):
    """Pooled features and grid by timm's own methods."""
    with torch.inference_mode():
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        if hasattr(model, "num_prefix_tokens"):  # of vision transformers
            (grid,) = model.forward_intermediates(
                images, indices=1, norm=True, intermediates_only=True
            )
        else:
            grid = model.forward_features(images)
    return pooled, grid


def grid_cells(grid, model):
    return grid.flatten(1, 2) if grid.shape[-1] == model.num_features else grid.flatten(2).mT


@pytest.mark.parametrize("encoder", FAMILIES)
def test_features_equal_timms_own_forward(encoder, tmp_path, monkeypatch):
    options, size, grid_shape, width = FAMILIES[encoder]
    path = tmp_path / "mine.safetensors"
    model = save_random(encoder, path, **options)
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **options))
    backbone = load_backbone(encoder, str(path), size, CPU, "fp32")
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(size, size))
    pixels = random_pixels(size)
    pooled, grid = timms_features(model, normalized(pixels, backbone.transform))
    assert backbone.feature_dim == width
    close = partial(torch.testing.assert_close, rtol=1e-4)
    close(backbone(pixels), pooled, atol=1e-4 * float(pooled.abs().max()))
    assert (backbone.num_cells, backbone.grid_dim) == grid_shape
    cells = grid_cells(grid, model)
    close(backbone.pool_and_grid(pixels)[1], cells, atol=1e-4 * float(cells.abs().max()))


def test_grid_needs_a_square_of_cells():
    def cells_of(feature_map, **declared):
        return TimmNetwork(SimpleNamespace(**declared)).to_cells(feature_map)

    tokens = torch.rand(2, 10, 5)
    assert torch.equal(cells_of(tokens, num_prefix_tokens=1), tokens[:, 1:])
    assert torch.equal(cells_of(tokens), tokens[:, 1:])  # a class token that is not declared
    assert torch.equal(cells_of(tokens[:, 1:]), tokens[:, 1:])
    assert cells_of(tokens, num_prefix_tokens=0) is None
    assert cells_of(tokens[:, :1]) is None
    assert cells_of([tokens, tokens]) is None
    assert cells_of(torch.rand(2, 5, 2, 3)) is None


def test_network_without_grid_is_named(tmp_path):
    save_random("timm/pit_ti_224", tmp_path / "w.safetensors")
    backbone = load_backbone("timm/pit_ti_224", str(tmp_path / "w.safetensors"), None, CPU, "fp32")
    assert (backbone.feature_dim, backbone.num_cells) == (256, 0)
    with pytest.raises(ConfigError, match="timm-pit_ti_224-w has no grid features"):
        backbone.grid(random_pixels(224))


@pytest.mark.parametrize("encoder", ["timm/test_vit", "timm/test_resnet"])
def test_bf16_features_are_close_to_fp32(encoder, tmp_path):
    save_random(encoder, tmp_path / "w.safetensors")
    load = partial(load_backbone, encoder, str(tmp_path / "w.safetensors"), None, CPU)
    pixels = random_pixels(160)
    for expected, found in zip(
        load("fp32").pool_and_grid(pixels), load("bf16").pool_and_grid(pixels), strict=True
    ):
        assert 0 < torch.dist(found, expected) < 0.05 * expected.norm()


def test_image_size_resamples_position_embeddings_as_timm_does(tmp_path):
    path = tmp_path / "w.safetensors"
    save_random("timm/test_vit", path)
    backbone = load_backbone("timm/test_vit", str(path), 96, CPU, "fp32")
    model = timm.create_model(
        "test_vit",
        pretrained=True,
        num_classes=0,
        img_size=96,
        pretrained_cfg_overlay={"file": str(path)},
    ).eval()
    pixels = random_pixels(96)
    with torch.inference_mode():
        expected = model(normalized(pixels, backbone.transform))
    torch.testing.assert_close(backbone(pixels), expected, rtol=1e-4, atol=1e-5)
    assert (backbone.num_cells, backbone.name) == (36, "timm-test_vit-w-96")
    assert backbone.transform.crop_size == 96


def test_image_size_that_a_network_does_not_support_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_random("timm/pit_ti_224", path)
    with pytest.raises(ConfigError, match=r"timm-.*-w-50 does not support --image-size 50: \w"):
        load_backbone("timm/pit_ti_224", str(path), 50, CPU, "fp32")


def test_fused_layers_are_found_in_timms_networks(tmp_path):
    from showtell.features.encoders.fusion import FusedConvolution

    save_random("timm/tf_efficientnet_lite0", tmp_path / "w.safetensors")
    load = partial(
        load_pretrained, "timm/tf_efficientnet_lite0", str(tmp_path / "w.safetensors"), 64
    )
    fused = Backbone(load(), CPU, torch.float32)
    plain = Backbone(load(), CPU, torch.float32, fuse=False)
    assert any(isinstance(module, FusedConvolution) for module in fused.modules())
    pixels = random_pixels(64)
    torch.testing.assert_close(fused(pixels), plain(pixels), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_clip_224.openai",
        "vit_base_patch16_siglip_224.webli",
        "vit_small_patch14_dinov2.lvd142m",
        "tf_efficientnet_lite2.in1k",
        "resnet50.a1_in1k",
        "dm_nfnet_f0.dm_in1k",  # squashes, then crops
    ],
)
@pytest.mark.parametrize("shape", [(500, 333), (120, 161)])
def test_transform_gives_the_pixels_of_timms_transform(name, shape):
    from timm.data import create_transform, resolve_data_config

    noise = np.random.default_rng(0).integers(0, 256, (*shape[::-1], 3), np.uint8)
    image = Image.fromarray(noise)
    config = timm.get_pretrained_cfg(name).to_dict()
    data_config = resolve_data_config(pretrained_cfg=config)
    expected = create_transform(**data_config, is_training=False, use_prefetcher=True)(image)
    transform = transform_of(name, SimpleNamespace(pretrained_cfg=config))
    assert np.array_equal(transform(image), expected.numpy())
    assert transform.mean == tuple(data_config["mean"])


def test_unsupported_preprocessing_is_refused():
    config = timm.get_pretrained_cfg("resnet50.a1_in1k").to_dict() | {"input_size": (3, 1024, 768)}
    with pytest.raises(ConfigError, match="expect 1024×768 images"):
        transform_of("timm/x", SimpleNamespace(pretrained_cfg=config))


def loaded_equals(model, encoder, path):
    backbone = load_backbone(encoder, str(path), None, CPU, "fp32")
    pixels = random_pixels(backbone.transform.crop_size)
    expected, _ = timms_features(model, normalized(pixels, backbone.transform))
    torch.testing.assert_close(backbone(pixels), expected, rtol=1e-4, atol=1e-4)
    return True


def test_training_checkpoint_of_timm_is_loaded(tmp_path):
    model = randomize(timm.create_model("test_vit", num_classes=NUM_CLASSES))
    state = {f"module._orig_mod.{key}": value for key, value in model.state_dict().items()}
    options = Namespace(model="test_vit", lr=0.1)
    path = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 3, "arch": "test_vit", "state_dict": state, "args": options}, path)
    assert loaded_equals(model, "timm/test_vit", path)


def test_weights_without_classifier_are_loaded(tmp_path):
    model = randomize(timm.create_model("test_vit", num_classes=0))
    torch.save(model.state_dict(), tmp_path / "headless.pth")
    assert loaded_equals(model, "timm/test_vit", tmp_path / "headless.pth")


def test_weights_with_the_names_of_open_clip_are_converted(tmp_path, monkeypatch):
    options = {"depth": 1}
    model = randomize(timm.create_model("vit_base_patch32_clip_224", num_classes=0, **options))
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **options))
    renames = {
        "patch_embed.proj": "conv1",
        "norm_pre": "ln_pre",
        "norm": "ln_post",
        "blocks.": "transformer.resblocks.",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "norm1": "ln_1",
        "norm2": "ln_2",
    }
    state = {"visual.proj": torch.zeros(768, 512)}
    for key, value in model.state_dict().items():
        for old, new in renames.items():
            key = re.sub(
                rf"(^|(?<=\.)){re.escape(old)}(?=\.|$)" if old[-1] != "." else old, new, key
            )
        if key == "cls_token":
            key, value = "class_embedding", value[0, 0]
        if key == "pos_embed":
            key, value = "positional_embedding", value[0]
        state[f"visual.{key}"] = value
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    assert loaded_equals(
        model, "timm/vit_base_patch32_clip_224", tmp_path / "open_clip_pytorch_model.bin"
    )


def test_weights_of_another_network_are_refused(tmp_path):
    save_random("timm/test_vit", tmp_path / "vit.safetensors")
    with pytest.raises(WeightsError, match=r"vit\.safetensors does not fit .*test_resnet.*missing"):
        load_pretrained("timm/test_resnet", str(tmp_path / "vit.safetensors"))
    with pytest.raises(WeightsError, match=r"does not fit --encoder timm/test_vit2"):
        load_pretrained("timm/test_vit2", str(tmp_path / "vit.safetensors"))


def test_names_and_weights_are_checked_before_anything_is_loaded(tmp_path):
    check_weights("timm/vit_base_patch16_clip_224.openai", "auto")
    check_weights("timm/vit_base_patch16_clip_224", "openai")
    for encoder in ("timm/resnet51", "timm/resnet50.openai", "timm/", "timm"):
        with pytest.raises(ConfigError, match="is none of the"):
            check_weights(encoder, "auto")
    with pytest.raises(ConfigError, match=r"Did you mean .*timm/vit_base_patch16_clip_224\.openai"):
        check_weights("vit_base_patch16_clip_224.openai", "auto")
    with pytest.raises(ConfigError, match="expected one of openai, or a file that ends in"):
        check_weights("timm/vit_base_patch16_clip_224.openai", "laion2b")
    with pytest.raises(MissingArtifactError, match=r"none\.pth does not exist"):
        check_weights(VIT, str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match="timm has no weights for --encoder timm/coatnet_0_224"):
        load_pretrained("timm/coatnet_0_224", "auto")


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(timm_models, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Run pip install 'showtell\[timm\]'"):
        check_weights(VIT, "auto")
    assert TimmModels().list_encoders() == []


def test_folder_names_have_no_slash_and_do_not_repeat_the_tag(tmp_path):
    config = partial(FeaturesConfig, data=tmp_path, dataset="d")
    encoder = "timm/vit_base_patch16_clip_224.openai"
    folders = {
        "timm-vit_base_patch16_clip_224.openai": config(encoder=encoder, weights="openai"),
        "timm-resnet50-a1_in1k": config(encoder="timm/resnet50", weights="a1_in1k"),
        "timm-resnet50-mine-96": config(
            encoder="timm/resnet50", weights="x/mine.pth", image_size=96
        ),
    }
    for name, options in folders.items():
        assert features_dir(options) == tmp_path / "d/features" / name
    assert network_name("resnet50", "caffe") == "resnet50-caffe"


def test_scenes_are_captioned_with_attention_on_patch_tokens(showtell, prepared_scenes, tmp_path):
    data, bundle = tmp_path / "data", tmp_path / "bundle"
    shutil.copytree(prepared_scenes / "scenes", data / "scenes")
    weights = tmp_path / "w.safetensors"
    save_random(VIT, weights)
    options = ("--encoder", VIT, "--weights", weights, "--image-size", 96)
    train = ("--hidden-size", 16, "--embed-size", 16, "--epochs", 1, "--attention", "soft")
    common = ("--data", data)
    for arguments in (
        ("features", "--dataset", "scenes", *options, "--grid", "--views", 2, *common),
        ("features", "--dataset", "scenes", *options, *common),  # up to date
        ("train", "--dataset", "scenes", "--run", "r", *train, *common),
        ("export", "r", bundle, "--consensus", *common),
    ):
        status, output = showtell(*arguments)
        assert status == 0, output
    assert (data / "scenes/features/timm-test_vit.r160_in1k-w-96/manifest.json").exists()
    pictures = sorted((data / "scenes/raw/images").iterdir())[:2]
    of_run, of_bundle = (
        package.load(model, weights=weights, device="cpu") for model in (data / "runs/r", bundle)
    )
    for options in ({}, {"consensus": 5, "views": 2}):
        captions = of_bundle.caption(pictures, **options)
        assert of_run.caption(pictures, **{**of_bundle.decoding, **options}) == captions
        assert all(captions)


def test_grid_wider_or_narrower_than_the_pooled_features_is_stored(prepared_scenes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(prepared_scenes / "scenes", data / "scenes")
    encoder, weights = "timm/mobilenetv3_small_050", tmp_path / "w.safetensors"
    save_random(encoder, weights)
    config = FeaturesConfig(
        data=data, dataset="scenes", encoder=encoder, weights=str(weights), image_size=64, grid=True
    )
    counts = extract(config).counts
    assert (counts["feature_dim"], counts["grid_places"], counts["grid_dim"]) == (1024, 4, 288)
    store = FeatureStore.load(features_dir(config))
    assert store.grid_shape == (4, 288)
    assert not any(check.find_problem() for check in features_checks(features_dir(config)))
    train_config = TrainConfig(data=data, dataset="scenes", run="r", attention="soft")
    sizes = SimpleNamespace(store=store, vocab=range(10))
    assert decoder_config(train_config, sizes).feature_dim == 288
    assert decoder_config(replace(train_config, attention="none"), sizes).feature_dim == 1024
