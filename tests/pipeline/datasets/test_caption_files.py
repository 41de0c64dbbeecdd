import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.pipeline.datasets.caption_files import merge_captions, read_captions
from showtell.pipeline.stage.errors import DatasetError, MismatchError, MissingArtifactError

TEXTS = {"7": ["A dog runs.", 'Dogs "run", fast'], "12": ["Ein Café 跑"]}
ROWS = [(key, text) for key, texts in TEXTS.items() for text in texts]


def as_annotations() -> dict[str, Any]:
    images = [{"id": int(key), "file_name": f"COCO_{key}.jpg"} for key in TEXTS]
    rows = [{"id": i, "image_id": int(key), "caption": text} for i, (key, text) in enumerate(ROWS)]
    return {"info": {}, "images": images, "annotations": rows}


DOCUMENTS = {
    "results": [{"image_id": int(key), "caption": text} for key, text in ROWS],
    "annotations": as_annotations(),
    "Karpathy's splits": {
        "dataset": "coco",
        "images": [
            {
                "cocoid": int(key),
                "filename": f"COCO_{key}.jpg",
                "split": "test",
                "sentences": [{"raw": text, "tokens": []} for text in texts],
            }
            for key, texts in TEXTS.items()
        ],
    },
    "by id": TEXTS,
    "as pycocoevalcap's tokenizer takes them": {
        key: [{"image_id": key, "caption": text} for text in texts] for key, texts in TEXTS.items()
    },
    "lists in rows": [{"id": key, "captions": texts} for key, texts in TEXTS.items()],
}


def write_table(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_json_layouts_are_read_alike(name: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(DOCUMENTS[name]), "utf-8-sig")
    for source in (path, str(path), DOCUMENTS[name]):
        captions = read_captions(source, "references")
        assert captions.texts == TEXTS and captions.has_ids


@pytest.mark.parametrize("name", ["annotations", "Karpathy's splits"])
def test_file_names_are_read(name: str) -> None:
    captions = read_captions(DOCUMENTS[name], "references")
    assert captions.file_names == {"COCO_7.jpg": "7", "COCO_12.jpg": "12"}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ""])
def test_tables_with_a_header_are_read(separator: str, suffix: str, tmp_path: Path) -> None:
    quoted = [(key, '"' + text.replace('"', '""') + '"') for key, text in ROWS]
    rows = [("image", "caption"), *quoted]
    path = tmp_path / f"captions{suffix}"
    path.write_text("\r\n".join(map(separator.join, rows)), "utf-8")
    assert read_captions(path, "references").texts == TEXTS


def test_json_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    rows = [{"file_name": key, "caption": texts} for key, texts in TEXTS.items()]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    assert read_captions(path, "references").texts == TEXTS


def test_parquet_tables_are_read(tmp_path: Path) -> None:
    ids, texts = zip(*ROWS, strict=True)
    table = write_table(tmp_path / "a.parquet", {"image_id": [*map(int, ids)], "caption": texts})
    assert read_captions(table, "references").texts == TEXTS
    lists = {"split": ["val"] * 2, "captions": [*TEXTS.values()], "filename": [*TEXTS]}
    assert read_captions(write_table(tmp_path / "b.parquet", lists), "references").texts == TEXTS


def test_flickr_token_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "Flickr8k.token.txt"
    path.write_text("a.jpg#0\tA dog .\nb.jpg#0\tA cat .\na.jpg#1\tThe dog .\n")
    captions = read_captions(path, "references")
    assert captions.texts == {"a.jpg": ["A dog .", "The dog ."], "b.jpg": ["A cat ."]}


def test_plain_text_is_numbered_by_lines(tmp_path: Path) -> None:
    path = tmp_path / "references"
    path.write_text("a dog\tthe dog\r\n\na cat", "utf-8")
    captions = read_captions(path, "references")
    assert captions.texts == {"1": ["a dog", "the dog"], "2": [""], "3": ["a cat"]}
    assert not captions.has_ids
    path.write_text("\n")
    assert read_captions(path, "candidates").texts == {"1": [""]}
    values = [["a dog", "the dog"], "", ("a cat",)]
    assert read_captions(values, "references").texts == captions.texts


