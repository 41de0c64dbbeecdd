import os
import pickle
import struct
import threading
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest

from showtell.pipeline.images import local
from showtell.pipeline.images import zip as zip_images
from showtell.pipeline.images.image_files import ImageFiles
from showtell.pipeline.images.local import read_image_file
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


def test_member_larger_than_it_says_is_not_inflated(tmp_path):
    path, size = tmp_path / "a.zip", 50_000_000
    write_zip(path, {"a/x.jpg": bytes(size)}, zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", size), struct.pack("<I", 1000)))
    tracemalloc.start()
    with pytest.raises(OSError, match=r"a/x\.jpg is damaged"):
        ImageFiles(tmp_path).read("a/x.jpg")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_member_larger_than_any_image_is_refused_unread(tmp_path, monkeypatch, compression):
    monkeypatch.setattr(local, "MAX_FILE_BYTES", 1000)
    write_zip(tmp_path / "a.zip", {"a/x.jpg": bytes(1001), "a/y.jpg": bytes(1000)}, compression)
    write_file(tmp_path / "b" / "x.jpg", bytes(1001))
    files = ImageFiles(tmp_path)
    assert files.read("a/y.jpg") == bytes(1000)
    monkeypatch.setattr(zip_images, "_decompress", None)
    for name in ("a/x.jpg", "b/x.jpg"):
        with pytest.raises(OSError, match=r"has 1,001 bytes, expected at most 1,000") as error:
            files.read(name)
        assert error.value.errno is None  # the image is at fault, not the disk


def test_every_flipped_bit_of_a_zip_is_found(tmp_path):
    path = tmp_path / "a.zip"
    members = {f"a/{i}.jpg": bytes(range(i, 100)) for i in range(3)}
    write_zip(path, members, zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 13):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            files = ImageFiles(tmp_path)
            found = dict(zip(members, files.fingerprints(list(members)), strict=True))
        except DatasetError as error:
            assert "a.zip is not a readable zip" in str(error)
            continue
        for name, fingerprint in found.items():
            if fingerprint is not None:  # None: its name is damaged
                try:
                    assert files.read(name) == members[name]
                except OSError as error:
                    assert error.errno is None


NFC, NFD = "caf\u00e9.jpg", "cafe\u0301.jpg"


@pytest.mark.parametrize(
    ("actual", "name"),
    [
        ("images/" + NFC, "images/" + NFD),
        ("images/" + NFD, "images/" + NFC),
        ("images/a.JPG", "images/a.jpg"),
        ("images/a.jpg", "images/A.JPG"),
        ("Images/a.jpg", "images/a.jpg"),
        ("images/a.jpg", "images\\a.jpg"),
        ("images/b/a.jpg", "Images\\B\\a.JPG"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_find_similar_ignores_case_slashes_and_normalization(tmp_path, actual, name, zipped):
    write_file(tmp_path / "other" / "a.jpg", b"x")
    if zipped:
        folder = actual.split("/")[0]
        write_zip(tmp_path / f"{folder}.zip", {actual.split("/", 1)[1]: b"right"})
    else:
        write_file(tmp_path / actual, b"right")
    files = ImageFiles(tmp_path)
    (found,) = files.find_similar(name)
    assert files.read(found) == b"right"
    assert files.find_similar("images/none.jpg") == []
    assert files.find_similar("../" + name) == []


def test_find_similar_names_all_files_that_fit(tmp_path):
    for name in ("a.JPG", "a.jpg", "A.jpg", "b.jpg"):
        write_file(tmp_path / name, b"x")
    assert ImageFiles(tmp_path).find_similar("A.JPG") == ["A.jpg", "a.JPG", "a.jpg"]


def test_find_near_names_other_suffixes_and_folders(tmp_path):
    for name in ("a.png", "photos/a.jpg", "photos/aa.jpg", "x/y/a.jpg"):
        write_file(tmp_path / name, b"x")
    assert ImageFiles(tmp_path).find_near("a.jpg") == ["a.png", "photos/a.jpg"]


@pytest.mark.parametrize("name", ["images/" + NFC, "images/图.jpg", "images\\" + NFD])
def test_zip_members_in_utf8_without_the_flag_are_found(tmp_path, name):
    path = tmp_path / "images.zip"
    placeholder = "x" * len(name.encode())
    write_zip(path, {placeholder: b"right"})
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), name.encode()))
    assert ImageFiles(tmp_path).read(name.replace("\\", "/")) == b"right"


def test_zip_members_in_cp437_keep_their_names(tmp_path):
    path = tmp_path / "images.zip"
    write_zip(path, {"caf?.jpg": b"right"})
    path.write_bytes(path.read_bytes().replace(b"caf?", "café".encode("cp437")))
    assert ImageFiles(tmp_path).read("images/café.jpg") == b"right"


def test_names_that_no_file_can_have_are_missing(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    names = ["x" * 300 + "/a.jpg", "a" * 300, "loop/a.jpg", "loop.jpg", "x/" * 2000 + "a"]
    assert ImageFiles(tmp_path).fingerprints(names) == [None] * 5


def test_pipes_devices_and_huge_files_are_never_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(local.MAX_FILE_BYTES + 1)
    monkeypatch.setattr(Path, "open", None)
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero")):
        with pytest.raises(OSError, match="it is not a regular file"):
            read_image_file(path)
    with pytest.raises(OSError, match="has 268,435,457 bytes, expected at most"):
        read_image_file(tmp_path / "sparse.jpg")
