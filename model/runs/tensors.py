"""Write and read safetensors files that carry a checksum of their content.

The metadata entry `checksum` covers the name, dtype, shape and bytes of every tensor, and all other
metadata. Files of earlier versions have none.

safetensors' `save_file` makes files that only their owner can read and leaves a temporary file
behind when it is killed; its `save` copies all data. Therefore this module writes the format
itself. The library reads and validates it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ...pipeline.stage.artifacts import read_output, reading
from ...pipeline.stage.checksums import CHECKSUM_KEY, checksum
from ...pipeline.stage.files import write_bytes
from ...pipeline.stage.manifest import CHANGED
from .renamed_tensors import with_current_names

METADATA_KEY = "__metadata__"
# All metadata keys that any version writes. Others are refused: one may be a damaged `checksum`.
METADATA = {CHECKSUM_KEY, "progress", "scaler", "run"}
ALIGNMENT = 64  # bytes

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically.

    Args:
        path: of the file.
        tensors: by name, on any device.
        metadata: keys of `METADATA` → text.

    Raises:
        StorageError: the file cannot be written.
    """
    metadata = dict(metadata or {})
    # Wide types first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    plain = {name: tensors[name].detach().cpu().contiguous() for name in names}
    metadata[CHECKSUM_KEY] = _checksum_of(plain, metadata)
    header: dict[str, object] = {METADATA_KEY: metadata}
    end = 0
    for name, tensor in plain.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    write_bytes(path, len(text).to_bytes(8, "little"), text, *map(_bytes_of, plain.values()))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors by their current names, and its metadata.

    Raises:
        MissingArtifactError: the file does not exist.
        DamagedFileError: it has changed since it was written.
    """
    content = read_output(path)
    with reading(path, SafetensorError):
        # Copied, so that the alignment of the weights does not depend on the size of the header;
        # one at a time, so that memory does not hold all of them twice.
        loaded = load(content)
        tensors = {name: loaded.pop(name).clone() for name in list(loaded)}
        size = int.from_bytes(content[:8], "little")
        metadata: dict[str, str] = json.loads(content[8 : 8 + size]).get(METADATA_KEY, {})
        if unknown := metadata.keys() - METADATA:
            raise ValueError(f"its metadata has an unknown entry {min(unknown)!r}")
        expected = metadata.pop(CHECKSUM_KEY, None)
        if expected is not None and expected != _checksum_of(tensors, metadata):
            raise ValueError(CHANGED)
    return with_current_names(tensors), metadata


def _checksum_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the checksum of contiguous tensors in memory, and of metadata."""
    names = sorted(tensors)
    layout = [(name, DTYPES[tensors[name].dtype], list(tensors[name].shape)) for name in names]
    head = json.dumps([layout, metadata], sort_keys=True).encode()
    return checksum(head, *(_bytes_of(tensors[name]) for name in names))


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the content of a contiguous tensor in memory, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
