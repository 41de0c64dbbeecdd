"""`showtell prepare` of archives, tables of URLs, and many files: the kinds, bad input, memory."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.pipeline.captions import read_captions, read_images, read_references
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.datasets import table_files
from showtell.pipeline.prepare import prepare, up_to_date
from showtell.pipeline.stage import urls
from showtell.pipeline.stage.errors import ConfigError, DatasetError, StorageError
from showtell.pipeline.stage.manifest import Manifest
from showtell.pipeline.streaming import passes

CAPTIONS = [f"A {word} dog runs." for word in ("big", "small", "red", "old", "wet", "fat")]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch) -> None:
    monkeypatch.setattr(passes, "BATCH_IMAGES", 4)
    monkeypatch.setattr(urls, "FIRST_WAIT_S", 0.0)


def write_tar(path: Path, members: Iterable[tuple[str, bytes | str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            body = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return path


def members(start: int = 0, count: int = 6) -> list[tuple[str, bytes | str]]:
    found: list[tuple[str, bytes | str]] = []
    for i in range(start, start + count):
        found += [(f"{i:09}.jpg", f"image {i}".encode()), (f"{i:09}.txt", CAPTIONS[i % 6])]
    return found


def run(tmp_path: Path, table: object, **options: Any) -> Any:
    options = {"min_count": 1} | options
    config = PrepareConfig(data=tmp_path / "data", dataset="mine", table=table, **options)
    manifest = prepare(config)
    assert up_to_date(config) == manifest
    return manifest


def rows_of(tmp_path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """File name → split and captions."""
    folder = tmp_path / "data/mine/captions"
    images = read_images(folder / "images.parquet")
    ids = images.image_ids.tolist()
    texts = read_references(folder / "captions.parquet", "caption", ids)
    return {
        name: (split, tuple(texts[image_id]))
        for image_id, name, split in zip(ids, images.file_names, images.splits, strict=True)
    }


def test_tars_are_read_in_order_with_the_place_of_each_image(tmp_path) -> None:
    for part in range(2):
        write_tar(tmp_path / f"set/{part:05}.tar", members(6 * part))
    manifest = run(tmp_path, f"{tmp_path}/set/*.tar")
    images = read_images(tmp_path / "data/mine/captions/images.parquet")
    assert images.image_ids.tolist() == [*range(1, 13)]
    assert list(images.file_names) == [f"{i // 6:05}.tar/{i:09}.jpg" for i in range(12)]
    for name, start, count in zip(images.file_names, images.offsets, images.num_bytes, strict=True):
        content = (tmp_path / "set" / name.split("/")[0]).read_bytes()
        assert content[start : start + count] == f"image {int(name[10:19])}".encode()
    assert manifest.details["source"] == str(tmp_path / "set")
    assert manifest.details["num_bad_files"] == 0
    assert {split for split, _ in rows_of(tmp_path).values()} == {"train", "val", "test"}


def test_tars_and_tables_are_read_by_url(tmp_path, upload, serve_folder) -> None:
    for part in range(2):
        write_tar(tmp_path / f"set/{part:05}.tar", members(6 * part))
    expected = run(tmp_path, f"{tmp_path}/set/*.tar")
    local = rows_of(tmp_path)
    for i, root in enumerate((upload(tmp_path / "set"), serve_folder(tmp_path / "set").url)):
        manifest = run(tmp_path / str(i), f"{root}/{{00000..00001}}.tar")
        assert rows_of(tmp_path / str(i)) == local
        assert manifest.details["source"] == root
        assert manifest.details["vocab_sha256"] == expected.details["vocab_sha256"]
        assert f"files of {root}/{{00000..00001}}.tar" in manifest.inputs


def test_captions_come_from_json_and_keys_may_have_folders(tmp_path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            ("./x/1.json", json.dumps({"caption": "from json", "url": "u"})),
            ("./x/1.png", b"p"),
            ("y/2.WEBP", b"w"),
            ("y/2.json", json.dumps({"text": ["two", "captions"]})),
            ("y/3.seg.png", b"s"),
            ("y/3.jpg", b"j"),
            ("y/3.txt", "third"),
        ],
    )
    run(tmp_path, tmp_path / "a.tar")
    assert {name: captions for name, (_, captions) in rows_of(tmp_path).items()} == {
        "a.tar/x/1.png": ("from json",),
        "a.tar/y/2.WEBP": ("two", "captions"),
        "a.tar/y/3.jpg": ("third",),
    }


def test_bad_samples_are_left_out_and_counted(tmp_path) -> None:
    long_name = "n" * 300
    bad = [
        ("a.jpg", b"x"),
        ("b.txt", "no image"),
        ("c.jpg", b"x"),
        ("c.txt", "word " * 3000),
        ("../d.jpg", b"x"),
        ("../d.txt", "outside"),
        ("/e.jpg", b"x"),
        ("/e.txt", "absolute"),
        (f"{long_name}.jpg", b"x"),
        (f"{long_name}.txt", "long name"),
        ("f.jpg", b"x"),
        ("f.txt", b"\xff\xfe"),
        ("g.jpg", b"x"),
        ("g.json", "[" * 10_000),
        ("h.jpg", b"x"),
        ("h.txt", "!"),
        *members(0, 6),
        ("000000000.jpg", b"again"),
        ("000000000.txt", "again"),
    ]
    write_tar(tmp_path / "a.tar", bad)
    manifest = run(tmp_path, tmp_path / "a.tar")
    assert manifest.details["left_out"] == {
        "without a caption": 1,
        "without an image": 1,
        "with a caption of more than 10,000 characters": 1,
        "with a file name or URL that cannot be used": 3,
        "with a caption that is not text": 2,
        "without a word in any caption": 1,
        "with the name of an earlier one in the same archive": 1,
    }
    assert len(rows_of(tmp_path)) == 6


def test_bad_files_are_passed_and_named(tmp_path, capsys) -> None:
    whole = write_tar(tmp_path / "set/00000.tar", members(0, 6)).read_bytes()
    (tmp_path / "set/00001.tar").write_bytes(
        write_tar(tmp_path / "x", members(6)).read_bytes()[:4000]
    )
    (tmp_path / "set/00002.tar").write_bytes(b"no tar at all" * 100)
    damaged = bytearray(write_tar(tmp_path / "x", members(18)).read_bytes())
    damaged[2048:2560] = b"\1" * 512  # the header of the third member
    (tmp_path / "set/00003.tar").write_bytes(bytes(damaged))
    (tmp_path / "set/00004.tar").write_bytes(whole.rstrip(b"\0") + b"\0" * 100)
    (tmp_path / "set/00005.tar").write_bytes(b"")
    manifest = run(tmp_path, f"{tmp_path}/set/{{00000..00006}}.tar")
    bad = {Path(file["location"]).name: file for file in manifest.details["bad_files"]}
    assert {name: file["num_samples"] for name, file in bad.items()} == {
        "00001.tar": 1,
        "00002.tar": 0,
        "00003.tar": 0,  # the sample before the damage may be incomplete
        "00004.tar": 5,
        "00005.tar": 0,
        "00006.tar": 0,
    }
    assert "does not exist" in bad["00006.tar"]["reason"]
    assert "damaged or incomplete after 2,048 bytes" in bad["00003.tar"]["reason"]
    assert len(rows_of(tmp_path)) == 6 + 1 + 5
    warnings = capsys.readouterr().err
    assert "00001.tar: " in warnings and "Used the 1 samples before that." in warnings


def test_only_bad_files_are_an_error(tmp_path) -> None:
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    with pytest.raises(DatasetError, match=r"none of the 2 files can be read; .*a\.tar: "):
        run(tmp_path, f"{tmp_path}/*.tar")
    write_tar(tmp_path / "c.tar", [("1.jpg", b"x"), ("2.jpg", b"y")])
    with pytest.raises(DatasetError, match="no image with a caption; left out: 2 without"):
        run(tmp_path, tmp_path / "c.tar")
    assert not (tmp_path / "data/mine/captions/manifest.json").exists()
    assert not [*(tmp_path / "data/mine/captions").glob(".*partial*")]


def test_hostile_tables_are_refused_in_little_time_and_memory(tmp_path, within_limits) -> None:
    (tmp_path / "line.csv").write_text("url,caption\n" + "x" * 50_000_000)
    (tmp_path / "deep.jsonl").write_text('{"url": "https://h/x", "text": ' + "[" * 900_000 + "\n")
    column = pa.array(["word " * 200_000]).dictionary_encode().take(pa.array([0] * 100_000))
    table = pa.table({"url": column, "caption": column})
    pq.write_table(table, tmp_path / "bomb.parquet")
    members = [("1.jpg", b"x"), ("1.txt", b"word " * 10_000_000)]
    write_tar(tmp_path / "long.tar", members)
    for name in ("line.csv", "deep.jsonl", "bomb.parquet", "long.tar"):
        with within_limits(), pytest.raises(DatasetError):
            run(tmp_path, f"{tmp_path}/{name[:2]}*")


def test_compressed_archives_are_refused(tmp_path) -> None:
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(DatasetError, match=r"unknown format.*\.tar\. Archives are read without"):
        run(tmp_path, f"{tmp_path}/*.gz")


def serve_two_tars(tmp_path, serve_folder):
    """Return the server of two archives with six samples each, and the options to prepare them."""
    for part in range(2):
        write_tar(tmp_path / f"set/{part:05}.tar", members(6 * part))
    served = serve_folder(tmp_path / "set")
    table = f"{served.url}/{{00000..00001}}.tar"
    config = PrepareConfig(data=tmp_path / "data", dataset="mine", table=table, min_count=1)
    return served, config


def test_files_that_failed_for_now_are_read_again(tmp_path, serve_folder) -> None:
    served, config = serve_two_tars(tmp_path, serve_folder)
    fail_after_stamp(served, "/00001.tar")
    manifest = prepare(config)
    assert manifest.counts["num_images"] == 6
    assert "HTTP 503" in manifest.details["bad_files"][0]["reason"]
    assert up_to_date(config) is None
    assert prepare(config).counts["num_images"] == 12
    assert up_to_date(config) is not None


def test_failure_of_the_network_keeps_a_finished_dataset(tmp_path, serve_folder) -> None:
    served, config = serve_two_tars(tmp_path, serve_folder)
    done = prepare(config)
    served.statuses["/00001.tar"] = [503] * 1000
    assert up_to_date(config) is None
    with pytest.raises(StorageError, match=r"not replaced, because 1 of 2 .*00001\.tar: .* 503"):
        prepare(config)
    assert Manifest.read(config.captions_dir) == done
    assert len(rows_of(tmp_path)) == 12
    served.statuses.clear()
    assert prepare(config) == done
    # As the error advises: without the finished dataset, the files that can be read are enough.
    shutil.rmtree(config.captions_dir)
    served.statuses["/00001.tar"] = [503] * 1000
    for _ in range(2):  # the second replaces the first: no file gives fewer samples than before
        assert prepare(config).counts["num_images"] == 6
        assert up_to_date(config) is None


def fail_after_stamp(served: Any, path: str) -> None:
    """Answer the first request for a file, which is for its stamp, and refuse the next eight."""

    class Statuses(list[int]):
        def __bool__(self) -> bool:
            requests = [found for _, found, _ in served.requests].count(path)
            return requests > 1 and len(self) > 0

    served.statuses[path] = Statuses([503] * 8)


PARQUET_COLUMNS: dict[str, dict[str, Any]] = {
    "hugging face": {
        "image": [{"bytes": b"i", "path": "x.jpg"}] * 6,
        "caption": [[caption, "A second."] for caption in CAPTIONS],
    },
    "img2dataset": {
        "jpg": [b"i"] * 6,
        "key": [f"{i:09}" for i in range(6)],
        "status": ["success"] * 5 + ["failed_to_download"],
        "caption": CAPTIONS,
        "url": ["https://h/x.jpg"] * 6,
    },
    "laion": {"URL": [f"https://h/{i}.jpg" for i in range(6)], "TEXT": CAPTIONS},
}


@pytest.mark.parametrize("kind", PARQUET_COLUMNS)
def test_parquet_files_with_images_or_urls(tmp_path, upload, kind: str) -> None:
    (tmp_path / "set").mkdir()
    for split in ("train", "validation"):
        path = tmp_path / f"set/{split}-00000-of-00001.parquet"
        pq.write_table(pa.table(PARQUET_COLUMNS[kind]), path, row_group_size=4)
    root = upload(tmp_path / "set") if kind == "laion" else tmp_path / "set"
    manifest = run(tmp_path, f"{root}/*.parquet")
    rows = rows_of(tmp_path)
    if kind == "laion":
        # The same URLs in both files: an image belongs to its first split.
        assert manifest.details["left_out"] == {"in two splits": 6}
        assert {name: split for name, (split, _) in rows.items()} == {
            f"https://h/{i}.jpg": ("val" if i in drawn(rows) else "train") for i in range(6)
        }
    else:
        count = 6 if kind == "hugging face" else 5
        assert list(rows) == [
            f"{split}-00000-of-00001.parquet/{i}"
            for split in ("train", "validation")
            for i in range(count)
        ]
        assert [split for split, _ in rows.values()] == ["train"] * count + ["val"] * count
    assert rows[next(iter(rows))][1][0] == CAPTIONS[0]


def drawn(rows: dict[str, tuple[str, Any]]) -> set[int]:
    """The images that were held out as val."""
    return {int(name[-5]) for name, (split, _) in rows.items() if split == "val"}


def test_corrupt_parquet_is_passed(tmp_path) -> None:
    (tmp_path / "set").mkdir()
    for i in range(2):
        columns = {"url": [f"https://h/{i}-{j}.jpg" for j in range(6)], "caption": CAPTIONS}
        pq.write_table(pa.table(columns), tmp_path / f"set/{i}.parquet")
    path = tmp_path / "set/1.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    pq.write_table(pa.table({"other": [1]}), tmp_path / "set/2.parquet")
    manifest = run(tmp_path, f"{tmp_path}/set/*.parquet")
    reasons = [file["reason"] for file in manifest.details["bad_files"]]
    assert len(reasons) == 2 and "Parquet" in reasons[0] and "columns are 'other'" in reasons[1]
    assert len(rows_of(tmp_path)) == 6


@pytest.mark.parametrize("order", ["caption first", "url first"])
def test_tsv_without_header(tmp_path, order: str) -> None:
    rows = [(f'"{caption}', f"https://h/{i}.jpg") for i, caption in enumerate(CAPTIONS)]
    step = 1 if order == "caption first" else -1
    text = "".join("\t".join(row[::step]) + "\n" for row in rows)
    (tmp_path / "cc.tsv").write_text(text)
    run(tmp_path, tmp_path / "cc.tsv")
    assert {name: captions[0] for name, (_, captions) in rows_of(tmp_path).items()} == {
        url: caption for caption, url in rows
    }


def test_tsv_that_needs_a_header_says_how_to_add_one(tmp_path) -> None:
    (tmp_path / "cc.tsv").write_text("one\ttwo\tthree\n1\t2\t3\n")
    with pytest.raises(DatasetError, match=r"sed -i '1i caption\\turl' FILE"):
        run(tmp_path, tmp_path / "cc.tsv")


def test_rows_of_text_tables_that_cannot_be_read_are_left_out(tmp_path) -> None:
    good = "".join(f'https://h/{i}.jpg,"{caption}"\n' for i, caption in enumerate(CAPTIONS))
    bad = 'https://h/a.jpg\nhttps://h/b.jpg,"x" y\nhttps://h/c.jpg,\n,no image\n'
    (tmp_path / "a.csv").write_bytes(
        (f"url,caption\n{bad}{good}").encode() + b"https://h/d.jpg,\xff\n"
    )
    manifest = run(tmp_path, tmp_path / "a.csv")
    assert manifest.details["left_out"] == {
        "in a row that cannot be read": 2,
        "without a caption": 1,
        "without an image": 1,
        "with a caption that is not text": 1,
    }
    lines = [json.dumps({"url": f"https://h/{i}.jpg", "text": c}) for i, c in enumerate(CAPTIONS)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{", "7", '{"url": 7, "text": "x"}']))
    manifest = run(tmp_path / "jsonl", tmp_path / "a.jsonl")
    assert manifest.details["left_out"] == {
        "in a row that cannot be read": 2,
        "with a file name or URL that cannot be used": 1,
    }


def test_splits_for_some_files_only_are_an_error(tmp_path) -> None:
    write_tar(tmp_path / "set/train-0.tar", members(0))
    write_tar(tmp_path / "set/other.tar", members(6))
    with pytest.raises(DatasetError, match="6 images have no split, but 6 do"):
        run(tmp_path, f"{tmp_path}/set/*.tar")


def test_archives_must_be_in_the_source(tmp_path) -> None:
    write_tar(tmp_path / "set/a.tar", members(0))
    with pytest.raises(ConfigError, match=r"is not in --source .*Leave out --source"):
        run(tmp_path, tmp_path / "set/a.tar", source=tmp_path / "other")


def write_table(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "caption", "split"))
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("vocab", [{}, {"vocab": "bpe", "min_count": None, "vocab_size": 60}])
def test_streamed_table_equals_the_one_in_memory(tmp_path, monkeypatch, vocab) -> None:
    splits = ("train", "train", "train", "val", "test")
    rows = [
        (f"{i % 25:02}.jpg", f"{CAPTIONS[i % 6]} Number {i % 9}, näh\u00a0näh.", splits[i % 25 % 5])
        for i in range(50)  # each image twice, far apart
    ]
    rows += [(rows[-1][0], f"Extra {i}.", rows[-1][2]) for i in range(5)]
    table = write_table(tmp_path / "captions.csv", rows)
    for name, _, _ in rows:
        (tmp_path / name).touch()
    run(tmp_path / "memory", table, **vocab)
    monkeypatch.setattr(table_files, "MAX_TABLE_BYTES", 0)
    run(tmp_path / "stream", table, **vocab)
    monkeypatch.undo()
    found = [tmp_path / kind / "data/mine/captions" for kind in ("memory", "stream")]
    vocabs = [(folder / "vocab.json").read_bytes() for folder in found]
    assert vocabs[0] == vocabs[1]
    assert contents(found[0]) == contents(found[1])
    counts = [json.loads((folder / "manifest.json").read_text())["counts"] for folder in found]
    assert counts[0] == counts[1]
    schemas = [pq.read_schema(folder / "captions.parquet") for folder in found]
    assert schemas[0] == schemas[1]


def contents(folder: Path) -> dict[int, Any]:
    """Image id → name, split, and the text, words and tokens of its captions."""
    images = read_images(folder / "images.parquet")
    ids = images.image_ids.tolist()
    captions = read_captions(folder / "captions.parquet")
    tokens: dict[int, list[list[int]]] = {image_id: [] for image_id in ids}
    for i, image_id in enumerate(captions.image_ids.tolist()):
        start, stop = captions.offsets[i : i + 2]
        tokens[image_id].append(captions.tokens[start:stop].tolist())
    assert captions.caption_ids.tolist() == [*range(len(captions))]
    path = folder / "captions.parquet"
    texts, words = (read_references(path, column, ids) for column in ("caption", "words"))
    names = zip(ids, images.file_names, images.splits, strict=True)
    return {i: (name, split, texts[i], words[i], tokens[i]) for i, name, split in names}


def test_random_splits_follow_name_and_seed(tmp_path) -> None:
    names = [f"https://h/{i}.jpg" for i in range(200)]
    found = []
    for i, (order, seed) in enumerate([(names, 0), (names[::-1], 0), (names, 1)]):
        path = tmp_path / f"{i}.csv"
        path.write_text("url,caption\n" + "".join(f"{name},A dog.\n" for name in order))
        manifest = run(tmp_path / str(i), path, seed=seed)
        assert manifest.counts["num_val_images"] == manifest.counts["num_test_images"] == 20
        found.append({name: split for name, (split, _) in rows_of(tmp_path / str(i)).items()})
    assert found[0] == found[1] != found[2]


def test_missing_images_are_noticed_early(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(table_files, "MAX_TABLE_BYTES", 0)
    table = write_table(tmp_path / "captions.csv", [("a.jpg", "A dog.", "train")])
    with pytest.raises(DatasetError, match=r"none of the first 1 images .* such as a\.jpg"):
        run(tmp_path, table)


def test_changed_archive_is_prepared_again(tmp_path) -> None:
    path = write_tar(tmp_path / "set/00000.tar", members(0))
    config = PrepareConfig(data=tmp_path / "data", dataset="mine", table=str(path), min_count=1)
    prepare(config)
    write_tar(path, members(0, 5))
    assert up_to_date(config) is None
    assert prepare(config).counts["num_images"] == 5
