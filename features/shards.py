"""The feature shards: `FeatureShard` in memory, HDF5 or Parquet on disk, chosen by the file suffix.

Both formats hold the same values. N images, V views, D feature width, S skipped images. Fields in
brackets exist only if there is more than one view, or if there are grid features (`grids.py`).

HDF5 (`part-00000.h5`):
    image_ids          dataset (N,) int64, increasing
    features           dataset (N, D) float16, contiguous; row i belongs to image_ids[i]
    [views             dataset (N, V-1, D) float16: the features of views 2 to V]
    [grid_crc32        dataset (N,) uint32: crc32 of each image's row in the grid file]
    skipped_ids        dataset (S,) int64: images of this shard without features
    skipped_reasons    dataset (S,) UTF-8 string: the reason for each
    fingerprint        attribute, UTF-8 string: sha256 of everything the shard was computed from
    crc32              attribute, int: of the bytes of image_ids, features [, views] [, grid_crc32]
    checksum           attribute, UTF-8 string: xxh3 of the file, computed with zeros in its place

Parquet (`part-00000.parquet`), plain encoding, uncompressed, one row group:
    image_id           column int64, not null, increasing
    features           column fixed_size_list<halffloat>[D], not null
    [views             column fixed_size_list<halffloat>[(V-1)·D], not null]
    [grid_crc32        column uint32, not null]
    skipped            schema metadata, JSON [[image_id, reason], …]
    fingerprint        schema metadata
    crc32              schema metadata, decimal
    checksum           schema metadata, as in HDF5

Shards of earlier versions have no `checksum`.

To add a format, write two functions, add them to `FORMATS` and its name to `--format`.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..pipeline.stage.artifacts import damaged, reading
from ..pipeline.stage.checksums import checksum
from ..pipeline.stage.errors import BadShardError, DamagedFileError
from ..pipeline.stage.files import write_bytes
from ..pipeline.stage.manifest import CHANGED

# Raised by h5py and pyarrow for damaged files, in addition to `artifacts.FORMAT_ERRORS`.
# MemoryError: a damaged shape can be huge.
LIBRARY_ERRORS = (RuntimeError, MemoryError, pa.ArrowException)

ZEROS = b"xxh3:0000000000000000"  # placeholder for the checksum
MARK = re.compile(rb"xxh3:[0-9a-f]{16}")


@dataclass(frozen=True)
class FeatureShard:
    """The features of consecutive images: one unit of work, one file.

    Attributes:
        image_ids: (N,) int64, increasing.
        features: (N, D) float16; row i belongs to image_ids[i].
        skipped: (image_id, reason) of each image without features.
        fingerprint: sha256 of everything the shard was computed from.
        views: (N, V-1, D) float16, the features of views 2 to V; None if V is 1.
        grid_crc32: (N,) uint32, crc32 of each row of the grid file; None without grid features.
    """

    image_ids: npt.NDArray[np.int64]
    features: npt.NDArray[np.float16]
    skipped: tuple[tuple[int, str], ...]
    fingerprint: str
    views: npt.NDArray[np.float16] | None = None
    grid_crc32: npt.NDArray[np.uint32] | None = None

    @property
    def num_views(self) -> int:
        """V."""
        return 1 if self.views is None else 1 + self.views.shape[1]

    @property
    def crc32(self) -> int:
        """Checksum of all arrays."""
        crc32 = 0
        for array in (self.image_ids, self.features, self.views, self.grid_crc32):
            if array is not None:
                content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                crc32 = zlib.crc32(content.data, crc32)
        return crc32


def write_shard(path: Path, shard: FeatureShard) -> None:
    """Write a shard atomically.

    Args:
        path: its suffix, .h5 or .parquet, selects the format.
        shard: the features must be finite and the ids increasing.

    Raises:
        BadShardError: a field has the wrong shape, dtype, order or values.
        StorageError: the disk is full, or the folder cannot be written.
    """
    check_fields(path, shard)
    check_values(path, shard)
    # Encoded in memory and written by Python, so that a full disk raises a plain OSError.
    write_bytes(path, fill_in_checksum(format_of(path).encode(shard)))


def read_shard(
    path: Path,
    feature_dim: int | None = None,
    *,
    is_verified: bool = False,
    is_mapped: bool = False,
) -> FeatureShard:
    """Read and verify a shard.

    Args:
        path: a .h5 or .parquet file.
        feature_dim: the expected D, if known.
        is_verified: whether the caller has verified the checksum of the whole file, so that the
            values need no checks.
        is_mapped: map `features` and `views` into memory instead of reading them, if the file
            stores each in one piece: HDF5 without compression.

    Raises:
        MissingArtifactError: the file does not exist.
        BadShardError: it is damaged, or a field has the wrong shape, dtype, order or values.
        StorageError: the operating system cannot read it.
    """
    with reading_shard(path):
        if not is_verified:  # before parsing: libhdf5 may crash on a damaged file
            verify_checksum(path.read_bytes())
        shard, crc32 = format_of(path).read(path, is_mapped)
    check_fields(path, shard, feature_dim)
    if not is_verified:
        check_values(path, shard)
        if shard.crc32 != crc32:
            raise bad_shard(path, CHANGED)
    return shard


def fill_in_checksum(content: bytes) -> bytes:
    """Return a file's content with its checksum in place of the zeros."""
    assert content.count(ZEROS) == 1
    return content.replace(ZEROS, checksum(content).encode())


