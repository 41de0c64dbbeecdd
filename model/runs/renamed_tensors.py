"""Tensor names of older weight files, so that their runs still load."""

from torch import Tensor

# Layer names up to version 0.1 → names now.
RENAMED_LAYERS = {
    "image": "image_proj",
    "project": "output_proj",
    "place": "grid_proj",
    "seen": "context_proj",
    "gate": "context_gate",
    "everywhere": "global_proj",
}


def with_current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of old weight files and checkpoints; current names stay.

    Args:
        tensors: by name, such as `image.weight`, or `average.module.image.weight` in a checkpoint.
    """
    return {_current_name(name): tensor for name, tensor in tensors.items()}


def _current_name(name: str) -> str:
    path, _, tensor = name.rpartition(".")
    path, dot, layer = path.rpartition(".")
    return f"{path}{dot}{RENAMED_LAYERS.get(layer, layer)}.{tensor}" if layer else name
