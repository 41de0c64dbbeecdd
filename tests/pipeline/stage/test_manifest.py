import json
from dataclasses import replace
from pathlib import Path

import pytest

from showtell.pipeline.stage.errors import MissingArtifactError
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
    assert set(values) == set(Manifest.__dataclass_fields__)


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
    ],
    ids=range(9),
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


def test_missing_outputs_are_absent_or_changed_in_size(tmp_path) -> None:
    manifest = replace(make_manifest(tmp_path), outputs={"out.bin": 5, "sub/b.bin": 0, "c.bin": 1})
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.bin").write_bytes(b"")
    assert manifest.missing_outputs(tmp_path) == ["c.bin"]
    (tmp_path / "c.bin").write_bytes(b"1")
    assert manifest.missing_outputs(tmp_path) == []
    (tmp_path / "out.bin").write_bytes(b"123456")
    (tmp_path / "sub" / "b.bin").unlink()
    assert manifest.missing_outputs(tmp_path) == ["out.bin", "sub/b.bin"]


def test_require_returns_the_manifest_of_a_finished_stage(tmp_path) -> None:
    manifest = make_manifest(tmp_path).write(tmp_path)
    assert Manifest.require(tmp_path, "showtell prepare") == manifest


def test_require_names_the_missing_manifest_and_the_command(tmp_path) -> None:
    with pytest.raises(MissingArtifactError) as caught:
        Manifest.require(tmp_path, "showtell prepare --dataset scenes")
    assert str(caught.value) == (
        f"{tmp_path / 'manifest.json'} does not exist. "
        "Run 'showtell prepare --dataset scenes' first."
    )


def test_require_names_the_damaged_output_and_the_command(tmp_path) -> None:
    make_manifest(tmp_path).write(tmp_path)
    (tmp_path / "out.bin").write_bytes(b"cut")
    with pytest.raises(MissingArtifactError) as caught:
        Manifest.require(tmp_path, "showtell prepare")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'out.bin'} is missing, or its size is not")
    assert "the 5 bytes recorded in manifest.json" in message and message.endswith(
        "Run 'showtell prepare' again."
    )
    assert "\n" not in message
