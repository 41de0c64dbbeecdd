import errno
import os
import re
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.features.config import FeaturesConfig
from showtell.features.shards import (
    FORMATS,
    MARK,
    FeatureShard,
    find_finite,
    read_shard,
    write_shard,
)
from showtell.pipeline.stage.checksums import checksum
from showtell.pipeline.stage.errors import BadShardError, MissingArtifactError, ShowTellError

SUFFIXES = pytest.mark.parametrize("suffix", [".h5", ".parquet"])


def make_shard(num_images: int = 5, width: int = 7, num_skipped: int = 2) -> FeatureShard:
    # Random bits: denormals, zeros of both signs and the largest numbers, but no NaN or infinity.
    bits = np.random.default_rng(0).integers(0, 2**16, num_images * width, dtype=np.uint16)
    bits[(bits & 0x7C00) == 0x7C00] = 0x8000
    return FeatureShard(
        image_ids=np.arange(num_images, dtype=np.int64) * 3 + 2**40,
        features=bits.view(np.float16).reshape(num_images, width),
        skipped=tuple((2**41 + index, f"“broken”: {index}\t…") for index in range(num_skipped)),
        fingerprint="ab" * 32,
    )


def make_full_shard(num_images: int = 5, width: int = 7, num_views: int = 3) -> FeatureShard:
    """Return a shard with views and grid checksums."""
    numbers = make_shard(num_images * (num_views - 1), width).features
    return replace(
        make_shard(num_images, width),
        views=-numbers.reshape(num_images, num_views - 1, width),
        grid_crc32=np.arange(num_images, dtype=np.uint32) + 2**31,
    )


def assert_same(left: FeatureShard, right: FeatureShard) -> None:
    assert (left.skipped, left.fingerprint) == (right.skipped, right.fingerprint)
    np.testing.assert_array_equal(left.image_ids, right.image_ids)
    assert left.features.shape == right.features.shape
    assert left.features.dtype == right.features.dtype == np.float16
    assert left.features.tobytes() == right.features.tobytes()
    for one, other in ((left.views, right.views), (left.grid_crc32, right.grid_crc32)):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            assert one.tobytes() == other.tobytes()


@SUFFIXES
@pytest.mark.parametrize("sizes", [(5, 7, 2), (1, 1, 0), (0, 7, 3), (300, 64, 0)])
def test_shard_roundtrips_exactly(tmp_path, suffix, sizes):
    shard = make_shard(*sizes)
    path = tmp_path / f"part-00000{suffix}"
    write_shard(path, shard)
    assert_same(read_shard(path), shard)


@SUFFIXES
@pytest.mark.parametrize("sizes", [(5, 7, 3), (1, 1, 2), (0, 7, 6)])
def test_views_and_grid_checksums_roundtrip(tmp_path, suffix, sizes):
    shard = make_full_shard(*sizes)
    path = tmp_path / f"part-00000{suffix}"
    write_shard(path, shard)
    assert_same(read_shard(path, sizes[1]), shard)
    assert read_shard(path).num_views == sizes[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": np.zeros((5, 2, 6), np.float16)}, "'views' is (5, 2, 6) float16, expected (5,"),
        ({"views": np.zeros((4, 2, 7), np.float16)}, "'views' is (4, 2, 7) float16, expected (5,"),
        ({"views": np.zeros(7, np.float16)}, "'views' is (7,) float16, expected (5,"),
        ({"views": np.full((5, 2, 7), np.inf, np.float16)}, "'views' of image"),
        ({"grid_crc32": np.zeros(4, np.uint32)}, "'grid_crc32' is (4,) uint32, expected (5,)"),
    ],
)
def test_invalid_views_and_checksums_are_refused(tmp_path, change, message):
    with pytest.raises(BadShardError, match=re.escape(message)):
        write_shard(tmp_path / "part.h5", replace(make_full_shard(), **change))


@pytest.mark.parametrize("make", [make_shard, make_full_shard])
def test_both_formats_hold_the_same_values(tmp_path, make):
    for suffix in (".h5", ".parquet"):
        write_shard(tmp_path / f"part{suffix}", make())
    assert_same(read_shard(tmp_path / "part.h5"), read_shard(tmp_path / "part.parquet"))


