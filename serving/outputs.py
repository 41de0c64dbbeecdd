"""The files that `showtell caption` writes: a table of captions, text files beside images, or both.

A later run with the same outputs captions only the images that are missing.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Self

from .rows import stamp_of
from .sidecar import Sidecars
from .stream import CaptionedImage
from .table import CaptionTable


@dataclass
class Outputs:
    """Where captions are written.

    Attributes:
        table: from `--output`, or None.
        sidecars: from `--sidecar`, or None.
        num_images: number of different images.
        stamps: file name in the table → stamp, for each image.
    """

    table: CaptionTable | None
    sidecars: Sidecars | None
    num_images: int = 0
    stamps: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(
        cls, path: Path | None, sidecars: Sidecars | None, model: str, decoding: str
    ) -> Iterator[Self]:
        """Yield the outputs. Arguments and errors as in `CaptionTable.open`.

        Args:
            path: of the table, or None.
            sidecars: the text files, or None.
            model: see `CaptionTable`.
            decoding: see `CaptionTable`.
        """
        opened = nullcontext() if path is None else CaptionTable.open(path, model, decoding)
        with opened as table:
            yield cls(table, sidecars)

    def find_missing(self, images: Iterable[str]) -> list[str]:
        """Return the images to caption, each once, in order.

        With a table, these are the images that it does not hold, or that have changed since. Images
        that it holds, but that have no text file, get one from the table. Without a table, these
        are all images, or with `--if-exists skip` those that have no text file.

        Raises:
            DatasetError, StorageError: see `Sidecars.require_writable`.
            MismatchError, DatasetError: see `CaptionTable.find_finished`.
        """
        by_path: dict[str, str] = {}
        for image in images:
            by_path.setdefault(os.path.abspath(image), image)  # noqa: PTH100 (100,000 of them)
        images = list(by_path.values())
        self.num_images = len(images)
        if self.sidecars is not None:
            self.sidecars.require_writable(images)
        if self.table is None:
            return [image for image in images if not self._is_skipped(image)]
        named = {self.table.name_of(image): image for image in images}
        self.stamps = {name: stamp_of(image) for name, image in named.items()}
        finished = self.table.find_finished(self.stamps)
        if self.sidecars is not None:
            for name, rows in groupby(self.table.read(), itemgetter("file_name")):
                is_wanted = name in named and name in finished
                if is_wanted and not self.sidecars.exists(named[name]):
                    self.sidecars.write(named[name], [row["caption"] for row in rows])
        return [image for name, image in named.items() if name not in finished]

    def _is_skipped(self, image: str) -> bool:
        sidecars = self.sidecars
        return sidecars is not None and sidecars.if_exists == "skip" and sidecars.exists(image)

    def start(self) -> None:
        """Make the files ready. Raises the errors of `CaptionTable.start`."""
        if self.table is not None:
            self.table.start()

    def write(self, images: Iterable[CaptionedImage]) -> None:
        """Write the captions of a batch of images; unreadable ones are left out.

        The text files come first, so that an image in the table always has one.

        Raises:
            StorageError: a file cannot be written.
        """
        readable = [image for image in images if image.captions]
        if self.sidecars is not None:
            for image in readable:
                self.sidecars.write(image.path, [caption.text for caption in image.captions])
        if self.table is not None:
            self.table.append(readable, self.stamps)

    def finish(self) -> None:
        """Complete the files. Raises the errors of `CaptionTable.finish`."""
        if self.table is not None:
            self.table.finish()
