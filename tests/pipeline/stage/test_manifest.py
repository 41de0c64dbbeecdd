import hashlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from showtell.pipeline.stage import stopwatch as stopwatch_module
from showtell.pipeline.stage.errors import MissingArtifactError, ShowTellError
from showtell.pipeline.stage.files import (
    atomic_path,
    file_size,
    hash_file,
    hash_json,
    is_locked,
    locked,
    write_json,
)
from showtell.pipeline.stage.manifest import MANIFEST_NAME, Manifest
from showtell.pipeline.stage.stopwatch import Stopwatch

CONFIG = {"dataset": "scenes", "min_count": None, "share": 0.5, "sizes": (1, 2)}
INPUTS = {"captions.csv": "ab12"}


def make_manifest(directory: Path) -> Manifest:
    """A manifest of one output, which is there, as a stage would leave it."""
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


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_manifest_round_trip_changes_nothing(tmp_path) -> None:
    manifest = make_manifest(tmp_path)
    assert manifest.write(tmp_path) is manifest
    assert Manifest.read(tmp_path) == manifest


def test_manifest_on_disk_is_json_with_its_fields(tmp_path) -> None:
    make_manifest(tmp_path).write(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    assert values["stage"] == "prepare" and values["version"] == 3
    assert values["skipped"] == [["ä.jpg", "the file is empty"], ["b.jpg", "truncated"]]
    assert set(values) == set(Manifest.__dataclass_fields__)


def test_read_of_nothing_is_none(tmp_path) -> None:
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
def test_manifest_that_cannot_be_understood_is_none(tmp_path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    assert Manifest.read(tmp_path) is None


def test_matches_what_it_was_made_of(tmp_path) -> None:
    manifest = make_manifest(tmp_path).write(tmp_path)
    read = Manifest.read(tmp_path)
    # The config as the stage has it now, with a tuple where JSON has a list.
    assert manifest.matches(tmp_path, 3, CONFIG, INPUTS)
    assert read is not None and read.matches(tmp_path, 3, CONFIG, INPUTS)


def test_details_counts_and_time_do_not_matter_for_a_match(tmp_path) -> None:
    other = replace(make_manifest(tmp_path), details={}, counts={}, skipped=(), seconds=9.0)
    assert other.matches(tmp_path, 3, CONFIG, INPUTS)


def test_any_difference_is_no_match(tmp_path) -> None:
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


def test_outputs_that_are_gone_or_changed_in_size_are_missing(tmp_path) -> None:
    manifest = replace(make_manifest(tmp_path), outputs={"out.bin": 5, "sub/b.bin": 0, "c.bin": 1})
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.bin").write_bytes(b"")
    assert manifest.missing_outputs(tmp_path) == ["c.bin"]
    (tmp_path / "c.bin").write_bytes(b"1")
    assert manifest.missing_outputs(tmp_path) == []
    (tmp_path / "out.bin").write_bytes(b"123456")
    (tmp_path / "sub" / "b.bin").unlink()
    assert manifest.missing_outputs(tmp_path) == ["out.bin", "sub/b.bin"]


def test_require_gives_the_manifest_of_a_finished_stage(tmp_path) -> None:
    manifest = make_manifest(tmp_path).write(tmp_path)
    assert Manifest.require(tmp_path, "showtell prepare") == manifest


def test_require_names_the_missing_manifest_and_the_command(tmp_path) -> None:
    with pytest.raises(MissingArtifactError) as caught:
        Manifest.require(tmp_path, "showtell prepare --dataset scenes")
    assert str(caught.value) == (
        f"{tmp_path / 'manifest.json'} does not exist. "
        "Run 'showtell prepare --dataset scenes' first."
    )


def test_require_names_the_output_its_size_and_the_command(tmp_path) -> None:
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


def test_file_size_is_none_where_there_is_no_file(tmp_path) -> None:
    (tmp_path / "three").write_bytes(b"abc")
    assert file_size(tmp_path / "three") == 3
    assert file_size(tmp_path / "none") is None
    assert file_size(tmp_path / "three" / "below") is None


def test_hash_file_is_the_sha256_of_the_content(tmp_path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    # The known digest of nothing (FIPS 180-4).
    (tmp_path / "empty").write_bytes(b"")
    assert hash_file(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_hash_json_depends_on_the_values_and_not_on_their_order() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": (1, 2), "a": 1})
    assert hash_json({"a": [1, 2]}) != hash_json({"a": [2, 1]})
    assert hash_json({"a": 1}) != hash_json({"a": "1"})
    assert hash_json(["ab"]) != hash_json(["a", "b"])
    assert hash_json(None) == hashlib.sha256(b"null").hexdigest()


def test_atomic_path_replaces_the_file_at_the_end(tmp_path) -> None:
    path = tmp_path / "new" / "folder" / "table.parquet"
    with atomic_path(path) as partial:
        # Writers choose their format by the suffix, and a rename must stay on one disk.
        assert partial.suffix == ".parquet" and partial.parent == path.parent
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with atomic_path(path) as partial:
        partial.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert names_in(path.parent) == ["table.parquet"]


def test_atomic_path_that_fails_leaves_the_old_file_alone(tmp_path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as partial:
        partial.write_text("half of the ne")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file.json"]


def test_atomic_path_that_was_never_written_fails_and_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old"


def test_write_json_that_fails_leaves_the_old_file_alone(tmp_path) -> None:
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"not JSON": object()})
    text = (tmp_path / "a.json").read_text("utf-8")
    assert json.loads(text) == {"ä": [1, None]}
    assert "ä" in text and text.endswith("}\n")
    assert names_in(tmp_path) == ["a.json"]


HOLD = """
import sys
from pathlib import Path
from showtell.pipeline.stage.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(directory: Path) -> subprocess.Popen[str]:
    """Another process that holds `directory` until its stdin is closed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_locked_refuses_while_another_process_writes(tmp_path) -> None:
    directory = tmp_path / "runs" / "r"
    with start_holder(directory) as holder:
        before = time.monotonic()
        with pytest.raises(ShowTellError, match="written by another showtell process") as caught:
            locked(directory).__enter__()
        assert str(directory) in str(caught.value)
        assert time.monotonic() - before < 5  # refused, not waited for
        with locked(tmp_path / "runs" / "other"):
            pass
        holder.communicate()
    with locked(directory):
        pass


def test_lock_of_a_killed_process_holds_nobody_up(tmp_path) -> None:
    with start_holder(tmp_path) as holder:
        holder.kill()
        holder.wait()
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_lock_is_released_after_an_error(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with start_holder(tmp_path) as holder:
        holder.communicate()
    assert holder.returncode == 0


def test_another_process_is_refused_while_this_one_writes(tmp_path) -> None:
    with locked(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", HOLD, tmp_path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert "ShowTellError" in done.stderr and "held" not in done.stdout


def test_lock_sweeps_away_what_a_killed_run_left_half_written(tmp_path) -> None:
    for name in (".table.4711.partial.parquet", "table.parquet", ".hidden", "a.partial"):
        (tmp_path / name).write_text("x")
    with start_holder(tmp_path) as holder:
        (tmp_path / ".table.4712.partial.parquet").write_text("being written")
        # Whoever is refused sweeps nothing: the other one is still writing.
        with pytest.raises(ShowTellError), locked(tmp_path):
            pass
        assert ".table.4712.partial.parquet" in names_in(tmp_path)
        holder.communicate()
    with locked(tmp_path):
        assert set(names_in(tmp_path)) - {".lock"} == {"table.parquet", ".hidden", "a.partial"}


class Clock:
    """Stands in for `time`: it moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_stopwatch_adds_up_its_parts(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stopwatch_module, "time", clock)
    watch = Stopwatch()
    for _ in range(2):
        with watch.part("read"):
            clock.now += 1.0
    with watch.part("compute"):
        clock.now += 5.0
    clock.now += 3.0
    assert watch.parts == {"read": 2.0, "compute": 5.0}
    assert watch.seconds == 10.0
    assert watch.shares() == {"read": 0.2, "compute": 0.5}


def test_stopwatch_counts_a_part_that_failed(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stopwatch_module, "time", clock)
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError), watch.part("read"):
        clock.now += 2.0
        raise ZeroDivisionError
    assert watch.parts == {"read": 2.0}


def test_stopwatch_that_has_just_started_has_shares(monkeypatch) -> None:
    monkeypatch.setattr(stopwatch_module, "time", Clock())
    watch = Stopwatch()
    with watch.part("read"):
        pass
    assert watch.shares() == {"read": 0.0}
