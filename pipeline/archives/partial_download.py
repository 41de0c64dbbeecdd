"""The bytes of a download that is not finished yet, and what they are the beginning of.

Beside the final name `NAME` lie, until it is whole:
    NAME.partial         the bytes fetched so far
    NAME.partial.json    etag and last_modified of the server's file they belong to
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..stage.files import file_size, write_json

STATE_FIELDS = ("etag", "last_modified")


class Partial:
    """What has been fetched of one archive, and which version of the server's file it is part of.

    Attributes:
        path: the bytes.
        state_path: JSON with `etag` and `last_modified`, null where the server gave none.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.partial")
        self.state_path = target.with_name(f"{target.name}.partial.json")

    @property
    def size_bytes(self) -> int:
        """Bytes fetched so far."""
        return file_size(self.path) or 0

    def hash(self) -> Any:
        """The md5 object of the bytes fetched so far, to be updated with those that follow."""
        if not self.size_bytes:
            return hashlib.md5(usedforsecurity=False)
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "md5")

    def range_headers(self) -> dict[str, str]:
        """Headers that ask for the rest, or for the whole where the server's file has changed."""
        if not self.size_bytes:
            return {}
        state = read_json(self.state_path)
        etag, last_modified = state.get("etag"), state.get("last_modified")
        # A weak ETag does not promise equal bytes, so HTTP forbids it here.
        strong_etag = etag if etag and not etag.startswith("W/") else None
        headers = {"Range": f"bytes={self.size_bytes}-"}
        if validator := strong_etag or last_modified:
            headers["If-Range"] = validator
        return headers

    def is_of(self, headers: Mapping[str, str]) -> bool:
        """Whether a response with these headers can be the rest, as far as the ETags tell."""
        old, new = read_json(self.state_path).get("etag"), headers.get("etag")
        return not (old and new) or old == new

    def begin(self, headers: Mapping[str, str]) -> None:
        """Start anew, with the file that a response with these headers brings."""
        self.discard()
        state = {name: headers.get(name.replace("_", "-")) for name in STATE_FIELDS}
        write_json(self.state_path, state)

    def discard(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none or it is damaged."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
