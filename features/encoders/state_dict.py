"""State dicts of the user's: read from a file, fitted to a torchvision network or refused."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...pipeline.stage.errors import WeightsError

# Names in older files of torchvision's → names of today.
RENAMED = (
    (r"^module\.", ""),  # DataParallel's
    (r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)", r"\1"),
    (r"\.mlp\.linear_1\.", ".mlp.0."),
    (r"\.mlp\.linear_2\.", ".mlp.3."),
)
# Classifiers of googlenet and inception_v3 that serve in training only.
AUXILIARY = re.compile(r"(aux1|aux2|AuxLogits)\.")
COUNTER = "num_batches_tracked"


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """Read a state dict, at the top of the file or under `state_dict` or `model`.

    Args:
        path: `.safetensors`, else what `torch.save` wrote. Pickled code is never run.

    Raises:
        WeightsError: the file cannot be read, or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle stops the reader anywhere, with any error
        reason = re.split(r"[.:]?\s*\n|\. ", f"{error}")[0] or type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as a state dict: {reason}. Write one with "
            "torch.save(network.state_dict(), FILE)."
        ) from None
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f"{path} holds no state dict: expected names and tensors, at the top or under "
            "'state_dict' or 'model'. Write one with torch.save(network.state_dict(), FILE)."
        )
    return state


def fit_state_dict(network: nn.Module, state: Mapping[str, Tensor], complaint: str) -> None:
    """Load every weight of the network, for as many classes as the state dict has.

    Args:
        network: one of torchvision's classification networks; changed in place.
        state: names, also those of older files, and tensors.
        complaint: beginning of the error.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape: how many, and the first.
    """
    current = OrderedDict(
        (_current_name(key), value) for key, value in state.items() if not AUXILIARY.match(key)
    )
    fit_head(network, current)
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
            f"{complaint}: of its {len(own)} tensors, {', '.join(counts)}. "
            "Give --encoder and --weights that belong together."
        )
    # The versions of its modules, without which MNASNet refuses to load.
    current._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(current, strict=False)


def fit_head(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the network as many classes as the state dict has."""
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
    """Name of the layer that turns the pooled features into class scores.

    In torchvision's classification networks that is the last linear layer; SqueezeNet has a 1×1
    convolution instead.
    """
    layers: list[tuple[str, type]] = [
        (name, type(module)) for name, module in network.named_modules()
    ]
    linear = [name for name, kind in layers if kind is nn.Linear]
    return linear[-1] if linear else [name for name, kind in layers if kind is nn.Conv2d][-1]


def _current_name(key: str) -> str:
    """The name that torchvision's network has today for this key of a file."""
    for old, new in RENAMED:
        key = re.sub(old, new, key)
    return key