def verify_checksum(content: bytes) -> None:
    """Verify a file against the checksum that it contains.

    A file of an earlier version has no checksum and is accepted.

    Raises:
        ValueError: the file has changed since it was written.
    """
    marks = list(MARK.finditer(content))
    if not marks:
        return
    start, stop = marks[-1].span()
    rest = memoryview(content)
    expected = checksum(rest[:start], ZEROS, rest[stop:]).encode()
    if marks[-1].group() != expected:
        raise ValueError(CHANGED)


def has_checksum(path: Path) -> bool:
    """Return whether a shard contains its own checksum; those of earlier versions do not."""
    return MARK.search(path.read_bytes()) is not None


@contextmanager
def reading_shard(path: Path, *library_errors: type[Exception]) -> Iterator[None]:
    """Turn any error of reading a shard or its grid file into one that `read_shard` raises."""
    try:
        with reading(path, *LIBRARY_ERRORS, *library_errors):
            yield
    except DamagedFileError as error:
        raise BadShardError(str(error)) from error


def bad_shard(path: Path, reason: str) -> BadShardError:
    """Return the error for a damaged file of a shard: path, reason and repair command."""
    return BadShardError(str(damaged(path, reason)))


def check_fields(path: Path, shard: FeatureShard, feature_dim: int | None = None) -> None:
    """Verify the shapes and dtypes.

    Raises:
        BadShardError: naming the field, its value and the expected one.
    """
    ids, features = shard.image_ids, shard.features
    num_images = ids.shape[0] if ids.ndim == 1 else ids.size
    width = feature_dim or (features.shape[-1] if features.ndim else 1)
    num_extra_views = () if shard.views is None else shard.views.shape[1:2]
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "image_ids": ((num_images,), "int64"),
        "features": ((num_images, width), "float16"),
        "views": ((num_images, *num_extra_views, width), "float16"),
        "grid_crc32": ((num_images,), "uint32"),
    }
    for name, (shape, dtype) in expected.items():
        array = getattr(shard, name)
        if array is not None and (array.shape != shape or array.dtype != dtype):
            raise bad_shard(path, f"'{name}' is {describe(array)}, expected {shape} {dtype}")


def check_values(path: Path, shard: FeatureShard) -> None:
    """Verify that the ids are increasing and the features finite.

    Raises:
        BadShardError: naming the field and the image.
    """
    ids = shard.image_ids
    if np.any(ids[1:] <= ids[:-1]):
        raise bad_shard(path, "'image_ids' are not increasing, expected sorted ids")
    for name, values in (("features", shard.features), ("views", shard.views)):
        if values is not None and not (finite := find_finite(values)).all():
            image_id = ids[~finite][0]
            raise bad_shard(path, f"'{name}' of image {image_id} are not finite, expected numbers")


def find_finite(values: npt.NDArray[np.float16]) -> npt.NDArray[np.bool_]:
    """Return which rows of (N, …) hold only finite numbers: (N,) bool."""
    # Infinities and NaN have the highest exponent. Comparing bits is faster than np.isfinite.
    bits = np.ascontiguousarray(values).view(np.uint16) & 0x7FFF
    return np.asarray(bits.max(axis=tuple(range(1, values.ndim)), initial=0) < 0x7C00)


def describe(array: npt.NDArray[Any]) -> str:
    """Return shape and dtype, as in `(512, 2048) float16`."""
    return f"{array.shape} {array.dtype}"


def _encode_hdf5(shard: FeatureShard) -> bytes:
    # The driver `core` keeps the file in memory; "shard" is a dummy name.
    with h5py.File("shard", "w", driver="core", backing_store=False) as file:
        file["image_ids"] = shard.image_ids
        file["features"] = shard.features
        if shard.views is not None:
            file["views"] = shard.views
        if shard.grid_crc32 is not None:
            file["grid_crc32"] = shard.grid_crc32
        file["skipped_ids"] = np.array([image_id for image_id, _ in shard.skipped], np.int64)
        reasons = [reason for _, reason in shard.skipped]
        file.create_dataset("skipped_reasons", data=reasons, dtype=h5py.string_dtype())
        file.attrs["fingerprint"] = shard.fingerprint
        file.attrs["crc32"] = shard.crc32
        file.attrs["checksum"] = ZEROS.decode()
        file.flush()
        return bytes(file.id.get_file_image())


