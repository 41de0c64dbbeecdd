"""Text files beside images: `dog.txt` holds the captions of `dog.jpg`, one a line."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..pipeline.stage.errors import DatasetError, StorageError
from ..pipeline.stage.files import atomic_path, read_error

ENCODING, ERRORS = "utf-8", "surrogateescape"  # lines in other encodings are kept as they are


@dataclass(frozen=True)
class Sidecars:
    """The text files beside images.

    Attributes:
        suffix: such as `.txt`.
        if_exists: what to do with a text file that exists: `skip`, `overwrite` or `append`. An
            empty one counts as missing.
    """

    suffix: str
    if_exists: str

    def path_of(self, image: str) -> Path:
        """Return the text file of an image."""
        return Path(image).with_suffix(self.suffix)

    def exists(self, image: str) -> bool:
        """Return whether an image has a text file that is not empty."""
        try:
            return self.path_of(image).stat().st_size > 0
        except OSError:
            return False

    def require_writable(self, images: Iterable[str]) -> None:
        """Check that every image can have a text file of its own.

        Raises:
            DatasetError: two images have the same text file.
            StorageError: a folder cannot be written.
        """
        owners: dict[str, str] = {}
        for image in images:
            absolute = os.path.abspath(image)  # noqa: PTH100 (100,000 of them)
            stem = os.path.splitext(absolute)[0]  # noqa: PTH122
            owner = owners.setdefault(stem, absolute)
            if owner != absolute:
                raise DatasetError(
                    f"{owner} and {absolute} would both have the text file {stem}{self.suffix}. "
                    "Rename one of them, or use --output captions.jsonl instead of --sidecar."
                )
        for folder in sorted({os.path.dirname(stem) for stem in owners}):  # noqa: PTH120
            if Path(folder).is_dir() and not os.access(folder, os.W_OK):
                raise StorageError(
                    f"{folder} cannot be written, so its images can have no text files. Use "
                    "--output captions.jsonl instead of --sidecar."
                )

    def write(self, image: str, captions: Sequence[str]) -> None:
        """Write the captions of an image to its text file, as `if_exists` says.

        `append` adds only captions that are not lines of the file yet, so that a run that was
        stopped can be repeated.

        Raises:
            StorageError: the file cannot be read or written.
        """
        path = self.path_of(image)
        kept = ""
        if self.exists(image):
            if self.if_exists == "skip":
                return
            if self.if_exists == "append":
                kept = read_text(path)
                lines = {line.strip() for line in kept.splitlines()}
                captions = [caption for caption in captions if caption not in lines]
                if not captions:
                    return
                kept += "" if kept.endswith("\n") else "\n"
        text = kept + "".join(f"{caption}\n" for caption in captions)
        with atomic_path(path, durable=False) as partial:
            partial.write_bytes(text.encode(ENCODING, ERRORS))


def read_text(path: Path) -> str:
    """Return the content of a text file.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return path.read_bytes().decode(ENCODING, ERRORS)
    except OSError as error:
        raise read_error(path, error) or error from None
