"""Images in Parquet files: which column, streams, damage."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.pipeline.images.image_files import ImageFiles
from showtell.pipeline.images.parquet import find_image_column

from .conftest import CONTENTS

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


@pytest.mark.parametrize("nested", [True, False])
def test_rows_are_streamed_in_any_order_from_a_folder_and_from_s3(
    tmp_path, upload, write_parquet, nested
) -> None:
    images = write_parquet(tmp_path, "a/0.parquet", CONTENTS, nested=nested)
    for root in (tmp_path, upload(tmp_path)):
        files = ImageFiles(root)
        assert list(files.stream(images)) == CONTENTS
        assert list(files.stream(images[::-4])) == CONTENTS[::-4]
        assert list(files.stream(images[3:29:5])) == CONTENTS[3:29:5]
        assert files.read("a/0.parquet/17") == CONTENTS[17]


def test_folders_may_be_named_as_archives(tmp_path, upload, write_parquet, write_tar) -> None:
    images = write_parquet(tmp_path, "a.parquet/part-0.snappy.parquet", CONTENTS)
    images += write_parquet(tmp_path, "b.tar/0.parquet", CONTENTS[:3])
    images += write_tar(tmp_path, "c.parquet/0.tar", CONTENTS[:4])
    expected = CONTENTS + CONTENTS[:3] + CONTENTS[:4]
    for root in (tmp_path, upload(tmp_path)):
        files = ImageFiles(root)
        assert list(files.stream(images)) == expected
        assert None not in files.fingerprints([name for name, *_ in images])
    images = write_tar(tmp_path, "d.tar/0.tar", CONTENTS)  # on a disk only: it can be asked
    assert list(ImageFiles(tmp_path).stream(images)) == CONTENTS


def test_parquet_behind_http_is_read_in_order(tmp_path, serve_folder, write_parquet) -> None:
    contents = [os.urandom(200_000) for _ in range(48)]
    images = write_parquet(tmp_path, "0.parquet", contents)
    served = serve_folder(tmp_path)
    assert list(ImageFiles(served.url).stream(images)) == contents
    starts = [int(wanted[6:].partition("-")[0]) for _, _, wanted in served.requests if wanted]
    assert len(starts) <= 4  # the index at the end, then blocks of 8 MiB
    assert starts[1:] == sorted(starts[1:])


def test_empty_row_wrong_row_and_file_without_images_are_reasons(tmp_path, write_parquet) -> None:
    images = write_parquet(tmp_path, "0.parquet", [b"a", None, b"c"])
    pq.write_table(pa.table({"image": ["x.jpg"]}), tmp_path / "1.parquet")
    names = ["0.parquet/3", "1.parquet/0"]
    contents = list(ImageFiles(tmp_path).stream([*images, *((name, -1, -1) for name in names)]))
    assert [contents[0], contents[2]] == [b"a", b"c"]
    assert [str(contents[i]) for i in (1, 3, 4)] == [
        "row 1 of 0.parquet holds no image",
        "0.parquet has 3 rows, and no row 3",
        "1.parquet has no column with the bytes of images",
    ]


def test_damaged_row_group_and_damaged_file_are_passed(tmp_path, write_parquet) -> None:
    images = write_parquet(tmp_path, "0.parquet", [os.urandom(5000) for _ in range(36)])
    path = tmp_path / "0.parquet"
    content = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    (tmp_path / "1.parquet").write_bytes(content[:-100])
    images.append(("1.parquet/0", -1, -1))
    found = list(ImageFiles(tmp_path).stream(images))
    is_read = [isinstance(content, bytes) for content in found]
    assert is_read == [True] * 12 + [False] * 12 + [True] * 12 + [False]
    assert str(found[12]).startswith("0.parquet is damaged at row 12 (")
    assert {str(error) for error in found[12:24]} == {str(found[12])}
    assert str(found[36]).startswith("1.parquet is damaged (")
