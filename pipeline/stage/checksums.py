"""Checksums that detect damaged files, and JSON objects that carry their own checksum.

xxh3 detects accidental changes and is about as fast as reading memory. It is not secure against
deliberate changes. Inputs are identified by SHA-256 (`files.hash_file`).
"""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

CHECKSUM_KEY = "checksum"
CHUNK_BYTES = 1 << 20

Buffer = bytes | bytearray | memoryview


def checksum(*contents: Buffer) -> str:
    """Return the checksum of bytes, as in `xxh3:0123456789abcdef`.

    Several arguments give the checksum of their concatenation.
    """
    digest = xxhash.xxh3_64()
    for content in contents:
        digest.update(content)
    return f"xxh3:{digest.hexdigest()}"


def hash_text(text: str) -> int:
    """Return a 64-bit hash of a text."""
    return xxhash.xxh3_64_intdigest(text.encode())


def checksum_of_file(path: Path) -> str:
    """Return the checksum of a file's content."""
    with path.open("rb", buffering=0) as file:
        return checksum_of(file)


def checksum_of(file: io.RawIOBase | io.BufferedIOBase) -> str:
    """Return the checksum of an open file from its current position on."""
    digest = xxhash.xxh3_64()
    buffer = bytearray(CHUNK_BYTES)
    while count := file.readinto(buffer):
        digest.update(memoryview(buffer)[:count])
    return f"xxh3:{digest.hexdigest()}"


def checksums_of(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name → checksum of files in a folder."""
    return {name: checksum_of_file(directory / name) for name in names}


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its checksum as the last key."""
    return {**value, CHECKSUM_KEY: _checksum_of_json(value)}


def unseal(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sealed JSON object without its checksum.

    An object without a checksum is returned as it is: earlier versions wrote none.

    Raises:
        ValueError: the content has changed since it was sealed.
    """
    content = {key: item for key, item in value.items() if key != CHECKSUM_KEY}
    if CHECKSUM_KEY in value and value[CHECKSUM_KEY] != _checksum_of_json(content):
        raise ValueError("its content does not match its checksum")
    return content


def _checksum_of_json(value: Mapping[str, Any]) -> str:
    # Through JSON and back: tuples become lists, and every key a string.
    plain = json.loads(json.dumps(value))
    return checksum(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
