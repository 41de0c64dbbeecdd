"""Features of images in tars, Parquet files and behind URLs equal those of a folder."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.features.config import FeaturesConfig
from showtell.features.extract import extract
from showtell.features.plan import list_images
from showtell.pipeline.captions import open_images, read_images
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.images import fetch
from showtell.pipeline.prepare import prepare
from showtell.pipeline.stage.errors import DatasetError
from showtell.pipeline.stage.manifest import Manifest

from .test_extract import (
    EXTRAS,
    NUM_IMAGES,
    image_path,
    make_dataset,
    network,
    read_all,
    read_extras,
)

__all__ = ["network"]  # the fixture

PER_ARCHIVE = 10


def lay_out(config: FeaturesConfig, kind: str, source: Path) -> FeaturesConfig:
    """Put the images of a dataset into archives or behind names of another kind.

    Returns:
        The options of a dataset of the same images; its manifest names `source`.
    """
    table = read_images(config.captions_dir / "images.parquet")
    ids = sorted(table.image_ids.tolist())
    contents = [image_path(config, image_id // 10).read_bytes() for image_id in ids]
    names, offsets = list[str](), list[int | None]()
    source.mkdir()
    for start in range(0, len(ids), PER_ARCHIVE):
        archive = f"{start // PER_ARCHIVE:05}.{kind}"
        group = contents[start : start + PER_ARCHIVE]
        if kind == "tar":
            with tarfile.open(source / archive, "w") as tar:
                for number, content in enumerate(group):
                    for suffix, text in (("txt", b"a caption"), ("png", content)):
                        info = tarfile.TarInfo(f"{number:03}.{suffix}")
                        info.size = len(text)
                        tar.addfile(info, io.BytesIO(text))
            with tarfile.open(source / archive) as tar:
                images = [member for member in tar if member.name.endswith("png")]
            names += [f"{archive}/{member.name}" for member in images]
            offsets += [member.offset_data for member in images]
        elif kind == "parquet":
            values = [{"bytes": content, "path": None} for content in group]
            pq.write_table(pa.table({"image": values}), source / archive, row_group_size=4)
            names += [f"{archive}/{row}" for row in range(len(group))]
            offsets += [None] * len(group)
        else:
            for image_id, content in zip(ids[start:], group, strict=False):
                (source / f"{image_id}.png").write_bytes(content)
                names.append(f"{image_id}.png")
                offsets.append(None)
    other = replace(config, dataset=kind)
    columns = {"image_id": ids, "file_name": names, "split": ["train"] * len(ids)}
    if kind == "tar":
        columns |= {"offset": offsets, "num_bytes": [len(content) for content in contents]}
    other.captions_dir.mkdir(parents=True)
    pq.write_table(pa.table(columns), other.captions_dir / "images.parquet")
    set_source(other, str(source))
    return other


def set_source(config: FeaturesConfig, source: str, prefix: str = "") -> None:
    """Let `prepare` have found the images at another source, or their names below a URL."""
    Manifest("prepare", 1, {}, {}, {}, details={"source": source}).write(config.captions_dir)
    if prefix:
        path = config.captions_dir / "images.parquet"
        table = pq.read_table(path)
        names = [f"{prefix}/{name}" for name in table["file_name"].to_pylist()]
        pq.write_table(table.set_column(1, "file_name", pa.array(names)), path)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_features_of_archives_equal_those_of_a_folder(tmp_path, network, upload, kind) -> None:
    folder = make_dataset(tmp_path)
    expected = extract(replace(folder, **EXTRAS))
    rows, extras = read_all(folder), read_extras(folder)
    config = lay_out(folder, kind, tmp_path / "archives")
    manifest = extract(replace(config, **EXTRAS))
    assert manifest.counts == expected.counts
    assert (read_all(config), read_extras(config)) == (rows, extras)
    assert extract(config) == manifest
    remote = replace(config, dataset="remote")
    (config.dataset_dir / "features").rename(tmp_path / "elsewhere")
    config.dataset_dir.rename(remote.dataset_dir)
    set_source(remote, upload(tmp_path / "archives"))
    assert extract(replace(remote, **EXTRAS)).counts == expected.counts
    assert (read_all(remote), read_extras(remote)) == (rows, extras)


def test_features_of_urls_equal_those_of_a_folder(tmp_path, network, serve_folder) -> None:
    folder = make_dataset(tmp_path)
    extract(folder)
    config = lay_out(folder, "url", tmp_path / "web")
    served = serve_folder(tmp_path / "web")
    set_source(config, str(tmp_path), prefix=served.url)
    (tmp_path / "web" / "50.png").rename(tmp_path / "50.png")
    served.statuses["/70.png"] = [500]  # then the image
    served.statuses["/80.png"] = [503] * 3
    manifest = extract(config)
    assert manifest.skipped == (
        (f"{served.url}/50.png", "HTTP 404"),
        (f"{served.url}/80.png", "cannot be read: HTTP 503"),
    )
    assert len(served.requests) == NUM_IMAGES + 3
    expected = read_all(folder)
    assert read_all(config) == {i: row for i, row in expected.items() if i not in (50, 80)}
    # The next run tries only the image whose server may answer now.
    served.requests.clear()
    assert [name for name, _ in extract(config).skipped] == [f"{served.url}/50.png"]
    assert [path for _, path, _ in served.requests] == ["/80.png"]
    (tmp_path / "50.png").rename(tmp_path / "web" / "50.png")
    extract(config)
    assert [path for _, path, _ in served.requests] == ["/80.png"]
    assert extract(replace(config, retry_skipped=True)).skipped == ()
    assert [path for _, path, _ in served.requests] == ["/80.png", "/50.png"]
    assert read_all(config) == expected


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch) -> None:
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", 0.0)


def test_shards_of_an_archive_that_changed_are_computed_again(tmp_path, network) -> None:
    folder = make_dataset(tmp_path)
    config = lay_out(folder, "tar", tmp_path / "archives")
    extract(config)
    network.num_images = 0
    path = tmp_path / "archives" / "00002.tar"
    content = path.read_bytes()
    path.write_bytes(content + bytes(512))  # holds the images 20 and 21, in the last of 3 shards
    assert extract(config).counts["num_skipped"] == 0
    assert network.num_images == NUM_IMAGES - 16


def test_parquet_file_that_changed_since_prepare_is_refused(tmp_path, network) -> None:
    folder = make_dataset(tmp_path)
    path = tmp_path / "archives" / "0.parquet"
    path.parent.mkdir()
    contents = [image_path(folder, index).read_bytes() for index in range(NUM_IMAGES)]
    rows = [{"image": {"bytes": content}, "caption": "a caption"} for content in contents]
    options = PrepareConfig(data=folder.data, dataset="rows", table=str(path), min_count=1)
    config = replace(folder, dataset="rows")
    for table in (rows, rows[::-1]):
        pq.write_table(pa.Table.from_pylist(table), path)
        if config.captions_dir.exists():
            with pytest.raises(DatasetError, match=r"0\.parquet has changed .* 'showtell prepare "):
                extract(config)
        prepare(options)
        assert extract(config).counts["num_images"] == NUM_IMAGES


def test_damaged_archive_is_passed_and_reported(tmp_path, network, capsys) -> None:
    folder = make_dataset(tmp_path)
    config = lay_out(folder, "tar", tmp_path / "archives")
    path = tmp_path / "archives" / "00000.tar"
    end = list_images(config).members[4, 0] + 7
    path.write_bytes(path.read_bytes()[:end])
    manifest = extract(config)
    reason = f"00000.tar is damaged: it ends at byte {end:,}"
    assert manifest.skipped == tuple((f"00000.tar/{i:03}.png", reason) for i in range(4, 10))
    assert f"6 × {reason}, e.g. 00000.tar/004.png" in capsys.readouterr().out
    assert set(read_all(config)) == {i * 10 for i in range(NUM_IMAGES) if not 4 <= i < 10}


def test_images_of_archives_can_be_read_one_by_one(tmp_path, network) -> None:
    folder = make_dataset(tmp_path)
    config = lay_out(folder, "tar", tmp_path / "archives")
    files, names = open_images(config.captions_dir, [210, 30])
    assert names == ["00002.tar/001.png", "00000.tar/003.png"]
    assert [files.read(name) for name in names] == [
        image_path(folder, index).read_bytes() for index in (21, 3)
    ]
