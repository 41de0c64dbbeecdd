"""Readers of Parquet files of any size: tables of names or URLs, and files with image bytes.

Files with image bytes are those of Hugging Face's datasets (a struct `image` with `bytes`) and of
img2dataset (`jpg`, `caption`, `key`, `status`). A row names an image: `a.parquet/12`.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..images.parquet import find_image_column
from ..stage.artifacts import describe
from ..stage.errors import DatasetError
from ..stage.urls import open_url
from .samples import CAPTION_COLUMNS, NO_IMAGE, LeftOut, Sample, find_title
from .tables import require_honest_size
from .text_samples import choose_columns, make_sample

BATCH_ROWS = 1024
MAX_BATCH_BYTES = 256 << 20  # of the columns that are read
STATUS, SUCCESS = "status", "success"  # of img2dataset: whether the image was downloaded


def read_parquet_samples(location: str, name: str, left_out: LeftOut) -> Iterator[Sample]:
    """Yield the rows of a Parquet file; see `SampleReader`.

    Raises:
        DatasetError: it is damaged, or has no such columns.
    """
    try:
        # Not by its path: pyarrow would treat a name such as "s3:x" as a URL.
        with open_url(location) as content, pq.ParquetFile(content) as file:
            size = content.seek(0, 2)
            require_honest_size(file.metadata, size)
            header = file.schema_arrow.names
            if find_image_column(file.schema_arrow) is None:
                for row in _read_rows(file, choose_columns(header, location)):
                    yield from make_sample(row, name, left_out)
            else:
                yield from _read_image_rows(file, name, left_out)
    except (pa.ArrowException, ValueError) as error:
        raise DatasetError(f"it is not a readable Parquet file ({describe(error)})") from None


def _read_image_rows(file: pq.ParquetFile, name: str, left_out: LeftOut) -> Iterator[Sample]:
    header = file.schema_arrow.names
    caption = find_title(header, CAPTION_COLUMNS)
    if caption is None:
        raise DatasetError(
            f"it has images, but no captions; its columns are {', '.join(header[:8])}. Expected a "
            f"column {', '.join(CAPTION_COLUMNS[:-1])} or {CAPTION_COLUMNS[-1]}"
        )
    optional = [title for title in ("split", STATUS) if title in header]
    for number, row in zip(count(), _read_rows(file, [caption, *optional]), strict=False):
        values = dict(zip(optional, row[1:], strict=True))
        image = f"{name}/{number}"
        if values.get(STATUS, SUCCESS) != SUCCESS:
            left_out.add(image, NO_IMAGE)
        else:
            yield from make_sample([image, row[0], values.get("split")], name, left_out)


def _read_rows(file: pq.ParquetFile, columns: list[str]) -> Iterator[list[Any]]:
    """Yield the values of some columns, row by row."""
    for batch in file.iter_batches(BATCH_ROWS, columns=columns):
        num_bytes = max(batch.nbytes, *map(_decoded_bytes, batch.columns))
        if num_bytes > MAX_BATCH_BYTES:
            raise ValueError(f"{BATCH_ROWS} rows hold up to {num_bytes:,} bytes of text")
        values = [batch.column(column).to_pylist() for column in columns]
        yield from map(list, zip(*values, strict=True))


def _decoded_bytes(column: pa.Array) -> int:
    """Return an upper bound for the size of a dictionary's values once each row has its own."""
    if not pa.types.is_dictionary(column.type) or not len(column.dictionary):
        return 0
    sizes = pc.binary_length(column.dictionary.cast(pa.large_string()))
    return len(column) * int(pc.max(sizes).as_py() or 0)
