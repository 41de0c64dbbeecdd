import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.datasets import tables
from showtell.pipeline.datasets.registry import load_dataset
from showtell.pipeline.datasets.tables import TableReader
from showtell.pipeline.stage.errors import DatasetError, MissingArtifactError

ROWS = [
    ("images/b.png", "A cat.", "train"),
    ("images/a.png", "A dog, running.", "val"),
    ("images/b.png", 'The "cat".', "train"),
    ("c.png", "Zwei Hunde – süß", "test"),
]
EXPECTED = [
    (1, "images/b.png", "train", ("A cat.", 'The "cat".')),
    (2, "images/a.png", "val", ("A dog, running.",)),
    (3, "c.png", "test", ("Zwei Hunde – süß",)),
]


def as_csv(rows, header="file_name,caption,split"):
    def quote(text):
        return '"' + text.replace('"', '""') + '"'

    return "\n".join([header, *(",".join(map(quote, row)) for row in rows)]) + "\n"


def as_jsonl(rows):
    keys = ("file_name", "caption", "split")
    return "".join(json.dumps(dict(zip(keys, row, strict=False))) + "\n" for row in rows)


def write_parquet(path, rows, **types):
    columns = zip(("file_name", "caption", "split"), zip(*rows, strict=True), strict=False)
    pq.write_table(
        pa.table({name: pa.array(values, types.get(name)) for name, values in columns}), path
    )


def write_table(root, name, content, images=("images/a.png", "images/b.png", "c.png")):
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(b"x")
    path = root / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, "utf-8")
    else:
        write_parquet(path, content)
    return PrepareConfig(dataset="mine", table=path)


def found(records):
    return [(r.image_id, r.file_name, r.split, r.captions) for r in records]


def test_few_missing_images_are_not_blamed_on_the_folder(tmp_path):
    names = [f"{number}.png" for number in range(10)]
    table = as_csv([(name, "A cat.", "train") for name in names])
    config = write_table(tmp_path, "t.csv", table, images=names[1:])
    with pytest.raises(
        DatasetError, match=r"1 of 10 images .* Add these files, or remove"
    ) as caught:
        load_dataset(config)
    assert "--source" not in str(caught.value)
    with pytest.raises(DatasetError, match="Run 'showtell download --dataset scenes'"):
        load_dataset(replace(config, dataset="scenes"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", as_csv(ROWS)),
        ("t.csv", "\ufeff" + as_csv(ROWS).replace("\n", "\r\n")),
        ("t.CSV", as_csv([(*r, "7") for r in ROWS], "file_name,caption,split,score") + "\n\n"),
        ("t.csv", "\ufeff" + as_csv(ROWS).replace('","', '";"').replace(",", ";", 2)),
        ("t.csv", as_csv(ROWS).replace('","', '"\t"').replace(",", "\t", 2)),
        ("t.jsonl", as_jsonl(ROWS) + "\n"),
        ("t.jsonl", "\ufeff" + as_jsonl(ROWS).replace("\n", "\r\n")),
        ("t.parquet", ROWS),
    ],
)
def test_table_reads_every_format(tmp_path, name, content):
    assert found(load_dataset(write_table(tmp_path, name, content)).records) == EXPECTED


def test_table_csv_columns_can_be_in_any_order(tmp_path):
    text = as_csv([(split, caption, name) for name, caption, split in ROWS])
    text = text.replace("file_name,caption,split", "split,caption,file_name")
    assert found(load_dataset(write_table(tmp_path, "t.csv", text)).records) == EXPECTED


