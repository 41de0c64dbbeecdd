"""Images in Parquet files that hold their bytes, such as those of Hugging Face's datasets."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from ..stage.artifacts import FORMAT_ERRORS, describe
from .forward import open_forward
from .local import require_size

ROWS_AT_ONCE = 16  # that are decoded together
BUFFER_BYTES = 1 << 20  # of a column that is read ahead; pyarrow would otherwise read all of it

# Names of columns with bytes: of img2dataset (its output format) and of others.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")


class ParquetImages:
    """Rows of one Parquet file. Reading them in order is one stream through each row group.

    Args:
        location: path or URL of the file.
        archive: its name in reasons.

    Raises:
        OSError: the file cannot be opened, is damaged or has no column of images.
        StorageError: the same for a URL.
        MissingArtifactError: there is no such file behind a URL.
    """

    def __init__(self, location: str, archive: str) -> None:
        self.archive = archive
        self._group = -1  # the row group that is being read
        self._source = open_forward(location)
        try:
            self._file = pq.ParquetFile(self._source, buffer_size=BUFFER_BYTES)
        except (pa.ArrowException, *FORMAT_ERRORS) as error:
            self._source.close()
            raise self._damaged(error) from None
        self._column = find_image_column(self._file.schema_arrow)
        if self._column is None:
            raise OSError(f"{archive} has no column with the bytes of images")
        metadata = self._file.metadata
        sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        self._starts = [*accumulate(sizes, initial=0)]  # first row of each row group, and the end
        self._values: Iterator[pa.Scalar] = iter(())  # its rows that are left
        self._next_row = 0
        self._damage: OSError | None = None  # of the row group

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def read(self, name: str) -> bytes:
        """Read the image of one row.

        Args:
            name: number of the row in the file, from 0.

        Raises:
            OSError: there is no such row, it holds no image, or its row group is damaged.
            StorageError: a URL cannot be read.
        """
        row = int(name) if name.isdecimal() else -1
        if not 0 <= row < self._starts[-1]:
            raise OSError(f"{self.archive} has {self._starts[-1]:,} rows, and no row {name}")
        group = bisect_right(self._starts, row) - 1
        if group != self._group or row < self._next_row:
            self._group, self._damage = group, None
            self._next_row = self._starts[group]
            self._values = self._read_group(group)
        if self._damage is not None:
            raise self._damage
        try:
            while self._next_row <= row:
                value = next(self._values)
                self._next_row += 1
            content: bytes | None = value.as_py()
        except (pa.ArrowException, StopIteration, *FORMAT_ERRORS) as error:
            self._damage = self._damaged(error)
            raise self._damage from None
        if content is None:
            raise OSError(f"row {row:,} of {self.archive} holds no image")
        require_size(f"row {row:,} of {self.archive}", len(content))
        return content

    def _read_group(self, group: int) -> Iterator[pa.Scalar]:
        """Yield the images of a row group, a few of them decoded ahead."""
        batches = self._file.iter_batches(
            ROWS_AT_ONCE, row_groups=[group], columns=[self._column], use_threads=False
        )
        for batch in batches:
            column = batch.column(0)
            yield from column.field("bytes") if pa.types.is_struct(column.type) else column

    def _damaged(self, error: Exception) -> OSError:
        """Return the reason for the images that cannot be read; the disk may be at fault."""
        if isinstance(error, OSError) and error.errno is not None:
            return error
        place = f" at row {self._next_row:,}" if self._group >= 0 else ""
        return OSError(f"{self.archive} is damaged{place} ({describe(error)})")


def find_image_column(schema: pa.Schema) -> str | None:
    """Return the column with the bytes of the images, as Parquet names it; None if there is none.

    It is `image.bytes`, the field of a struct, in files of Hugging Face's datasets, and the column
    itself (`jpg`, `png`, …) in those of img2dataset.
    """
    for name in IMAGE_COLUMNS:
        if schema.get_field_index(name) >= 0:
            kind = schema.field(name).type
            if _is_binary(kind):
                return name
            if pa.types.is_struct(kind) and any(
                field.name == "bytes" and _is_binary(field.type) for field in kind
            ):
                return f"{name}.bytes"
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
