"""The intermediate file of a streaming `prepare`: all samples, tokenized, in batches.

Two Arrow files in the captions folder, deleted at the end: a row for each image (file_name, offset,
num_bytes, num_captions), and a row for each caption (caption, words).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from ..datasets.samples import Sample
from ..stage.files import partial_path, reporting_write_errors
from ..stage.ragged import Ints

IMAGES = pa.schema(
    {
        "file_name": pa.string(),
        "offset": pa.int64(),
        "num_bytes": pa.int64(),
        "num_captions": pa.int32(),
    }
)
CAPTIONS = pa.schema({"caption": pa.string(), "words": pa.string()})


@dataclass(frozen=True)
class SpooledBatch:
    """Some consecutive samples.

    Attributes:
        start: row of the first image, counted over all batches.
        images: n rows with the columns of `IMAGES`.
        captions: m rows with the columns of `CAPTIONS`.
    """

    start: int
    images: pa.RecordBatch
    captions: pa.RecordBatch

    @property
    def rows(self) -> Ints:
        """(n,) int64, the row of each image."""
        return np.arange(self.start, self.start + len(self.images))

    @property
    def caption_rows(self) -> Ints:
        """(m,) int64, the row of the image of each caption."""
        return np.repeat(self.rows, self.images["num_captions"].to_numpy())


class Spool:
    """Writes batches of samples, and reads them again any number of times.

    Args:
        directory: where to write; both files are deleted at the end of the `with` block.
    """

    def __init__(self, directory: Path) -> None:
        self.paths = [partial_path(directory / name) for name in ("images.arrow", "captions.arrow")]
        self._writers: list[Any] = []
        self._files = ExitStack()

    def __enter__(self) -> Self:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        for path, schema in zip(self.paths, (IMAGES, CAPTIONS), strict=True):
            with reporting_write_errors(path):
                file = self._files.enter_context(path.open("wb"))
            self._writers.append(pa.ipc.new_stream(file, schema, options=options))
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written is deleted
            self._files.close()
        for path in self.paths:
            path.unlink(missing_ok=True)

    def write(
        self, samples: Sequence[Sample], num_captions: Ints, captions: pa.Array, words: pa.Array
    ) -> None:
        """Append a batch.

        Args:
            samples: n images.
            num_captions: (n,) int64, how many of the captions belong to each image.
            captions: (m,) string, as written.
            words: (m,) string, tokens joined by single spaces.

        Raises:
            StorageError: the disk is full.
        """
        images = [
            pa.array([sample.name for sample in samples], pa.string()),
            pa.array([sample.offset for sample in samples], pa.int64()),
            pa.array([sample.num_bytes for sample in samples], pa.int64()),
            pa.array(num_captions.astype(np.int32)),
        ]
        columns = (images, IMAGES), ([captions, words], CAPTIONS)
        for path, writer, (arrays, schema) in zip(self.paths, self._writers, columns, strict=True):
            with reporting_write_errors(path):
                writer.write_batch(pa.record_batch(arrays, schema=schema))

    def finish(self) -> None:
        """End writing; `read` is possible from now on. Raises the errors of `write`."""
        with reporting_write_errors(self.paths[0]):
            for writer in self._writers:
                writer.close()
            self._files.close()

    def read(self) -> Iterator[SpooledBatch]:
        """Yield the batches in the order in which they were written."""
        start = 0
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self.paths]
            for images, captions in zip(*map(pa.ipc.open_stream, files), strict=True):
                yield SpooledBatch(start, images, captions)
                start += len(images)
