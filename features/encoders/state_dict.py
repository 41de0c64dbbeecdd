"""Weights files: read a state dict and load it into a network, or say what differs."""

import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import safe_globals

from ...pipeline.stage.errors import WeightsError

# Names in older torchvision files → current names.
RENAMED = (
    (r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)", r"\1"),
    (r"\.mlp\.linear_1\.", ".mlp.0."),
    (r"\.mlp\.linear_2\.", ".mlp.3."),
)
# Auxiliary classifiers of googlenet and inception_v3, used only in training.
AUXILIARY = re.compile(r"(aux1|aux2|AuxLogits)\.")
COUNTER = "num_batches_tracked"
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # prefixes of DataParallel and torch.compile


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """Read a state dict, at the top level of the file or under `state_dict` or `model`.

    Prefixes that DataParallel and torch.compile add to the names are removed.

    Args:
        path: a `.safetensors` file, or one that `torch.save` wrote, e.g. a training checkpoint of
            torchvision or timm. Pickled code is never run.

    Raises:
        WeightsError: the file cannot be read, or has no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return _without_wrappers(load_file(path))
        with safe_globals([Namespace]):  # checkpoints contain the training options
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any error
        reason = re.split(r"[.:]?\s*\n|\. ", f"{error}")[0] or type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as a state dict: {reason}. Write one with "
            "torch.save(network.state_dict(), FILE)."
        ) from None
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f"{path} has no state dict: expected names and tensors, at the top level or under "
            "'state_dict' or 'model'. Write one with torch.save(network.state_dict(), FILE)."
        )
    return _without_wrappers(state)


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {WRAPPERS.sub("", key): value for key, value in state.items()}


def fit_state_dict(network: nn.Module, state: Mapping[str, Tensor], error_prefix: str) -> None:
    """Load a state dict into a network, which may have been trained for other classes.

    Args:
        network: one of torchvision's classification networks; changed in place.
        state: name → tensor; names of older torchvision versions are accepted.
        error_prefix: the beginning of the error message.

    Raises:
        WeightsError: see `load_state_dict`.
    """
    current = {
        _current_name(key): value for key, value in state.items() if not AUXILIARY.match(key)
    }
    fit_head(network, current)
    load_state_dict(network, current, error_prefix)


def load_state_dict(network: nn.Module, state: Mapping[str, Tensor], error_prefix: str) -> None:
    """Load a state dict with the names and shapes of a network.

    Args:
        network: changed in place.
        state: name → tensor.
        error_prefix: the beginning of the error message.

    Raises:
        WeightsError: names are missing or unexpected, or shapes differ; the message counts them
            and gives the first of each.
    """
    current = OrderedDict(state)
    own: Any = network.state_dict()
    reshaped = [
        f"{key} {tuple(current[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in current and current[key].shape != own[key].shape
    ]
    differences = {
        "missing": [key for key in own if key not in current and not key.endswith(COUNTER)],
        "unexpected": [key for key in current if key not in own],
        "of another shape": reshaped,
    }
    if any(differences.values()):
        counts = (
            f"{len(keys)} {kind} (first: {keys[0]})" for kind, keys in differences.items() if keys
        )
        raise WeightsError(
            f"{error_prefix}: of its {len(own)} tensors, {', '.join(counts)}. "
            "Give --encoder and --weights that belong together."
        )
    # The metadata holds module versions, without which MNASNet refuses to load.
    current._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(current, strict=False)


def fit_head(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Replace the network's classifier by one with as many classes as the state dict has."""
    name = find_head(network)
    head = network.get_submodule(name)
    weight = state.get(f"{name}.weight")
    if weight is None or weight.shape == head.weight.shape:
        return
    if isinstance(head, nn.Linear):
        fitted: nn.Module = nn.Linear(head.in_features, len(weight), head.bias is not None)
    else:
        assert isinstance(head, nn.Conv2d)
        fitted = nn.Conv2d(head.in_channels, len(weight), kernel_size=1)
    network.set_submodule(name, fitted)


def find_head(network: nn.Module) -> str:
    """Return the name of the classifier: the last linear layer, or in SqueezeNet a convolution."""
    layers: list[tuple[str, type]] = [
        (name, type(module)) for name, module in network.named_modules()
    ]
    linear = [name for name, kind in layers if kind is nn.Linear]
    return linear[-1] if linear else [name for name, kind in layers if kind is nn.Conv2d][-1]


def _current_name(key: str) -> str:
    """Return the current torchvision name for a key of a weights file."""
    for old, new in RENAMED:
        key = re.sub(old, new, key)
    return key
