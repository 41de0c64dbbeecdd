import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from showtell.pipeline.stage.errors import MissingArtifactError, ShowTellError, StorageError
from showtell.pipeline.stage.files import (
    atomic_path,
    file_size,
    hash_file,
    hash_json,
    is_locked,
    locked,
    require_file,
    write_json,
)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_file_size_is_none_without_a_file(tmp_path) -> None:
    (tmp_path / "three").write_bytes(b"abc")
    assert file_size(tmp_path / "three") == 3
    assert file_size(tmp_path / "none") is None
    assert file_size(tmp_path / "three" / "below") is None


@pytest.mark.parametrize("is_folder", [False, True])
def test_require_file_names_the_path_and_the_option(tmp_path, is_folder: bool) -> None:
    path = tmp_path / "table.csv"
    problem = "is a folder, not a file" if is_folder else "does not exist"
    if is_folder:
        path.mkdir()
    with pytest.raises(MissingArtifactError) as caught:
        require_file(path, "--table", "a CSV table")
    assert str(caught.value) == f"{path} {problem}. Give --table the path of a CSV table."


def test_require_file_returns_the_path_of_a_file(tmp_path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("")
    assert require_file(path, "--table", "a CSV table") == path


def test_hash_file_is_the_sha256_of_the_content(tmp_path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    # The known hash of empty content (FIPS 180-4).
    (tmp_path / "empty").write_bytes(b"")
    assert hash_file(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_hash_json_ignores_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": (1, 2), "a": 1})
    assert hash_json({"a": [1, 2]}) != hash_json({"a": [2, 1]})
    assert hash_json({"a": 1}) != hash_json({"a": "1"})
    assert hash_json(["ab"]) != hash_json(["a", "b"])
    assert hash_json(None) == hashlib.sha256(b"null").hexdigest()


def test_atomic_path_replaces_the_file_on_success(tmp_path) -> None:
    path = tmp_path / "new" / "folder" / "table.parquet"
    with atomic_path(path) as partial:
        # Writers choose the format by the suffix, and a rename must stay on one disk.
        assert partial.suffix == ".parquet" and partial.parent == path.parent
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with atomic_path(path) as partial:
        partial.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert names_in(path.parent) == ["table.parquet"]


def test_atomic_path_keeps_the_old_file_on_failure(tmp_path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as partial:
        partial.write_text("half of the ne")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file.json"]


def test_atomic_path_fails_if_nothing_was_written(tmp_path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old"


def test_write_json_keeps_the_old_file_on_failure(tmp_path) -> None:
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
    """Start a process that holds the lock of `directory` until its stdin is closed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_locked_fails_while_another_process_holds_the_lock(tmp_path) -> None:
    directory = tmp_path / "runs" / "r"
    with start_holder(directory) as holder:
        before = time.monotonic()
        with pytest.raises(ShowTellError, match="written by another showtell process") as caught:
            locked(directory).__enter__()
        assert str(directory) in str(caught.value)
        assert time.monotonic() - before < 5  # it did not wait
        with locked(tmp_path / "runs" / "other"):
            pass
        holder.communicate()
    with locked(directory):
        pass


def test_lock_of_a_killed_process_is_free(tmp_path) -> None:
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


def test_lock_of_this_process_excludes_others(tmp_path) -> None:
    with locked(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", HOLD, tmp_path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert "ShowTellError" in done.stderr and "held" not in done.stdout


def test_locked_deletes_temporary_files_of_killed_processes(tmp_path) -> None:
    for name in (".table.4711.partial.parquet", "table.parquet", ".hidden", "a.partial"):
        (tmp_path / name).write_text("x")
    with start_holder(tmp_path) as holder:
        (tmp_path / ".table.4712.partial.parquet").write_text("being written")
        # A process without the lock deletes nothing: the other one is still writing.
        with pytest.raises(ShowTellError), locked(tmp_path):
            pass
        assert ".table.4712.partial.parquet" in names_in(tmp_path)
        holder.communicate()
    with locked(tmp_path):
        assert set(names_in(tmp_path)) - {".lock"} == {"table.parquet", ".hidden", "a.partial"}


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def no_locks(request, monkeypatch) -> None:
    """A file system that refuses locks."""

    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_lock_is_a_file_where_the_file_system_has_no_locks(tmp_path, no_locks) -> None:
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(ShowTellError, match=r"written by another .* delete .*\.lock-"):
            locked(tmp_path).__enter__()
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("has_locks", [True, False])
def test_lock_can_wait_for_its_owner(tmp_path, monkeypatch, has_locks: bool) -> None:
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", refuse)
    events = []

    def wait() -> None:
        with locked(tmp_path, wait=True):
            events.append("waited")

    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path):
            waiting = pool.submit(wait)
            time.sleep(0.2)
            events.append("released")
        waiting.result(timeout=10)
    assert events == ["released", "waited"]


HOLD_FILE = f"""
import fcntl
def refuse(*_):
    raise OSError({errno.ENOLCK}, "No locks available")
fcntl.flock = refuse
{HOLD}"""


def test_lock_file_of_a_killed_process_is_free(tmp_path, no_locks) -> None:
    command = [sys.executable, "-c", HOLD_FILE, tmp_path]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ShowTellError, match="another showtell process"):
            locked(tmp_path).__enter__()
        assert is_locked(tmp_path)
        holder.kill()
        holder.wait()
    names = names_in(tmp_path)
    assert not is_locked(tmp_path) and names_in(tmp_path) == names  # it writes nothing
    with locked(tmp_path):
        pass


def test_is_locked_opens_nothing_for_writing(tmp_path, monkeypatch) -> None:
    with locked(tmp_path):
        pass
    real_open = os.open

    def open_to_read(path: Path, flags: int, *mode: int) -> int:
        assert flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0
        return real_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", open_to_read)
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "nowhere")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_folder_that_cannot_be_written_is_an_error_with_its_path(
    tmp_path, monkeypatch, code: int
) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=f"{tmp_path} could not be written: .*same command"):
        locked(tmp_path).__enter__()


def test_json_of_a_name_that_is_not_utf8_can_be_written_and_read(tmp_path) -> None:
    value = {"caf\udce9.jpg": "ä"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_bytes()) == value
