import json
from dataclasses import replace
from pathlib import Path

import pytest

from showtell.pipeline.stage.checksums import checksums_of
from showtell.pipeline.stage.errors import DamagedFileError, MissingArtifactError
from showtell.pipeline.stage.manifest import MANIFEST_NAME, Manifest

CONFIG = {"dataset": "scenes", "min_count": None, "share": 0.5, "sizes": (1, 2)}
INPUTS = {"captions.csv": "ab12"}


def make_manifest(directory: Path) -> Manifest:
    """Create one output file and return a manifest that lists it."""
    (directory / "out.bin").write_bytes(b"12345")
    return Manifest(
        stage="prepare",
        version=3,
        config=json.loads(json.dumps(CONFIG)),
        inputs=dict(INPUTS),
        outputs={"out.bin": 5},
        counts={"num_images": 2},
        skipped=(("ä.jpg", "the file is empty"), ("b.jpg", "truncated")),
        seconds=1.25,
        details={"source": "/elsewhere"},
    )


def test_manifest_round_trips(tmp_path) -> None:
    manifest = make_manifest(tmp_path)
    assert manifest.write(tmp_path) is manifest
    assert Manifest.read(tmp_path) == manifest


def test_manifest_file_is_json_with_the_fields(tmp_path) -> None:
    make_manifest(tmp_path).write(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    assert values["stage"] == "prepare" and values["version"] == 3
    assert values["skipped"] == [["ä.jpg", "the file is empty"], ["b.jpg", "truncated"]]
    assert set(values) == {*Manifest.__dataclass_fields__, "checksum"}


def test_manifest_of_another_stage_is_damaged(tmp_path) -> None:
    for place, stage in (
        ("scenes/raw", "download"),
        ("captions/captions", "prepare"),
        ("scenes/features/resnet50-caffe", "features"),
        ("runs/captions", "train"),
        ("runs/r/eval/test-beam3", "eval"),
    ):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        for written in (stage, "export"):  # a bundle may be anywhere
            config, details = {"dataset": "scenes"}, {"source": "/raw"}
            Manifest(written, 1, config, {}, {}, details=details).write(folder)
            assert Manifest.load(folder).stage == written
        Manifest("bench", 1, {}, {}, {}).write(folder)
        with pytest.raises(DamagedFileError, match=r"it is the manifest of 'bench'\."):
            Manifest.load(folder)


def test_folder_in_its_place_is_damaged(tmp_path) -> None:
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(DamagedFileError, match=r"it is a folder\."):
        Manifest.load(tmp_path)


def test_read_without_a_manifest_returns_none(tmp_path) -> None:
    assert Manifest.read(tmp_path) is None
    assert Manifest.read(tmp_path / "nowhere") is None
    (tmp_path / "file").write_text("")
    assert Manifest.read(tmp_path / "file") is None


FIELDS = b'"stage": "p", "version": 1, "config": {}, "inputs": {}, "outputs": {}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"stage": "prepare"',
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe\x00",
        b"{" + FIELDS + b"}",
        b"{" + FIELDS + b', "skipped": [1]}',
        b"{" + FIELDS + b', "skipped": [], "of_a_later_version": 1}',
        b"{" + FIELDS.replace(b'"outputs": {}', b'"outputs": []') + b', "skipped": []}',
        b"[" * 100_000,
    ],
    ids=range(11),
)
def test_read_of_an_invalid_manifest_returns_none(tmp_path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    assert Manifest.read(tmp_path) is None


def test_matches_the_same_config_and_inputs(tmp_path) -> None:
    manifest = make_manifest(tmp_path).write(tmp_path)
    read = Manifest.read(tmp_path)
    # CONFIG has a tuple where JSON has a list.
    assert manifest.matches(tmp_path, 3, CONFIG, INPUTS)
    assert read is not None and read.matches(tmp_path, 3, CONFIG, INPUTS)


def test_matches_ignores_details_counts_and_time(tmp_path) -> None:
    other = replace(make_manifest(tmp_path), details={}, counts={}, skipped=(), seconds=9.0)
    assert other.matches(tmp_path, 3, CONFIG, INPUTS)


def test_matches_nothing_that_differs(tmp_path) -> None:
    manifest = make_manifest(tmp_path)
    assert not manifest.matches(tmp_path, 4, CONFIG, INPUTS)
    assert not manifest.matches(tmp_path, 3, CONFIG | {"share": 0.6}, INPUTS)
    assert not manifest.matches(tmp_path, 3, CONFIG | {"another": 1}, INPUTS)
    assert not manifest.matches(tmp_path, 3, {"dataset": "scenes"}, INPUTS)
    assert not manifest.matches(tmp_path, 3, CONFIG, {"captions.csv": "cd34"})
    assert not manifest.matches(tmp_path, 3, CONFIG, {})
    assert not manifest.matches(tmp_path, 3, CONFIG, INPUTS | {"more.csv": "ab12"})
    (tmp_path / "out.bin").write_bytes(b"1234")
    assert not manifest.matches(tmp_path, 3, CONFIG, INPUTS)


def test_problems_are_absent_outputs_other_sizes_and_other_content(tmp_path) -> None:
    manifest = replace(make_manifest(tmp_path), outputs={"out.bin": 5, "sub/b.bin": 0, "c.bin": 1})
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.bin").write_bytes(b"")
    assert manifest.find_problems(tmp_path) == [("c.bin", "does not exist")]
    (tmp_path / "c.bin").write_bytes(b"1")
    assert manifest.find_problems(tmp_path) == []
    manifest = replace(manifest, checksums=checksums_of(tmp_path, ["out.bin", "c.bin"]))
    assert manifest.find_problems(tmp_path) == []
    (tmp_path / "out.bin").write_bytes(b"123456")
    (tmp_path / "sub" / "b.bin").unlink()
    (tmp_path / "c.bin").write_bytes(b"2")
    assert manifest.find_problems(tmp_path) == [
        ("out.bin", "it has 6 bytes, expected 5"),
        ("sub/b.bin", "does not exist"),
        ("c.bin", "its content does not match its checksum"),
    ]
    assert len(manifest.find_problems(tmp_path, check_content=False)) == 2


def test_load_tells_a_damaged_manifest_from_a_missing_one(tmp_path) -> None:
    with pytest.raises(MissingArtifactError, match=r"manifest\.json does not exist"):
        Manifest.load(tmp_path)
    make_manifest(tmp_path).write(tmp_path)
    assert Manifest.load(tmp_path) == make_manifest(tmp_path)
    path = tmp_path / MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b'"num_images": 2', b'"num_images": 3'))
    with pytest.raises(DamagedFileError, match="does not match its checksum"):
        Manifest.load(tmp_path)
    assert Manifest.read(tmp_path) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outputs", {"a": "x"}),
        ("outputs", {"a": None}),
        ("counts", {"num_images": "x"}),
        ("checksums", {"a": 5}),
        ("inputs", {"a": 5}),
        ("inputs", []),
        ("skipped", [[1, 2]]),
        ("seconds", "x"),
        ("version", None),
        ("stage", ["x"]),
        ("command", 5),
        ("details", {}),
        ("config", [7]),
    ],
)
def test_manifest_with_wrong_types_and_no_checksum_is_damaged(tmp_path, field, value):
    Manifest("prepare", 1, {}, {}, {"a": 1}, details={"source": "x"}).write(tmp_path)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    del values["checksum"]
    path.write_text(json.dumps(values))
    Manifest.load(tmp_path)
    path.write_text(json.dumps(values | {field: value}))
    with pytest.raises(DamagedFileError, match=r"manifest.json is damaged"):
        Manifest.load(tmp_path)
