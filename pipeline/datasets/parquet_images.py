"""Finds the images in Parquet files that hold their bytes."""

import pyarrow as pa

# Names of columns with bytes: of img2dataset (its output format) and of others.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")


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