def test_table_parquet_columns_can_be_in_any_order(tmp_path):
    config = write_table(tmp_path, "t.parquet", ROWS)
    names, captions, splits = zip(*ROWS, strict=True)
    columns = {"split": splits, "x": [1] * 4, "caption": captions, "file_name": names}
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    dictionary = table["split"].combine_chunks().dictionary_encode()
    pq.write_table(table.set_column(0, "split", dictionary), tmp_path / "t.parquet")
    assert found(load_dataset(config).records) == EXPECTED


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_table_caption_can_be_a_list(tmp_path, name):
    rows = [(n, list(captions), split) for _, n, split, captions in EXPECTED]
    content = as_jsonl(rows) if name == "t.jsonl" else rows
    assert found(load_dataset(write_table(tmp_path, name, content)).records) == EXPECTED


@pytest.mark.parametrize("spelling", ["val", "valid", "validation", "dev", "Dev ", "VAL"])
def test_table_split_names_are_normalized(tmp_path, spelling):
    rows = [(name, text, spelling if split == "val" else split) for name, text, split in ROWS]
    assert found(load_dataset(write_table(tmp_path, "t.csv", as_csv(rows))).records) == EXPECTED


def test_table_file_names_are_relative_to_a_given_source(tmp_path):
    write_table(tmp_path / "photos", "other.csv", "")
    (tmp_path / "t.csv").write_text(as_csv(ROWS))
    config = PrepareConfig(dataset="x", table=tmp_path / "t.csv", source=tmp_path / "photos")
    assert found(load_dataset(config).records) == EXPECTED


@pytest.mark.parametrize(
    ("num_images", "num_val", "num_test"), [(2, 1, 0), (5, 1, 0), (10, 1, 1), (57, 5, 5)]
)
def test_table_without_splits_splits_images_80_10_10(tmp_path, num_images, num_val, num_test):
    names = [f"{i}.png" for i in range(num_images)]
    text = as_csv([(name, f"caption {n}") for name in names for n in range(3)], "file_name,caption")
    config = write_table(tmp_path, "t.csv", text, names)
    records = load_dataset(config).records
    splits = [r.split for r in records]
    assert (splits.count("val"), splits.count("test")) == (num_val, num_test)
    assert splits.count("train") == num_images - num_val - num_test
    assert all(len(r.captions) == 3 for r in records)
    assert load_dataset(config).records == records


def test_table_random_split_depends_on_seed_not_order(tmp_path):
    names = [f"{i}.png" for i in range(50)]

    def draw(names, seed):
        text = as_csv([(name, "caption") for name in names], "file_name,caption")
        write_table(tmp_path, "t.csv", text, names)
        config = PrepareConfig(dataset="mine", table=tmp_path / "t.csv", seed=seed)
        return {r.file_name: r.split for r in load_dataset(config).records}

    assert draw(names, 0) == draw(names[::-1], 0)
    assert draw(names, 0) != draw(names, 1)


def test_table_with_one_image_is_refused(tmp_path):
    config = write_table(tmp_path, "t.csv", "file_name,caption\nc.png,A dog\n")
    with pytest.raises(DatasetError, match="has 1 image with captions, expected at least 2"):
        load_dataset(config)


def test_table_without_val_holds_out_some_of_train(tmp_path):
    rows = [(f"{i}.png", "A dog", "train" if i < 20 else "test") for i in range(30)]
    config = write_table(tmp_path, "t.csv", as_csv(rows), [row[0] for row in rows])
    dataset = load_dataset(config)
    splits = [r.split for r in dataset.records]
    assert [splits.count(s) for s in ("train", "val", "test")] == [18, 2, 10]
    assert "2 of its 20 train images are held out as val" in dataset.warnings[0]


@pytest.mark.parametrize("empty", ["", "  "])
def test_table_empty_captions_are_left_out_and_counted(tmp_path, empty):
    rows = [*ROWS, ("images/b.png", empty, "train"), ("d.png", empty, "train")]
    dataset = load_dataset(write_table(tmp_path, "t.csv", as_csv(rows)))
    assert found(dataset.records) == EXPECTED
    assert dataset.left_out == (("d.png", "without captions"),)
    assert dataset.warnings[0] == "2 empty captions left out."


