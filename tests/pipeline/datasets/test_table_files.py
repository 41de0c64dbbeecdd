"""Which files `--table` names, and where they may lie."""

import errno
import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.datasets import parquet_samples, table_files, text_samples, webdataset
from showtell.pipeline.datasets.table_files import TableFiles, find_table_files
from showtell.pipeline.stage.errors import ConfigError


def find(table: object, **options: object) -> TableFiles:
    files = find_table_files(PrepareConfig(dataset="mine", table=table, **options))
    assert files is not None
    return files


def test_links_to_files_without_a_suffix_are_read(tmp_path) -> None:
    """As in the cache of Hugging Face's Hub: snapshots/…/x.parquet → ../blobs/0a1b."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "set").mkdir()
    columns = {"image": [{"bytes": b"i", "path": "x.jpg"}], "caption": ["A dog."]}
    pq.write_table(pa.table(columns), tmp_path / "blobs/0a1b")
    (tmp_path / "set/a.parquet").symlink_to("../blobs/0a1b")
    for table in (tmp_path / "set/a.parquet", f"{tmp_path}/set/*.parquet"):
        files = find(table)
        assert files.source == str(tmp_path / "set")
        assert [sample.name for sample in files.read()] == ["a.parquet/0"]


def test_parquet_tables_of_names_may_lie_outside_the_source(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(table_files, "MAX_TABLE_BYTES", 0)
    names = pa.table({"file_name": ["x.jpg", "sub/y.jpg"], "caption": ["A dog.", "A cat."]})
    pq.write_table(names, tmp_path / "names.parquet")
    files = find(tmp_path / "names.parquet", source=str(tmp_path / "images"))
    assert [sample.name for sample in files.read()] == ["x.jpg", "sub/y.jpg"]
    images = pa.table({"image": [{"bytes": b"i"}], "caption": ["A dog."]})
    pq.write_table(images, tmp_path / "images.parquet")
    files = find(tmp_path / "images.parquet", source=str(tmp_path / "images"))
    with pytest.raises(ConfigError, match=r"images\.parquet is not in --source .*/images\. Leave"):
        list(files.read())
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" * 9)
    files = find(f"{tmp_path}/{{damaged,names}}.parquet", source=str(tmp_path / "images"))
    assert len(list(files.read())) == 2
    assert [Path(bad.location).name for bad in files.bad] == ["damaged.parquet"]


class FailingDisk(io.FileIO):
    """A file whose disk fails after the first kilobyte."""

    def readinto(self, buffer: Any) -> int:
        if self.tell() >= 1024:
            raise OSError(errno.EIO, "Input/output error")
        return super().readinto(memoryview(buffer)[:1024])


@pytest.mark.parametrize("suffix", [".csv", ".tar", ".parquet"])
def test_file_is_read_again_after_the_disk_failed(tmp_path, monkeypatch, suffix: str) -> None:
    columns = {"url": [f"https://h/{i}.jpg" for i in range(1000)], "caption": ["A dog."] * 1000}
    for part in range(2):
        path = tmp_path / f"{part}{suffix}"
        if suffix == ".tar":
            with tarfile.open(path, "w") as archive:
                for name in ("0.jpg", "0.txt", "1.jpg", "1.txt"):
                    info = tarfile.TarInfo(name)
                    info.size = 3
                    archive.addfile(info, io.BytesIO(b"dog"))
        elif suffix == ".parquet":
            pq.write_table(pa.table(columns), path, use_dictionary=False)
        else:
            rows = map(",".join, [columns, *zip(*columns.values(), strict=True)])
            path.write_text("\n".join(rows))
    reader = {".csv": text_samples, ".tar": webdataset, ".parquet": parquet_samples}[suffix]
    opened = reader.open_url

    def open_failing(location: str) -> Any:
        is_good = location.startswith(f"{tmp_path}/0")
        return opened(location) if is_good else io.BufferedReader(FailingDisk(location))

    files = find(f"{tmp_path}/*{suffix}")
    stamps = files.find_stamps()
    recorded_whole = files.to_inputs(stamps)
    monkeypatch.setattr(reader, "open_url", open_failing)
    list(files.read())
    (bad,) = files.bad
    assert bad.location == str(path) and "Input/output error" in bad.reason
    assert bad.may_pass
    assert files.to_inputs(stamps) != recorded_whole
