"""Finding the images in Parquet files."""

import pyarrow as pa
import pytest

from showtell.pipeline.datasets.parquet_images import find_image_column

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"image": STRUCT, "caption": pa.string()}, "image.bytes"),
        ({"key": pa.string(), "jpg": pa.binary()}, "jpg"),
        ({"image": pa.string(), "webp": pa.large_binary()}, "webp"),
        ({"image": pa.struct({"path": pa.string()})}, None),
        ({"file_name": pa.string(), "caption": pa.string()}, None),
    ],
)
def test_image_column_is_found_by_name_and_type(columns, found: str | None) -> None:
    assert find_image_column(pa.schema(columns)) == found