@SUFFIXES
def test_same_shard_gives_the_same_file(tmp_path, suffix):
    for name in "ab":
        write_shard(tmp_path / f"{name}{suffix}", make_shard())
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_hdf5_fields_are_as_documented(tmp_path):
    shard = make_shard()
    write_shard(tmp_path / "part.h5", shard)
    with h5py.File(tmp_path / "part.h5") as file:
        assert set(file) == {"image_ids", "features", "skipped_ids", "skipped_reasons"}
        assert file["image_ids"].dtype == np.int64
        assert file["features"].dtype == np.float16
        assert file["features"].shape == (5, 7)
        assert file["features"].compression is None
        assert file["features"].chunks is None
        assert file["skipped_reasons"].asstr()[:].tolist() == [why for _, why in shard.skipped]
        assert file.attrs["fingerprint"] == shard.fingerprint
        assert file.attrs["crc32"] == shard.crc32
        content = (tmp_path / "part.h5").read_bytes()
        stored = file.attrs["checksum"]
        assert stored == checksum(content.replace(stored.encode(), b"xxh3:0000000000000000"))


def test_parquet_fields_are_as_documented(tmp_path):
    write_shard(tmp_path / "part.parquet", make_shard())
    schema = pq.read_schema(tmp_path / "part.parquet")
    assert schema.names == ["image_id", "features"]
    assert schema.field("image_id").type == pa.int64()
    assert schema.field("features").type.list_size == 7
    assert schema.field("features").type.value_type == pa.float16()
    assert set(schema.metadata) == {b"skipped", b"fingerprint", b"crc32", b"checksum"}
    column = pq.ParquetFile(tmp_path / "part.parquet").metadata.row_group(0).column(1)
    assert column.compression == "UNCOMPRESSED"


def test_parquet_is_read_by_any_reader(tmp_path):
    shard = make_shard()
    write_shard(tmp_path / "part.parquet", shard)
    rows = pq.read_table(tmp_path / "part.parquet").to_pylist()
    assert [row["image_id"] for row in rows] == shard.image_ids.tolist()
    assert np.array([row["features"] for row in rows]).tolist() == shard.features.tolist()


def test_missing_shard_is_an_error_with_the_command(tmp_path):
    with pytest.raises(MissingArtifactError, match=r"part\.h5 does not exist\. Run 'showtell "):
        read_shard(tmp_path / "part.h5")


