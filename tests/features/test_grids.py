import errno
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from showtell.features.grids import GridWriter, grid_name, open_grid
from showtell.features.shards import FeatureShard
from showtell.pipeline.stage.errors import BadShardError, MissingArtifactError, ShowTellError

V, P, D = 2, 4, 3


def make_grids(num_images: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_images, V, P, D)).astype(np.float16)


def write_grids(path: Path, grids: np.ndarray, batch_size: int = 2) -> FeatureShard:
    """Write grids batch by batch; returns the shard they belong to."""
    writer = GridWriter(path, (V, P, D))
    for start in range(0, len(grids), batch_size):
        writer.append(grids[start : start + batch_size])
    crcs = writer.publish()
    pooled = grids.astype(np.float32).mean(2).astype(np.float16)
    ids = np.arange(len(grids), dtype=np.int64)
    return FeatureShard(ids, pooled[:, 0], (), "f" * 64, pooled[:, 1:], crcs)


@pytest.mark.parametrize("num_images", [0, 1, 11])
def test_grids_roundtrip_through_a_memory_map(tmp_path, num_images):
    path, grids = tmp_path / "part-00000.grid.npy", make_grids(num_images)
    shard = write_grids(path, grids)
    mapped = open_grid(path, shard, (P, D))
    assert isinstance(mapped, np.memmap)
    assert mapped.tobytes() == grids.tobytes()
    assert not mapped.flags.writeable
    assert shard.grid_crc32.tolist() == [zlib.crc32(row.tobytes()) for row in grids]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_file_equals_one_that_numpy_saves(tmp_path):
    grids = make_grids(5)
    write_grids(tmp_path / "written.npy", grids)
    np.save(tmp_path / "saved.npy", grids)
    assert (tmp_path / "written.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


def test_grid_file_is_named_after_its_shard():
    names = {grid_name(f"part-00003{suffix}") for suffix in (".h5", ".parquet")}
    assert names == {"part-00003.grid.npy"}


def damage(path: Path, row: int) -> None:
    content = bytearray(path.read_bytes())
    content[row * V * P * D * 2 + (0 if row < 0 else 128)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
        (lambda path: path.write_bytes(b"no array"), "is damaged"),
        (lambda path: np.save(path, make_grids(4)), "(4, 2, 4, 3) float16, expected (5, 2, 4, 3)"),
        (lambda path: damage(path, 0), "row 0 does not match"),
        (lambda path: damage(path, -1), "row 4 does not match"),
    ],
    ids=["missing", "truncated", "not an array", "too few rows", "first row", "last row"],
)
def test_missing_damaged_or_mismatched_file_is_refused(tmp_path, spoil, message):
    path = tmp_path / "part-00000.grid.npy"
    shard = write_grids(path, make_grids(5))
    spoil(path)
    with pytest.raises((BadShardError, MissingArtifactError), match=re.escape(message)):
        open_grid(path, shard, (P, D))


def test_shard_without_checksums_is_refused(tmp_path):
    path = tmp_path / "part-00000.grid.npy"
    shard = write_grids(path, make_grids(2))
    with pytest.raises(BadShardError, match="no checksums"):
        open_grid(path, replace(shard, grid_crc32=None), (P, D))


def test_full_disk_is_a_short_error_and_leaves_no_file(tmp_path):
    class FullDisk:
        def __init__(self, file):
            self.close = file.close

        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    writer = GridWriter(tmp_path / "part-00000.grid.npy", (V, P, D))
    writer.file = FullDisk(writer.file)
    with pytest.raises(ShowTellError, match=r"part-00000\.grid\.npy.*No space left.*is kept"):
        writer.append(make_grids(1))
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_discard_keeps_a_published_file(tmp_path):
    writer = GridWriter(tmp_path / "part-00000.grid.npy", (V, P, D))
    writer.publish()
    writer.discard()
    assert [file.name for file in tmp_path.iterdir()] == ["part-00000.grid.npy"]
