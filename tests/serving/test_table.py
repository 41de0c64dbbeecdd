import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from showtell.pipeline.stage.errors import (
    DatasetError,
    MismatchError,
    ShowTellError,
    StorageError,
)
from showtell.serving.results import Caption, Token
from showtell.serving.stream import CaptionedImage
from showtell.serving.table import CaptionTable

WORDS = (Token("a", -1.0), Token("dog", -0.5), Token("", -0.25))
SUFFIXES = pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])


def captioned(path: Path, count: int = 1) -> CaptionedImage:
    """An image with captions, none of them true."""
    return CaptionedImage(str(path), tuple(Caption("a dog", -i, -i, WORDS) for i in range(count)))


def write(table_path: Path, images: list[CaptionedImage], stamp: str = "1:1", **names: str) -> None:
    """Add images to a table, as one command does."""
    with opened(table_path, **names) as table:
        stamps = {table.name_of(image.path): stamp for image in images}
        finished = table.find_finished(stamps)
        table.start()
        missing = [image for image in images if table.name_of(image.path) not in finished]
        table.append(missing, stamps)
        table.finish()


def opened(path: Path, model: str = "gru@1234", decoding: str = "beam3"):
    return CaptionTable.open(path, model, decoding)


def rows(path: Path) -> list[dict[str, object]]:
    with opened(path) as table:
        return list(table.read())


def names(path: Path) -> Iterator[object]:
    return (row["file_name"] for row in rows(path))


@SUFFIXES
def test_rows_hold_captions_with_probabilities(tmp_path, suffix: str) -> None:
    path = tmp_path / f"captions.{suffix}"
    write(path, [captioned(tmp_path / "a/1.jpg", 2), captioned(Path("/elsewhere/2.jpg"))])
    found = rows(path)
    assert [(row["file_name"], row["rank"], row["num_captions"]) for row in found] == [
        ("a/1.jpg", 1, 2),
        ("a/1.jpg", 2, 2),
        ("/elsewhere/2.jpg", 1, 1),
    ]
    assert (found[1]["caption"], found[1]["log_prob"]) == ("a dog", -1.0)
    assert found[0]["word_probs"] == pytest.approx([0.3679, 0.6065], abs=1e-6)
    assert (found[0]["model"], found[0]["decoding"]) == ("gru@1234", "beam3")
    assert list(tmp_path.iterdir()) == [path]  # neither locks nor temporary files


@SUFFIXES
def test_a_later_run_adds_rows(tmp_path, suffix: str) -> None:
    path = tmp_path / f"captions.{suffix}"
    write(path, [captioned(tmp_path / "1.jpg", 2)])
    write(path, [captioned(tmp_path / f"{i}.jpg", 2) for i in (0, 1, 2)])
    assert list(names(path)) == ["1.jpg"] * 2 + ["0.jpg"] * 2 + ["2.jpg"] * 2


@SUFFIXES
def test_changed_images_are_replaced(tmp_path, suffix: str) -> None:
    path = tmp_path / f"captions.{suffix}"
    write(path, [captioned(tmp_path / f"{i}.jpg") for i in (1, 2)])
    write(path, [captioned(tmp_path / "1.jpg")], stamp="2:2")
    assert [(row["file_name"], row["stamp"]) for row in rows(path)] == [
        ("2.jpg", "1:1"),
        ("1.jpg", "2:2"),
    ]


@SUFFIXES
def test_every_cut_is_continued_to_the_same_table(tmp_path, suffix: str) -> None:
    images = [captioned(tmp_path / f"{i}.jpg", 2) for i in range(3)]
    whole = tmp_path / f"whole.{suffix}"
    write(whole, images)
    cut_path = tmp_path / f"cut.{suffix}"
    growing = tmp_path / ("cut.parquet.jsonl" if suffix == "parquet" else cut_path.name)
    with opened(cut_path) as table:  # stopped before the end
        table.start()
        table.append(images, dict.fromkeys(("0.jpg", "1.jpg", "2.jpg"), "1:1"))
    content = growing.read_bytes()
    for cut in range(0, len(content), 7):
        growing.write_bytes(content[:cut])
        write(cut_path, images)
        assert rows(cut_path) == rows(whole), cut
        if suffix == "parquet":
            assert not growing.exists()
            cut_path.unlink()


def test_parquet_has_typed_columns(tmp_path) -> None:
    path = tmp_path / "captions.parquet"
    write(path, [captioned(tmp_path / "1.jpg")])
    types = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert types["word_probs"].startswith("list") and "float" in types["word_probs"]
    assert (types["rank"], types["log_prob"], types["caption"]) == ("int32", "double", "string")