@SUFFIXES
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_shard_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"part-00003{suffix}"
    write_shard(path, make_shard(50, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadShardError, match=r"part-00003.* is damaged: .*Run 'showtell "):
        read_shard(path)


@SUFFIXES
@pytest.mark.parametrize("field", ["features", "views"])
def test_changed_byte_is_detected(tmp_path, suffix, field):
    path = tmp_path / f"part{suffix}"
    shard = make_full_shard(50, 64)
    write_shard(path, shard)
    content = bytearray(path.read_bytes())
    content[content.index(getattr(shard, field).tobytes()[:256]) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadShardError, match="is damaged"):
        read_shard(path)


@SUFFIXES
def test_file_of_another_format_is_refused(tmp_path, suffix):
    path = tmp_path / f"part{suffix}"
    path.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(BadShardError, match="is damaged"):
        read_shard(path)


def forget_checksum(path: Path) -> None:
    """Make a shard like one of an earlier version, which has no checksum of the whole file."""
    path.write_bytes(MARK.sub(b"none" * 5 + b"-", path.read_bytes()))


def rewrite_features(path: Path, features: np.ndarray) -> None:
    """Replace the features of a shard by an array that `write_shard` would refuse."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            del file["features"]
            file["features"] = features
        forget_checksum(path)
        return
    table = pq.read_table(path)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    ids = np.arange(len(features))
    changed = pa.table({"image_id": ids, "features": lists})
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    forget_checksum(path)


@SUFFIXES
def test_wrong_shape_and_dtype_are_refused(tmp_path, suffix):
    path = tmp_path / f"part-00003{suffix}"
    write_shard(path, make_shard(6, 8))
    rewrite_features(path, np.zeros((6, 4), np.float32))
    message = (
        f"part-00003{suffix} is damaged: 'features' is (6, 4) float32, expected (6, 8) float16. "
        "Run 'showtell "
    )
    with pytest.raises(BadShardError, match=re.escape(message)):
        read_shard(path, feature_dim=8)


@SUFFIXES
def test_unexpected_width_is_refused(tmp_path, suffix):
    path = tmp_path / f"part{suffix}"
    write_shard(path, make_shard(5, 7))
    with pytest.raises(BadShardError, match=re.escape("(5, 7) float16, expected (5, 2048)")):
        read_shard(path, feature_dim=2048)


def test_wrong_number_of_rows_is_refused(tmp_path):
    path = tmp_path / "part.h5"
    write_shard(path, make_shard(5, 7))
    rewrite_features(path, np.zeros((4, 7), np.float16))
    with pytest.raises(BadShardError, match=re.escape("(4, 7) float16, expected (5, 7) float16")):
        read_shard(path)


def test_hdf5_without_a_field_is_refused(tmp_path):
    path = tmp_path / "part.h5"
    write_shard(path, make_shard())
    with h5py.File(path, "a") as file:
        del file["image_ids"]
    forget_checksum(path)
    with pytest.raises(BadShardError, match="image_ids"):
        read_shard(path)


@SUFFIXES
@pytest.mark.parametrize("folder", ["~", "~x", "exp:1", "s3:x", "file:", "hdfs:"])
def test_shard_in_a_folder_that_looks_like_an_address(tmp_path, monkeypatch, suffix, folder):
    monkeypatch.chdir(tmp_path)
    path, shard = Path(folder) / f"part{suffix}", make_shard()
    path.parent.mkdir()
    write_shard(path, shard)
    assert_same(read_shard(path), shard)
    path.unlink()
    with pytest.raises(MissingArtifactError):
        read_shard(path)


def test_parquet_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(BadShardError, match="is damaged"):
        read_shard(path)


@SUFFIXES
def test_features_that_are_not_finite_are_refused(tmp_path, suffix):
    path = tmp_path / f"part{suffix}"
    shard = make_shard()
    write_shard(path, shard)
    features = shard.features.copy()
    features[3, 2] = np.inf
    rewrite_features(path, features)
    with pytest.raises(BadShardError, match="not finite"):
        read_shard(path)
    with pytest.raises(BadShardError, match=f"image {shard.image_ids[3]} are not finite"):
        write_shard(path, replace(shard, features=features))


@pytest.mark.parametrize("ids", [[3, 2], [2, 2]])
def test_ids_out_of_order_are_refused(tmp_path, ids):
    shard = replace(make_shard(2), image_ids=np.array(ids, np.int64))
    with pytest.raises(BadShardError, match="not increasing"):
        write_shard(tmp_path / "part.h5", shard)
    assert list(tmp_path.iterdir()) == []


@SUFFIXES
def test_full_disk_is_a_short_error_and_keeps_the_old_shard(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"part{suffix}"
    write_shard(path, make_shard())

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ShowTellError, match="No space left on device") as caught:
        write_shard(path, make_shard(9))
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert_same(read_shard(path), make_shard())


def test_find_finite_equals_isfinite() -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    assert np.array_equal(find_finite(every[:, None]), np.isfinite(every))
    spread = every.reshape(64, 4, 256)[:, :, ::2]  # not contiguous
    assert np.array_equal(find_finite(spread), np.isfinite(spread).all((1, 2)))
    assert find_finite(np.zeros((3, 0), np.float16)).all()


def test_every_format_is_a_choice_of_the_option() -> None:
    (option,) = (field for field in fields(FeaturesConfig) if field.name == "format")
    assert option.metadata["option"].choices == tuple(FORMATS)


@SUFFIXES
def test_flipped_bit_anywhere_is_refused(tmp_path, suffix):
    path, shard = tmp_path / f"part{suffix}", make_full_shard()
    write_shard(path, shard)
    content = path.read_bytes()
    mark = content.index(b"xxh3:")
    for position in range(0, len(content), 13):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        if mark <= position < mark + 21 and not MARK.search(changed):
            assert_same(read_shard(path), shard)  # as if there were no checksum
        else:
            with pytest.raises(BadShardError, match="does not match its checksum"):
                read_shard(path)


@SUFFIXES
def test_shard_of_an_earlier_version_is_read(tmp_path, suffix):
    path, shard = tmp_path / f"part{suffix}", make_full_shard()
    write_shard(path, shard)
    forget_checksum(path)
    assert_same(read_shard(path), shard)


@SUFFIXES
@pytest.mark.parametrize("is_old", [False, True])
def test_features_may_hold_the_first_bytes_of_a_checksum(tmp_path, suffix, is_old):
    path, shard = tmp_path / f"part{suffix}", make_full_shard()
    row = np.frombuffer(b"xxh3:!", np.float16)
    features = shard.features.copy()
    features[0, : len(row)] = row
    shard = replace(shard, features=features)
    write_shard(path, shard)
    if is_old:
        forget_checksum(path)
    assert_same(read_shard(path), shard)
