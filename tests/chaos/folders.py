"""The content of a data folder without what differs between two runs of the same command."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

# Times, speeds, checksums of files that hold times, and whether a training was resumed.
TIMES = {
    "resume",
    "log_bytes",
    "log_checksum",
    "seconds",
    "val_seconds",
    "decode_seconds",
    "score_seconds",
    "images_per_second",
    "tokens_per_second",
    "shares",
    "num_computed",
    "checksum",
}
TIMED_FILES = {"metrics.json", "metrics.jsonl", "last.safetensors"}


def content_of(data: Path) -> dict[str, str]:
    """Return name → hash of every file.

    Locks, the drawing and TensorBoard's events of a log, which may have lost damaged lines, and
    results that `train --resume` set aside do not count.
    """
    return {
        path.relative_to(data).as_posix(): hash_of(path)
        for path in sorted(data.rglob("*"))
        if path.is_file() and path.name not in (".lock", "curves.png")
        if not any(part == "tensorboard" or part.startswith("earlier-") for part in path.parts)
    }


def hash_of(path: Path) -> str:
    content = path.read_bytes()
    try:
        if path.suffix == ".json":
            content = _to_bytes(json.loads(content))
        elif path.suffix == ".jsonl":
            content = _to_bytes([json.loads(line) for line in content.splitlines()])
        elif path.suffix == ".safetensors":
            (size,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + size])
            metadata = header.get("__metadata__", {})
            for name in ("progress", "scaler", "run"):
                if name in metadata:
                    metadata[name] = json.loads(metadata[name])
            content = _to_bytes(header) + content[8 + size :]
        elif path.suffix == ".npz":
            import io

            import numpy as np

            arrays = np.load(io.BytesIO(content))
            content = b"".join(name.encode() + arrays[name].tobytes() for name in arrays.files)
    except Exception:  # damaged, so different in any case
        pass
    return hashlib.sha256(content).hexdigest()


def _to_bytes(value: Any) -> bytes:
    return json.dumps(_without_times(value)).encode()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_times(item)
            for key, item in value.items()
            if key not in TIMES and not (key in TIMED_FILES and isinstance(item, str | int))
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Return the names of files that differ, or exist in one of two folders only."""
    return sorted(name for name, _ in set(found.items()) ^ set(expected.items()))
