"""Which files `--table` names, and where they may lie."""

import pyarrow as pa
import pyarrow.parquet as pq

from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.datasets.table_files import TableFiles, find_table_files


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