def _read_hdf5(path: Path, is_mapped: bool) -> tuple[FeatureShard, int]:
    # HDF5's own lock is unnecessary, since shards are replaced atomically, and some file systems do
    # not support it.
    with h5py.File(path, "r", locking=False) as file:
        reasons = file["skipped_reasons"].asstr()[:]
        skipped = zip(file["skipped_ids"][:].tolist(), reasons, strict=True)
        shard = FeatureShard(
            image_ids=file["image_ids"][:],
            features=_read_array(path, file["features"], is_mapped),
            skipped=tuple((image_id, str(reason)) for image_id, reason in skipped),
            fingerprint=str(file.attrs["fingerprint"]),
            views=_read_array(path, file["views"], is_mapped) if "views" in file else None,
            grid_crc32=file["grid_crc32"][:] if "grid_crc32" in file else None,
        )
        return shard, int(file.attrs["crc32"])


def _read_array(path: Path, dataset: h5py.Dataset, is_mapped: bool) -> npt.NDArray[Any]:
    """Read an array of an HDF5 file, or map it if the file stores it in one piece."""
    offset = dataset.id.get_offset()  # None if it is empty, or stored in chunks
    if is_mapped and offset is not None:
        return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
    array: npt.NDArray[Any] = dataset[:]
    return array


def _encode_parquet(shard: FeatureShard) -> bytes:
    metadata = {
        "skipped": json.dumps(shard.skipped, ensure_ascii=False),
        "fingerprint": shard.fingerprint,
        "crc32": str(shard.crc32),
        "checksum": ZEROS.decode(),
    }
    columns = {"image_id": pa.array(shard.image_ids), "features": _as_lists(shard.features)}
    if shard.views is not None:
        columns["views"] = _as_lists(shard.views)
    if shard.grid_crc32 is not None:
        columns["grid_crc32"] = pa.array(shard.grid_crc32)
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    schema = pa.schema(fields, metadata)
    table = pa.Table.from_arrays(list(columns.values()), schema=schema)
    sink = pa.BufferOutputStream()
    # One row group, so that a column is read as one array without a copy.
    pq.write_table(
        table,
        sink,
        row_group_size=max(len(shard.image_ids), 1),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    return bytes(sink.getvalue())


def _read_parquet(path: Path, is_mapped: bool) -> tuple[FeatureShard, int]:
    # Not by its path: pyarrow would treat some paths as URLs and expand a leading "~".
    with path.open("rb") as content, pq.ParquetFile(content) as file:
        table = file.read()
    metadata = table.schema.metadata
    features = _from_lists(table, "features")
    views, crcs = None, None
    if "views" in table.column_names:
        flat = _from_lists(table, "views")
        views = flat.reshape(len(flat), flat.shape[1] // features.shape[1], features.shape[1])
    if "grid_crc32" in table.column_names:
        crcs = table["grid_crc32"].combine_chunks().to_numpy(zero_copy_only=True)
    shard = FeatureShard(
        image_ids=table["image_id"].combine_chunks().to_numpy(zero_copy_only=True),
        features=features,
        skipped=tuple((image_id, reason) for image_id, reason in json.loads(metadata[b"skipped"])),
        fingerprint=metadata[b"fingerprint"].decode("utf-8"),
        views=views,
        grid_crc32=crcs,
    )
    return shard, int(metadata[b"crc32"])


def _as_lists(values: npt.NDArray[np.float16]) -> pa.FixedSizeListArray:
    """Return a column with one list per row of (N, …), without a copy."""
    width = int(np.prod(values.shape[1:]))
    list_type = pa.list_(pa.field("element", pa.float16(), nullable=False), width)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=list_type)


def _from_lists(table: pa.Table, name: str) -> npt.NDArray[np.float16]:
    """Return a column of N lists of W numbers as (N, W), without a copy."""
    lists = table[name].combine_chunks()
    if not pa.types.is_fixed_size_list(lists.type):
        raise ValueError(f"'{name}' is {lists.type}, expected fixed_size_list<halffloat>")
    values: npt.NDArray[np.float16] = lists.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(lists), lists.type.list_size)


@dataclass(frozen=True)
class ShardFormat:
    """One file format of shards.

    Attributes:
        suffix: of the file name.
        encode: shard → content of the file.
        read: path, whether to map arrays if possible → the shard and its stored crc32.
    """

    suffix: str
    encode: Callable[[FeatureShard], bytes]
    read: Callable[[Path, bool], tuple[FeatureShard, int]]


# The value of `--format` → the format.
FORMATS = {
    "hdf5": ShardFormat(".h5", _encode_hdf5, _read_hdf5),
    "parquet": ShardFormat(".parquet", _encode_parquet, _read_parquet),
}


def format_of(path: Path) -> ShardFormat:
    """Return the format that a file has by its suffix."""
    return next(known for known in FORMATS.values() if known.suffix == path.suffix)
