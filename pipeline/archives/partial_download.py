"""The files of an unfinished download.

Beside the final file `NAME`, until it is complete:
    NAME.partial         the bytes received so far
    NAME.partial.json    `etag` and `last_modified` of the server's file, null if not sent
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..stage.files import file_size, write_json


class PartialDownload:
    """The bytes received so far, and the version of the server's file they belong to.

    Args:
        target: path of the complete file.

    Attributes:
        path: file with the bytes.
        state_path: JSON file with the version.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.partial")
        self.state_path = target.with_name(f"{target.name}.partial.json")

    @property
    def size_bytes(self) -> int:
        """Number of bytes received so far."""
        return file_size(self.path) or 0

    def hash(self) -> Any:
        """Return a hashlib MD5 object of the bytes received so far; update it with the rest."""
        if not self.size_bytes:
            return hashlib.md5(usedforsecurity=False)
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "md5")

    def range_headers(self) -> dict[str, str]:
        """Return request headers for the rest, or for the whole file if the server's changed."""
        if not self.size_bytes:
            return {}
        state = read_json(self.state_path)
        etag, last_modified = state.get("etag"), state.get("last_modified")
        # HTTP forbids weak ETags here, because they do not promise identical bytes.
        strong_etag = etag if etag and not etag.startswith("W/") else None
        headers = {"Range": f"bytes={self.size_bytes}-"}
        if validator := strong_etag or last_modified:
            headers["If-Range"] = validator
        return headers

    def matches(self, headers: Mapping[str, str]) -> bool:
        """Return whether the ETag of a response is that of the bytes received; True if unknown."""
        old, new = read_json(self.state_path).get("etag"), headers.get("etag")
        return not (old and new) or old == new

    def restart(self, headers: Mapping[str, str]) -> None:
        """Delete the bytes, and record the version of the file that a response announces."""
        self.discard()
        state = {"etag": headers.get("etag"), "last_modified": headers.get("last-modified")}
        write_json(self.state_path, state)

    def discard(self) -> None:
        """Delete the bytes and the recorded version."""
        self.path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty dict if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