def test_table_null_captions_are_left_out(tmp_path):
    rows = [*ROWS, ("d.png", None, "train")]
    for name, content in (("t.jsonl", as_jsonl(rows)), ("t.parquet", rows)):
        dataset = load_dataset(write_table(tmp_path, name, content))
        assert found(dataset.records) == EXPECTED
        assert dataset.left_out == (("d.png", "without captions"),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", r"t\.csv has no rows"),
        ("t.csv", "file_name,caption\n", r"t\.csv has no rows"),
        ("t.jsonl", "\n", r"t\.jsonl has no rows"),
        ("t.csv", "file_name,text\nc.png,A dog\n", "has no column 'caption'; its columns are"),
        ("t.csv", "c.png,A dog\n", "has no column 'file_name'; its columns are 'c.png', 'A dog'"),
        ("t.csv", "file_name,caption\nc.png,A dog\nc.png,A, B\n", "line 3: 3 fields, expected 2"),
        ("t.csv", "file_name,caption\nc.png\n", "line 2: 1 fields, expected 2"),
        (
            "t.csv",
            'file_name,caption\nc.png,"A dog\n',
            "line 2: invalid CSV .unexpected end of data",
        ),
        ("t.csv", 'file_name,caption\nc.png,"A" dog\n', "line 2: invalid CSV"),
        ("t.csv", "file_name,caption\n,A dog\n", "line 2: file_name is '', expected the name"),
        ("t.csv", b"file_name,caption\nc.png,caf\xe9\n", "line 2: byte 0xe9 is not UTF-8"),
        ("t.csv", as_csv([("c.png", "x", "holdout")]), "line 2: split is 'holdout', expected one"),
        ("t.csv", as_csv([("c.png", "x", "train"), ("c.png", "y", "dev")]), "line 3: image c.png"),
        (
            "t.csv",
            as_csv([("c.png", "x", "train"), ("d.png", "y", "")]),
            "1 images have no split .such as d.png., but others do",
        ),
        ("t.csv", as_csv([("c.png", "", "train")]), "none of the 1 images of .* has a caption"),
        ("t.csv", as_csv([("c.png", "x", "val")]), "has no train split, only val"),
        ("t.csv", as_csv([("../c.png", "x", "train")]), "'../c.png' is outside the source"),
        ("t.csv", as_csv([("a/../../c.png", "x", "train")]), "is outside the source"),
        ("t.csv", as_csv([("/etc/passwd", "x", "train")]), "is outside the source"),
        ("t.csv", as_csv([("d.png", "x", "train")]), r"1 of 1 images .* were not found \(d.png\)"),
        (
            "t.jsonl",
            '{"file_name": "c.png", "caption": "x"}\n{"file_',
            "line 2, column 2: inval",
        ),
        ("t.jsonl", '["c.png", "x"]\n', "line 1: the row is .*, expected an object"),
        ("t.jsonl", '{"file_name": "c.png"}\n', "line 1: key 'caption' is missing"),
        ("t.jsonl", '{"file_name": "c.png", "caption": 3}\n', "line 1: caption is 3, expected"),
        (
            "t.jsonl",
            '{"file_name": "c.png", "caption": [3]}\n',
            "line 1: caption is 3, expected text",
        ),
        ("t.jsonl", '{"file_name": null, "caption": "x"}\n', "line 1: file_name is None"),
        ("t.parquet", b"PAR1 no", "file size is 7 bytes, .* Expected a Parquet"),
        ("t.parquet", [("c.png", 3)], "row 1: caption is 3, expected text"),
        ("t.parquet", [("c.png",)], "has no column 'caption'"),
        ("t.txt", "x", r"has an unknown table format: expected .*\.csv, \.jsonl, \.parquet"),
    ],
)
def test_table_reports_bad_input_in_one_line(tmp_path, name, content, message):
    config = write_table(tmp_path, name, content)
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("listed", "actual"),
    [
        ("images\\b.png", "images/b.png"),
        ("images/B.PNG", "images/b.png"),
        ("Images/b.png", "images/b.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
    ],
)
def test_table_images_are_found_under_another_spelling(tmp_path, listed, actual):
    rows = [(listed, "A cat.", "train"), ("c.png", "A dog.", "val")]
    config = write_table(tmp_path, "t.csv", as_csv(rows), (actual, "c.png"))
    dataset = load_dataset(config)
    assert found(dataset.records)[0] == (1, actual, "train", ("A cat.",))
    (warning,) = dataset.warnings
    assert warning.startswith("1 image found under a name that differs in case, slashes")
    assert warning.endswith(f"({listed} is {actual}).")


