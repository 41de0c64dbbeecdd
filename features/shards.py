"""Feature shards on disk: `FeatureShard` ↔ HDF5 or Parquet, by the suffix of the file.

Both formats hold the same bits. N images, D feature width, S skipped images.

HDF5 (`part-00000.h5`):
    image_ids          dataset (N,) int64, increasing
    features           dataset (N, D) float16, contiguous; row i belongs to image_ids[i]
    skipped_ids        dataset (S,) int64, images of this shard that have no row
    skipped_reasons    dataset (S,) UTF-8 string, why
    fingerprint        attribute, UTF-8 string: sha256 of all that the shard was computed from
    crc32              attribute, int: of the bytes of image_ids, then of features

Parquet (`part-00000.parquet`), plain encoding, uncompressed, one row group:
    image_id           column int64, not null, increasing
    features           column fixed_size_list<halffloat>[D], not null
    skipped            schema metadata, JSON [[image_id, reason], …]
    fingerprint        schema metadata
    crc32              schema metadata, decimal
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..pipeline.errors import BadShardError, MissingArtifactError, ShowTellError
from ..pipeline.manifest import atomic_path

SUFFIXES = {"hdf5": ".h5", "parquet": ".parquet"}
MEND = "Delete it and run 'showtell features'."

# What h5py and pyarrow raise for files that are damaged or lack a field.
UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError, pa.ArrowException)


@dataclass(frozen=True)
class FeatureShard:
    """The features of a run of images: one unit of work, one file.

    Attributes:
        image_ids: (N,) int64, increasing.
        features: (N, D) float16; row i belongs to image_ids[i].
        skipped: (image_id, reason) of each image of the shard that has no row.
        fingerprint: sha256 of all that the shard was computed from.
    """

    image_ids: npt.NDArray[np.int64]
    features: npt.NDArray[np.float16]
    skipped: tuple[tuple[int, str], ...]
    fingerprint: str

    @property
    def crc32(self) -> int:
        """Checksum of the ids and the features."""
        ids = np.ascontiguousarray(self.image_ids)
        features = np.ascontiguousarray(self.features)
        return zlib.crc32(features.reshape(-1).view(np.uint8).data, zlib.crc32(ids.data))


def write_shard(path: Path, shard: FeatureShard) -> None:
    """Write a shard, whole or not at all.

    Args:
        path: its suffix, .h5 or .parquet, picks the format.
        shard: features finite, ids increasing.

    Raises:
        BadShardError: the shard is not of the shape, dtype or order that it must be.
        ShowTellError: the disk is full, or the folder cannot be written.
    """
    check_shard(path, shard)
    # Encoded in memory and written by Python, so that a full disk is an OSError and nothing else.
    content = _encode_hdf5(shard) if path.suffix == ".h5" else _encode_parquet(shard)
    try:
        with atomic_path(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise ShowTellError(
            f"{path} could not be written: {error.strerror}. Mend that and run 'showtell "
            "features' again; the shards that are finished are kept."
        ) from error


def read_shard(path: Path, feature_dim: int | None = None) -> FeatureShard:
    """Read and verify a shard.

    Args:
        path: of a .h5 or .parquet file.
        feature_dim: the D that is expected, where it is known.

    Raises:
        MissingArtifactError: there is no such file.
        BadShardError: it is damaged, or not of the shape, dtype or order that it must be.
    """
    if not path.exists():
        raise MissingArtifactError(f"{path} does not exist. Run 'showtell features' first.")
    try:
        shard, crc32 = _read_hdf5(path) if path.suffix == ".h5" else _read_parquet(path)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise BadShardError(f"{path}: cannot be read ({reason}). {MEND}") from error
    check_shard(path, shard, feature_dim)
    if shard.crc32 != crc32:
        raise BadShardError(
            f"{path}: the checksum of its content is {shard.crc32}, expected {crc32}: it was "
            f"damaged on the disk. {MEND}"
        )
    return shard


def read_fingerprint(path: Path) -> str | None:
    """Read only what the shard was computed from; None where there is no readable shard."""
    try:
        if path.suffix == ".h5":
            with h5py.File(path, "r", locking=False) as file:
                return str(file.attrs["fingerprint"])
        return str(pq.read_schema(path).metadata[b"fingerprint"], "utf-8")
    except UNREADABLE:
        return None


def check_shard(path: Path, shard: FeatureShard, feature_dim: int | None = None) -> None:
    """Verify shapes, dtypes, order and finiteness.

    Raises:
        BadShardError: naming the field, what it is and what is expected.
    """
    ids, features = shard.image_ids, shard.features
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise BadShardError(
            f"{path}: 'image_ids' is {describe(ids)}, expected ({ids.size},) int64. {MEND}"
        )
    width = feature_dim or (features.shape[-1] if features.ndim else 1)
    if features.shape != (len(ids), width) or features.dtype != np.float16:
        raise BadShardError(
            f"{path}: 'features' is {describe(features)}, expected ({len(ids)}, {width}) float16. "
            f"{MEND}"
        )
    if np.any(ids[1:] <= ids[:-1]):
        raise BadShardError(f"{path}: 'image_ids' are not increasing, expected sorted ids. {MEND}")
    if not (finite := np.isfinite(features).all(axis=1)).all():
        raise BadShardError(
            f"{path}: 'features' of image {ids[~finite][0]} are not finite, expected numbers. "
            f"{MEND}"
        )


def describe(array: npt.NDArray[Any]) -> str:
    """Shape and dtype, as in `(512, 2048) float16`."""
    return f"{array.shape} {array.dtype}"


def _encode_hdf5(shard: FeatureShard) -> bytes:
    # In memory (`core`): the name names no file.
    with h5py.File("shard", "w", driver="core", backing_store=False) as file:
        file["image_ids"] = shard.image_ids
        file["features"] = shard.features
        file["skipped_ids"] = np.array([image_id for image_id, _ in shard.skipped], np.int64)
        reasons = [reason for _, reason in shard.skipped]
        file.create_dataset("skipped_reasons", data=reasons, dtype=h5py.string_dtype())
        file.attrs["fingerprint"] = shard.fingerprint
        file.attrs["crc32"] = shard.crc32
        file.flush()
        return bytes(file.id.get_file_image())


def _read_hdf5(path: Path) -> tuple[FeatureShard, int]:
    # Without HDF5's lock: shards are only ever replaced whole, and some file systems have no locks.
    with h5py.File(path, "r", locking=False) as file:
        reasons = file["skipped_reasons"].asstr()[:]
        skipped = zip(file["skipped_ids"][:].tolist(), reasons, strict=True)
        return FeatureShard(
            image_ids=file["image_ids"][:],
            features=file["features"][:],
            skipped=tuple((image_id, str(reason)) for image_id, reason in skipped),
            fingerprint=str(file.attrs["fingerprint"]),
        ), int(file.attrs["crc32"])


def _encode_parquet(shard: FeatureShard) -> memoryview:
    width = shard.features.shape[1]
    list_type = pa.list_(pa.field("element", pa.float16(), nullable=False), width)
    metadata = {
        "skipped": json.dumps(shard.skipped, ensure_ascii=False),
        "fingerprint": shard.fingerprint,
        "crc32": str(shard.crc32),
    }
    fields = [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("features", list_type, nullable=False),
    ]
    values = pa.array(shard.features.reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(values, type=list_type)
    table = pa.Table.from_arrays(
        [pa.array(shard.image_ids), lists], schema=pa.schema(fields, metadata)
    )
    sink = pa.BufferOutputStream()
    # One row group, so that reading it gives one array without a copy.
    pq.write_table(
        table,
        sink,
        row_group_size=max(len(shard.image_ids), 1),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    return memoryview(sink.getvalue())


def _read_parquet(path: Path) -> tuple[FeatureShard, int]:
    with pq.ParquetFile(path) as file:
        table = file.read()
    metadata = table.schema.metadata
    lists = table["features"].combine_chunks()
    if not pa.types.is_fixed_size_list(lists.type):
        raise ValueError(f"'features' is {lists.type}, expected fixed_size_list<halffloat>")
    values = lists.flatten().to_numpy(zero_copy_only=True)
    return FeatureShard(
        image_ids=table["image_id"].combine_chunks().to_numpy(zero_copy_only=True),
        features=values.reshape(len(lists), lists.type.list_size),
        skipped=tuple((image_id, reason) for image_id, reason in json.loads(metadata[b"skipped"])),
        fingerprint=metadata[b"fingerprint"].decode("utf-8"),
    ), int(metadata[b"crc32"])
