"""Images in tar archives, found by the places that `prepare` has recorded."""

import tarfile
from posixpath import normpath

from .forward import open_forward
from .local import require_size

HEADER_BYTES = tarfile.BLOCKSIZE  # a member's header ends where its content starts
MAX_HEADER_NAME = 100  # longer names, and those in Unicode, may be in another header


class TarImages:
    """Members of one tar archive. Reading them in the order of the archive is one stream.

    Args:
        location: path or URL of the archive.
        archive: its name in reasons.

    Raises:
        OSError: the archive cannot be opened.
        StorageError: the same for a URL.
        MissingArtifactError: there is no such file behind a URL.
    """

    def __init__(self, location: str, archive: str) -> None:
        self.archive = archive
        self._file = open_forward(location)
        self._end: int | None = None  # where the archive ends, once that is known
        self._is_end_exact = True  # otherwise it ends there or before

    def close(self) -> None:
        """Close the archive."""
        self._file.close()

    def read(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Read one member and verify that it is the one that `prepare` has seen.

        Args:
            name: of the member.
            offset: position of its content in the archive, in bytes.
            num_bytes: size of its content.

        Raises:
            OSError: the member is damaged, or the archive ends before it.
            StorageError: a URL cannot be read.
        """
        require_size(f"{self.archive}: member {name}", num_bytes)
        stop = offset + num_bytes
        if self._end is not None and stop > self._end:
            raise self._cut_off()
        start = offset - HEADER_BYTES
        if start < 0:
            raise OSError(f"{self.archive}: the place of {name} is not known")
        if start != self._file.tell():
            self._file.seek(start)
        content = self._file.read(stop - start)
        if len(content) < stop - start:
            self._end, self._is_end_exact = start + len(content), bool(content)
            raise self._cut_off()
        try:
            header = tarfile.TarInfo.frombuf(content[:HEADER_BYTES], "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise OSError(f"{self.archive} is damaged at byte {start:,} ({error})") from None
        if header.size != num_bytes or not _may_be_named(header.name, name):
            raise self._changed(name, offset)
        return content[HEADER_BYTES:]

    def _cut_off(self) -> OSError:
        place = "at" if self._is_end_exact else "at or before"
        return OSError(f"{self.archive} is damaged: it ends {place} byte {self._end:,}")

    def _changed(self, name: str, offset: int) -> OSError:
        return OSError(
            f"{self.archive} has no member {name} at byte {offset:,}: it has changed since "
            "'showtell prepare'"
        )


def _may_be_named(found: str, name: str) -> bool:
    """Compare the name in a header with that of an image, if the header can hold all of it."""
    is_whole = name.isascii() and len(name) <= MAX_HEADER_NAME
    return not is_whole or normpath(found) == normpath(name)
