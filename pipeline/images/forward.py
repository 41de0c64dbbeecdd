"""Files that are read from start to end: local ones, and URLs without random access."""

import io
import os
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..stage.urls import BLOCK_BYTES, is_url, open_url, size_of


def open_forward(location: str) -> BinaryIO:
    """Open an archive at a local path or URL. It can seek, which is only fast forwards.

    Raises:
        MissingArtifactError: a file by URL does not exist.
        StorageError: a URL cannot be read; reading from the result raises this, too.
        ConfigError: a library is missing.
        OSError: a local file cannot be read.
    """
    if is_url(location):
        return cast(BinaryIO, _ForwardFile(location))
    return Path(location).open("rb")


class _ForwardFile(io.RawIOBase):
    """A file by URL. Reading on, and skipping a little, continues the same stream.

    A new stream is opened to go back, or to skip more than `BLOCK_BYTES`.
    """

    def __init__(self, location: str) -> None:
        super().__init__()
        self.location = location
        self._position = self._stream_position = 0
        self._stream: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
        start = size_of(self.location) if whence == os.SEEK_END else starts[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        stream = self._stream_at_position()
        content = stream.read(size)
        self._position = self._stream_position = self._position + len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        super().close()

    def _stream_at_position(self) -> BinaryIO:
        num_skipped = self._position - self._stream_position
        if self._stream is None or not 0 <= num_skipped <= BLOCK_BYTES:
            if self._stream is not None:
                self._stream.close()
            self._stream = open_url(self.location, self._position)
        elif num_skipped:
            self._stream.read(num_skipped)
        self._stream_position = self._position
        return self._stream