@pytest.mark.parametrize(
    ("rows", "images", "near"),
    [
        (["A.png"], ["a.png", "a.PNG"], "A.png: a.PNG, a.png"),  # two fit
        (["A.png", "a.png"], ["a.png"], "A.png: a.png"),  # the only one has its row
        (["A.png", "a.PNG"], ["a.png"], "A.png: a.png"),
        (["a.jpg"], ["a.png"], "a.jpg: a.png"),
        (["a.png"], ["images/a.png"], "a.png: images/a.png"),
    ],
)
def test_table_missing_images_name_the_near_misses(tmp_path, rows, images, near):
    text = as_csv([*((name, "A cat.") for name in rows), ("c.png", "x")], "file_name,caption")
    config = write_table(tmp_path, "t.csv", text, [*images, "c.png"])
    with pytest.raises(DatasetError, match=rf"images with captions were not.* Similar to {near}\."):
        load_dataset(config)


@pytest.mark.parametrize("folder", ["s3:x", "exp:1", "~x", "file:"])
def test_parquet_table_in_a_folder_that_looks_like_an_address(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / folder, "t.parquet", ROWS)
    config = PrepareConfig(dataset="mine", table=Path(f"./{folder}/t.parquet"))
    assert found(load_dataset(config).records) == EXPECTED


def test_table_reports_a_missing_file(tmp_path):
    config = PrepareConfig(dataset="mine", table=tmp_path / "none" / "t.csv")
    with pytest.raises(MissingArtifactError, match=r"none/t\.csv does not exist\. Give --table"):
        load_dataset(config)


def test_parquet_of_repeated_rows_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "captions.parquet"
    rows = pa.table({"file_name": ["a.jpg"] * 200_000, "caption": ["A dog."] * 200_000})
    pq.write_table(rows, path)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    with pytest.raises(DatasetError, match="expands to 200,000 rows, more than 100,000 from"):
        TableReader(path).read()


def test_damaged_parquet_metadata_does_not_end_the_process(tmp_path):
    # pyarrow would, for some of these bits, if the metadata of a column were looked at.
    path = tmp_path / "captions.parquet"
    captions = [[f"A dog {number}.", "A cat."] for number in range(20)]
    names = [f"{number}.jpg" for number in range(20)]
    pq.write_table(pa.table({"file_name": names, "caption": captions}), path)
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    num_refused = 0
    for position in range(footer, footer + 100):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            try:
                TableReader(path).read()
            except DatasetError:
                num_refused += 1
    assert num_refused > 200


def test_parquet_with_a_huge_repeated_caption_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "captions.parquet"
    rows = pa.table({"file_name": ["a.jpg"] * 900, "caption": ["a" * 200_000] * 900})
    pq.write_table(rows, path)
    monkeypatch.setattr(tables, "MIN_BYTES", 1 << 20)
    with pytest.raises(DatasetError, match=r"expands to [0-9,]+ bytes, more than"):
        TableReader(path).read()


def test_parquet_of_many_different_rows_is_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PARQUET_BATCH", 7)
    path = tmp_path / "captions.parquet"
    names = [f"{number}.jpg" for number in range(50)]
    pq.write_table(
        pa.table({"file_name": names, "caption": [f"A {name}." for name in names]}), path
    )
    assert list(TableReader(path).read().captions) == names
