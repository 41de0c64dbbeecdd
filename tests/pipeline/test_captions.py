import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.pipeline.captions import (
    EncodedCaptions,
    read_captions,
    read_images,
    read_references,
    write_captions,
    write_images,
)
from showtell.pipeline.datasets.records import ImageRecord
from showtell.pipeline.stage.errors import DamagedFileError, MismatchError, MissingArtifactError
from showtell.pipeline.stage.ragged import to_offsets

TOKENS = [[4, 5, 6], [7], [4, 4], [], [9, 8, 7, 6]]
IMAGES = [30, 30, 2**40, 7, 7]
TEXTS = pa.array(["A dog runs", "dogs", "näh näh", "!", "a b c d"])
WORDS = pa.array(["a dog runs", "dogs", "näh näh", "", "2\u00a01/2 b c d"])


def encode(token_lists=TOKENS, image_ids=IMAGES):
    return EncodedCaptions(
        caption_ids=np.arange(len(token_lists)),
        image_ids=np.array(image_ids, dtype=np.int64),
        tokens=np.array([t for tokens in token_lists for t in tokens], dtype=np.int32),
        offsets=to_offsets([len(tokens) for tokens in token_lists]),
    )


def listed(encoded):
    bounds = zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
    return [encoded.tokens[start:end].tolist() for start, end in bounds]


def write(tmp_path, encoded=None):
    path = tmp_path / "flickr8k" / "captions" / "captions.parquet"
    write_captions(path, encoded or encode(), TEXTS, WORDS)
    return path


def test_captions_round_trip(tmp_path):
    encoded = read_captions(write(tmp_path))
    assert listed(encoded) == TOKENS
    assert encoded.image_ids.tolist() == IMAGES
    assert encoded.caption_ids.tolist() == list(range(5))
    dtypes = [encoded.caption_ids, encoded.image_ids, encoded.tokens, encoded.offsets]
    assert [array.dtype for array in dtypes] == [np.int64, np.int64, np.int32, np.int64]


def test_captions_file_has_the_documented_columns(tmp_path):
    file = pq.ParquetFile(write(tmp_path))
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert list(types) == ["caption_id", "image_id", "caption", "words", "token_ids"]
    assert types["token_ids"].startswith("list<") and types["token_ids"].endswith("int32>")
    assert (types["image_id"], types["words"]) == ("int64", "string")
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.read()["token_ids"].to_pylist() == TOKENS


def test_captions_round_trip_with_many_row_groups(tmp_path):
    rng = np.random.default_rng(0)
    tokens = [rng.integers(4, 99, size=rng.integers(0, 20)).tolist() for _ in range(3000)]
    path = tmp_path / "captions.parquet"
    encoded = encode(tokens, rng.integers(0, 500, size=3000))
    write_captions(path, encoded, *[pa.array(["x"] * 3000)] * 2)
    pq.write_table(pq.read_table(path), path, row_group_size=97)
    again = read_captions(path)
    assert listed(again) == tokens
    assert again.image_ids.tolist() == encoded.image_ids.tolist()


def test_captions_round_trip_when_empty(tmp_path):
    path = tmp_path / "captions.parquet"
    write_captions(path, encode([], []), *[pa.array([], pa.string())] * 2)
    again = read_captions(path)
    assert (len(again), again.offsets.tolist(), again.tokens.tolist()) == (0, [0], [])


def test_captions_file_is_deterministic(tmp_path):
    first, second = write(tmp_path / "1"), write(tmp_path / "2")
    assert first.read_bytes() == second.read_bytes()


def test_select_matches_a_python_loop():
    rng = np.random.default_rng(1)
    tokens = [rng.integers(4, 99, size=rng.integers(0, 9)).tolist() for _ in range(400)]
    images = rng.integers(0, 60, size=400)
    wanted = rng.permutation(60)[:20]
    selected = encode(tokens, images).select(wanted)
    kept = [i for i in range(400) if images[i] in wanted]
    assert selected.caption_ids.tolist() == kept
    assert selected.image_ids.tolist() == images[kept].tolist()
    assert listed(selected) == [tokens[i] for i in kept]
    assert selected.lengths.tolist() == [len(tokens[i]) for i in kept]


def test_select_without_images_is_empty():
    selected = encode().select(np.array([], dtype=np.int64))
    assert (len(selected), selected.offsets.tolist(), selected.tokens.tolist()) == (0, [0], [])


def test_images_round_trip_and_select_by_split(tmp_path):
    records = [
        ImageRecord(2**40, "a/ü.jpg", "train", ("x",)),
        ImageRecord(3, "b.jpg", "val", ("x",)),
        ImageRecord(5, "c.jpg", "train", ("x",)),
    ]
    write_images(tmp_path / "images.parquet", records)
    table = read_images(tmp_path / "images.parquet")
    assert table.image_ids.tolist() == [2**40, 3, 5]
    assert table.image_ids.dtype == np.int64
    assert (list(table.file_names), table.splits.tolist()) == (
        ["a/ü.jpg", "b.jpg", "c.jpg"],
        ["train", "val", "train"],
    )
    assert table.select("train").tolist() == [2**40, 5]
    assert table.select("test").tolist() == []
    assert table.select("test").dtype == np.int64


def test_references_follow_the_order_of_the_ids(tmp_path):
    path = write(tmp_path)
    references = read_references(path, "caption", np.array([7, 30]))
    assert list(references.items()) == [(7, ["!", "a b c d"]), (30, ["A dog runs", "dogs"])]
    words = read_references(path, "words", [2**40, 7])
    assert list(words.items()) == [(2**40, ["näh näh"]), (7, ["", "2\u00a01/2 b c d"])]


def test_references_of_an_unknown_image_are_refused(tmp_path):
    with pytest.raises(MismatchError, match=r"no captions for 1 of 2 images \(image_id 8\)"):
        read_references(write(tmp_path), "words", [7, 8])


def test_missing_files_name_the_fixing_command(tmp_path):
    path = tmp_path / "flickr8k" / "captions" / "captions.parquet"
    for read in (read_captions, read_images):
        with pytest.raises(MissingArtifactError, match="'showtell prepare --dataset flickr8k"):
            read(path)


def test_damaged_files_name_the_fixing_command(tmp_path):
    path = write(tmp_path)
    with pytest.raises(DamagedFileError, match=r"captions\.parquet is damaged: .*file_name"):
        read_images(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedFileError, match=r"Run 'showtell prepare --dataset flickr8k.*'"):
        read_captions(path)


def test_names_are_found_by_id_and_read_in_slices(tmp_path):
    ids = [5, 2, 9, 7]
    records = [ImageRecord(i, f"{i}.jpg", "train", ("x",)) for i in ids]
    write_images(tmp_path / "images.parquet", records)
    table = read_images(tmp_path / "images.parquet")
    assert table.find_names([9, 5]) == ["9.jpg", "5.jpg"]
    assert table.file_names[1:3] == ["2.jpg", "9.jpg"] and table.file_names[-1] == "7.jpg"
    assert list(table.file_names.take([3, 0])) == ["7.jpg", "5.jpg"]
    assert table.offsets is None


def test_images_in_tars_have_a_place_in_them(tmp_path):
    columns = {
        "image_id": [1, 2],
        "file_name": ["a.tar/1.jpg", "b.parquet/0"],
        "split": ["train", "val"],
        "offset": [512, None],
        "num_bytes": [7, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "images.parquet")
    table = read_images(tmp_path / "images.parquet")
    assert (table.offsets.tolist(), table.num_bytes.tolist()) == ([512, -1], [7, -1])