def test_files_of_references_are_added_up(tmp_path: Path) -> None:
    for name, text in (("a", "x1\nx2\n"), ("b", "y1\ny2"), ("c", "z1\nz2\nz3\n")):
        (tmp_path / name).write_text(text)
    a, b, c = (read_captions(tmp_path / name, "references") for name in "abc")
    assert merge_captions([a, b]).texts == {"1": ["x1", "y1"], "2": ["x2", "y2"]}
    with pytest.raises(MismatchError, match=r"a has 2 lines and .*c has 3\. Line i of every file"):
        merge_captions([a, b, c])
    with pytest.raises(MismatchError, match=r"references names its images, but .*a has captions"):
        merge_captions([a, read_captions(TEXTS, "references")])


def test_ids_of_any_type_are_the_same() -> None:
    values: dict[Any, str] = {7: "a", "8 ": "b", np.int64(9): "c", 10.0: "d", "x/y.jpg": "e"}
    assert [*read_captions(values, "candidates").texts] == ["7", "8", "9", "10", "x/y.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"7": "a", "7": "b"}', "captions.json: key '7' occurs 2 times. Keep one."),
        ('[{"image_id": 7, "caption": null}]', "entry 1: the caption of image 7 is null"),
        ('[{"image_id": 7, "caption": 5}]', "entry 1: the caption of image 7 is 5, expected text"),
        ('{"7": ["a", 5]}', "captions.json: the caption of image 7 is 5, expected text"),
        ('{"7": [["a"]]}', r"the caption of image 7 is ['a'], expected text"),
        ('[{"image_id": true, "caption": "a"}]', "the id is True, expected an integer or text"),
        ('[{"image_id": "", "caption": "a"}]', "the id is '', expected an integer or text"),
        ('[{"image_id": 7.5, "caption": "a"}]', "the id is 7.5, expected an integer or text"),
        (r'{"a\nb": "a"}', r"the id is 'a\nb', expected at most 1024 printable characters"),
        (r'{"\ud800": "a"}', r"the id is '\ud800', expected at most 1024 printable characters"),
        ('[{"caption": "a"}]', "entry 1: it has neither image_id, file_name"),
        ('[{"image_id": 7, "text": "a"}]', "its keys are 'image_id', 'text'"),
        ('[{"image_id": 7, "caption": "a"}, "b"]', "entry 2: it is 'b', expected an object"),
        ('"a"', "it is 'a', expected a list or a dict of captions"),
        ("7", "it is 7, expected a list or a dict of captions"),
        ("[]", "captions.json has no captions."),
        ("{}", "captions.json has no captions."),
        ('{"annotations": [{"image_id": 7}]}', "annotations[0]: key 'caption' is missing"),
        ('{"7": "a"', "line 1, column 10: invalid JSON"),
    ],
)
def test_error_names_the_entry(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(DatasetError) as error:
        read_captions(path, "candidates")
    assert message in str(error.value) and str(path) in str(error.value)


def test_error_of_a_python_value_names_it() -> None:
    with pytest.raises(DatasetError, match="candidates: the caption of image 7 is null"):
        read_captions({7: None}, "candidates")
    with pytest.raises(DatasetError, match=r"references, entry 2: the caption is 5, expected text"):
        read_captions(["a", ["b", 5]], "references")
    with pytest.raises(DatasetError, match="references has no captions"):
        read_captions([], "references")


def test_error_of_other_formats_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("image_id,text\n7,a\n")
    with pytest.raises(DatasetError, match=r"no column 'caption' or .*'image_id', 'text'"):
        read_captions(path, "candidates")
    with pytest.raises(DatasetError, match=r"no column 'image_id' or .* columns are 'caption'"):
        read_captions(write_table(tmp_path / "a.parquet", {"caption": ["a"]}), "candidates")
    path.with_suffix(".parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="Expected a Parquet file"):
        read_captions(path.with_suffix(".parquet"), "candidates")
    path.with_suffix(".jsonl").write_text('{"image_id": 7, "caption": "a"}\n{"image_id": 8}\n')
    with pytest.raises(DatasetError, match="line 2: it has neither caption"):
        read_captions(path.with_suffix(".jsonl"), "candidates")
    path.with_suffix(".txt").write_bytes("a dog\nein Café".encode("latin-1"))
    with pytest.raises(DatasetError, match="line 2: byte 0xe9 is not UTF-8"):
        read_captions(path.with_suffix(".txt"), "candidates")
    with pytest.raises(MissingArtifactError, match=r"b.json does not exist"):
        read_captions(tmp_path / "b.json", "candidates")
