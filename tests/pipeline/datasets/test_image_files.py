import pickle
import threading
import zipfile
import zlib

import pytest

from showtell.pipeline.datasets.image_files import ImageFiles
from showtell.pipeline.stage.errors import DatasetError


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_file(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_read_prefers_the_folder_to_the_zip(tmp_path):
    write_zip(tmp_path / "train2014.zip", {"train2014/a.jpg": b"zip", "train2014/b.jpg": b"only"})
    write_file(tmp_path / "train2014" / "a.jpg", b"folder")
    files = ImageFiles(tmp_path)
    assert files.read("train2014/a.jpg") == b"folder"
    assert files.read("train2014/b.jpg") == b"only"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_read_matches_zipfile(tmp_path, compression):
    path = tmp_path / "images.zip"
    members = {f"images/{i}.jpg": bytes([i]) * (1000 * i) + bytes(range(256)) for i in range(20)}
    write_zip(path, {**members, "images/empty.jpg": b""}, compression)
    files = ImageFiles(tmp_path)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert files.read(name) == archive.read(name)


@pytest.mark.parametrize(
    ("archive", "member", "name"),
    [
        ("train2014.zip", "train2014/x.jpg", "train2014/x.jpg"),
        ("train2014.zip", "x.jpg", "train2014/x.jpg"),
        ("Flickr8k_Dataset.zip", "Flicker8k_Dataset/x.jpg", "Flickr8k_Dataset/x.jpg"),
        ("a.zip", "a/b/x.jpg", "a/b/x.jpg"),
        ("a.zip", "b/x.jpg", "a/b/x.jpg"),
        ("a/b.zip", "b/x.jpg", "a/b/x.jpg"),
        ("a/b.zip", "x.jpg", "a/b/x.jpg"),
    ],
)
def test_read_finds_members_with_and_without_top_folder(tmp_path, archive, member, name):
    write_zip(tmp_path / archive, {member: b"right", "__MACOSX/._x.jpg": b"wrong"})
    files = ImageFiles(tmp_path)
    assert files.read(name) == b"right"
    assert files.fingerprints([name]) == [f"5:{zlib.crc32(b'right'):08x}"]


def test_read_of_a_missing_image_raises_file_not_found(tmp_path):
    write_zip(tmp_path / "a.zip", {"a/x.jpg": b"x"})
    for name in ("a/y.jpg", "b/x.jpg", "x.jpg"):
        with pytest.raises(FileNotFoundError, match="was not found"):
            ImageFiles(tmp_path).read(name)


def test_read_of_a_damaged_member_raises_os_error(tmp_path):
    path = tmp_path / "a.zip"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write_zip(path, {"a/x.jpg": b"pixels" * 50}, compression)
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo("a/x.jpg").header_offset + 30 + len("a/x.jpg")
        content[start : start + 8] = b"\xff" * 8
        path.write_bytes(content)
        with pytest.raises(OSError, match=r"a/x\.jpg is damaged"):
            ImageFiles(tmp_path).read("a/x.jpg")


def test_read_refuses_unsupported_compression(tmp_path):
    write_zip(tmp_path / "a.zip", {"a/x.jpg": b"pixels" * 50}, zipfile.ZIP_BZIP2)
    with pytest.raises(OSError, match="its compression is not deflate"):
        ImageFiles(tmp_path).read("a/x.jpg")


def test_truncated_zip_is_named_in_the_error(tmp_path):
    path = tmp_path / "train2014.zip"
    write_zip(path, {"train2014/x.jpg": b"x" * 1000})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DatasetError, match=r"train2014\.zip is not a readable zip archive"):
        ImageFiles(tmp_path).fingerprints(["train2014/x.jpg"])


def test_fingerprints_change_with_the_file_and_are_none_without_it(tmp_path):
    write_file(tmp_path / "a" / "x.jpg", b"1")
    (tmp_path / "a" / "folder.jpg").mkdir()
    write_zip(tmp_path / "b.zip", {"b/y.jpg": b"22"})
    names = ["b/y.jpg", "a/x.jpg", "a/none.jpg", "a/folder.jpg", "c/x.jpg", "x.jpg"]
    before = ImageFiles(tmp_path).fingerprints(names)
    status = (tmp_path / "a" / "x.jpg").stat()
    crc = zlib.crc32(b"22")
    assert before == [f"2:{crc:08x}", f"1:{status.st_mtime_ns}", None, None, None, None]
    write_file(tmp_path / "a" / "x.jpg", b"333")
    after = ImageFiles(tmp_path).fingerprints(names)
    assert after[1] != before[1]
    assert after[0] == before[0]


def test_image_files_can_be_pickled(tmp_path):
    write_zip(tmp_path / "a.zip", {"a/x.jpg": b"x"})
    files = ImageFiles(tmp_path)
    files.read("a/x.jpg")
    assert pickle.loads(pickle.dumps(files)).read("a/x.jpg") == b"x"


def test_threads_read_one_zip_without_mixing_members(tmp_path):
    members = {f"a/{i}.jpg": bytes([i]) * 5000 for i in range(50)}
    write_zip(tmp_path / "a.zip", members)
    files, wrong = ImageFiles(tmp_path), []

    def read_all():
        wrong.extend(name for name in members if files.read(name) != members[name])

    threads = [threading.Thread(target=read_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