@SUFFIXES
@pytest.mark.parametrize("other", [{"model": "gru@9999"}, {"decoding": "beam5"}])
def test_table_of_another_model_is_refused(tmp_path, suffix: str, other: dict[str, str]) -> None:
    path = tmp_path / f"captions.{suffix}"
    write(path, [captioned(tmp_path / "1.jpg")])
    before = path.read_bytes()
    with pytest.raises(MismatchError, match=r"by gru@1234 with beam3, not by gru@.* with beam"):
        write(path, [captioned(tmp_path / "2.jpg")], **other)
    assert path.read_bytes() == before


@SUFFIXES
def test_renamed_run_continues(tmp_path, suffix: str) -> None:
    path = tmp_path / f"captions.{suffix}"
    write(path, [captioned(tmp_path / "1.jpg")])
    write(path, [captioned(tmp_path / "2.jpg")], model="other@1234")
    assert list(names(path)) == ["1.jpg", "2.jpg"]


@SUFFIXES
@pytest.mark.parametrize("content", [b"file_name,caption\n1.jpg,A dog.\n", b"notes", b"{}\n"])
def test_other_files_stay_as_they_are(tmp_path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"captions.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"is not a table .* another --output") as caught:
        write(path, [captioned(tmp_path / "1.jpg")])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_parquet_of_others_is_refused(tmp_path) -> None:
    import pyarrow as pa

    path = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"file_name": ["a.jpg"]}), path)
    with pytest.raises(DatasetError, match="its columns are file_name"):
        write(path, [captioned(tmp_path / "1.jpg")])


def test_empty_file_is_a_table_without_rows(tmp_path) -> None:
    for suffix in ("jsonl", "csv"):
        path = tmp_path / f"captions.{suffix}"
        path.touch()
        write(path, [captioned(tmp_path / "1.jpg")])
        assert list(names(path)) == ["1.jpg"]


def test_names_are_the_same_for_all_spellings(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(Path("captions.csv")) as table:
        spellings = ["a/1.jpg", "./a/1.jpg", "a/../a/1.jpg", str(tmp_path / "a/1.jpg")]
        assert {table.name_of(path) for path in spellings} == {"a/1.jpg"}
        assert table.name_of("../2.jpg") == str(tmp_path.parent / "2.jpg")


def test_two_processes_cannot_write_one_table(tmp_path) -> None:
    with opened(tmp_path / "a.csv"), opened(tmp_path / "b.csv"):
        for _ in range(2):
            with pytest.raises(ShowTellError, match=r"a\.csv is being written by another"):
                opened(tmp_path / "a.csv").__enter__()
    assert not list(tmp_path.iterdir())


def test_full_disk_is_an_error_that_keeps_rows(tmp_path) -> None:
    path = tmp_path / "captions.csv"
    write(path, [captioned(tmp_path / "1.jpg")])
    with opened(path) as table:
        table.growing = Path("/dev/full")
        with pytest.raises(StorageError, match=r"No space left.*same command again"):
            table.append([captioned(tmp_path / "2.jpg")], {"2.jpg": "1:1"})
    assert list(names(path)) == ["1.jpg"]


def test_table_that_was_removed_is_not_begun_in_the_middle(tmp_path) -> None:
    path = tmp_path / "captions.csv"
    with opened(path) as table:
        table.start()
        path.unlink()
        with pytest.raises(StorageError, match="No such file"):
            table.append([captioned(tmp_path / "2.jpg")], {"2.jpg": "1:1"})
    assert not path.exists()


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb"])
def test_other_libraries_read_every_format(tmp_path, library: str) -> None:
    module = pytest.importorskip(library)
    images = [b"a.jpg", b"caf\xe9.jpg", 'é\u2028,".jpg'.encode(), b"line\nbreak.jpg", b"=1+1.jpg"]
    expected = ["a.jpg", r"caf\xe9.jpg", 'é\\u2028,".jpg', r"line\nbreak.jpg", "=1+1.jpg"]
    for suffix in ("jsonl", "csv", "parquet"):
        path = tmp_path / f"captions.{suffix}"
        write(path, [captioned(tmp_path / os.fsdecode(image)) for image in images])
        if library == "duckdb":
            reader = {"jsonl": "read_json"}.get(suffix, f"read_{suffix}")
            query = f"select file_name from {reader}('{path}')"
            names = [name for (name,) in module.sql(query).fetchall()]
        else:
            if suffix == "jsonl" and library == "pandas":
                table = module.read_json(path, lines=True)
            elif suffix == "jsonl":
                table = module.read_ndjson(path)
            else:
                table = getattr(module, f"read_{suffix}")(path)
            names = list(table["file_name"])
        assert [name.removeprefix("./") for name in names] == expected
