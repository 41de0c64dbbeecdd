"""Tests of the stage; `archives/test_fetch.py` covers faults of the network and the server."""

import errno
import hashlib
import io
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from showtell.pipeline import download as download_module
from showtell.pipeline.archives import fetch as fetch_module
from showtell.pipeline.archives.fetch import Archive
from showtell.pipeline.config import DownloadConfig
from showtell.pipeline.datasets.scenes import draw_scenes
from showtell.pipeline.download import ARCHIVES, ON_REQUEST, download, find_archives, unpack_members
from showtell.pipeline.stage.errors import DownloadError, ShowTellError, StorageError
from showtell.pipeline.stage.files import locked
from showtell.pipeline.stage.manifest import Manifest
from showtell.pipeline.status import stage_status


def flip(content: bytes, bit: int) -> bytes:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def make_zip(members: dict[str, str], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as zipped:
        for name, text in members.items():
            zipped.writestr(name, text)
    return buffer.getvalue()


MEMBER = "annotations/captions_train.json"
TRAIN = make_zip({"train/1.jpg": "abcdefgh"})
OTHER = make_zip({"train/1.jpg": "ABCDEFGH"})  # of the same size
NOTES = make_zip({MEMBER: '{"captions": []}', "other": "x"})


def small_scenes(raw: Path) -> int:
    return draw_scenes(raw, num_train=1, num_val=1, num_test=0)


def make_archive(path: str, content: bytes, *members: str) -> Archive:
    return Archive(path, len(content), hashlib.md5(content).hexdigest(), members)


@contextmanager
def serving(files: dict[str, bytes], requested: list[str]) -> Iterator[str]:
    """Serve files by their path, and record the requested paths; any other path gives 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


class Setting:
    """A dataset of small archives in a temporary data folder, with train.zip by default."""

    def __init__(self, data: Path, patch: pytest.MonkeyPatch) -> None:
        self.data, self.patch = data, patch
        self.raw = data / "coco2014" / "raw"
        self.target = self.raw / "train.zip"
        self.use(make_archive("zips/train.zip", TRAIN))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)

    def use(self, *archives: Archive) -> None:
        self.patch.setitem(ARCHIVES, "coco2014", archives)

    def run(self, **files: bytes) -> tuple[Manifest, list[str]]:
        """Run the stage with a server that has `zips/NAME.zip` for each keyword NAME.

        Returns:
            The manifest and the requested paths.
        """
        requested: list[str] = []
        paths = {f"/zips/{name}.zip": content for name, content in files.items()}
        with serving(paths, requested) as url:
            self.patch.setenv("SHOWTELL_COCO_URL", url)
            config = DownloadConfig(data=self.data, dataset="coco2014")
            return download(config, sleep=lambda seconds: None), requested


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(tmp_path, monkeypatch)


def test_download_fetches_and_records_the_archives(setting: Setting) -> None:
    manifest, requested = setting.run(train=TRAIN)
    assert setting.target.read_bytes() == TRAIN
    assert requested == ["/zips/train.zip"]
    assert manifest == Manifest.read(setting.raw)
    assert manifest.stage == "download"
    assert manifest.inputs == {"zips/train.zip": f"md5:{hashlib.md5(TRAIN).hexdigest()}"}
    assert manifest.outputs == {"train.zip": len(TRAIN)}
    assert manifest.counts == {"num_archives": 1, "num_bytes": len(TRAIN)}


def test_download_does_nothing_when_up_to_date(setting: Setting) -> None:
    first, _ = setting.run(train=TRAIN)
    assert setting.run() == (first, [])


def test_download_resumes_a_partial_archive(setting: Setting) -> None:
    setting.raw.mkdir(parents=True)
    (setting.raw / "train.zip.partial").write_bytes(TRAIN[:50])
    setting.run(train=TRAIN)
    assert setting.target.read_bytes() == TRAIN
    assert not list(setting.raw.glob("*.partial*"))


def test_download_unpacks_the_listed_members(setting: Setting) -> None:
    setting.use(
        make_archive("zips/notes.zip", NOTES, MEMBER), make_archive("zips/train.zip", TRAIN)
    )
    manifest, _ = setting.run(notes=NOTES, train=TRAIN)
    assert (setting.raw / MEMBER).read_text() == '{"captions": []}'
    assert not (setting.raw / "other").exists()
    assert set(manifest.outputs) == {"notes.zip", MEMBER, "train.zip"}
    (setting.raw / MEMBER).unlink()
    _, requested = setting.run()
    assert (setting.raw / MEMBER).exists()
    assert requested == []


def test_download_restores_damaged_annotations(setting: Setting) -> None:
    setting.use(make_archive("zips/notes.zip", NOTES, MEMBER))
    setting.run(notes=NOTES)
    path = setting.raw / MEMBER
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), 31):
        path.write_bytes(flip(good, bit))
        assert stage_status("download", setting.raw).state == f"damaged: {MEMBER}"
        assert setting.run()[1] == []
        assert path.read_bytes() == good


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_download_of_a_damaged_archive_names_the_command_that_repairs_it(
    setting: Setting, compression: int
) -> None:
    content = make_zip({MEMBER: '{"captions": []}' * 9, "x": "y"}, compression)
    archive = make_archive("zips/notes.zip", content, MEMBER)
    setting.use(archive)
    setting.run(notes=content)
    target, member = setting.raw / "notes.zip", setting.raw / MEMBER
    good = member.read_bytes()
    command = f"rm -f {target} && showtell download --dataset coco2014 --data {setting.data}"
    for bit in range(0, 8 * len(content), 23):
        target.write_bytes(flip(content, bit))
        member.unlink(missing_ok=True)
        try:
            unpack_members(archive, target)
        except DownloadError as error:
            assert f"Run '{command}'." in str(error)
        else:
            assert member.read_bytes() == good
    target.unlink()
    _, requested = setting.run(notes=content)
    assert (requested, target.read_bytes()) == (["/zips/notes.zip"], content)
    assert member.read_bytes() == good


def test_download_reports_a_missing_member(setting: Setting) -> None:
    setting.use(make_archive("zips/train.zip", TRAIN, "captions.json"))
    with pytest.raises(DownloadError, match=r"cannot unpack captions\.json"):
        setting.run(train=TRAIN)
    assert Manifest.read(setting.raw) is None


def test_download_keeps_complete_archives_when_a_later_one_fails(setting: Setting) -> None:
    setting.use(make_archive("zips/train.zip", TRAIN), make_archive("zips/val.zip", OTHER))
    with pytest.raises(DownloadError, match="404"):
        setting.run(train=TRAIN)
    assert setting.target.read_bytes() == TRAIN
    assert Manifest.read(setting.raw) is None
    _, requested = setting.run(val=OTHER)
    assert requested == ["/zips/val.zip"]


def test_download_accepts_an_archive_copied_by_hand(setting: Setting) -> None:
    setting.raw.mkdir(parents=True)
    setting.target.write_bytes(TRAIN)
    _, requested = setting.run()
    assert requested == []


@pytest.mark.parametrize("content", [TRAIN[:50], OTHER], ids=["cut", "other"])
def test_download_refuses_but_keeps_a_wrong_file(setting: Setting, content: bytes) -> None:
    setting.raw.mkdir(parents=True)
    setting.target.write_bytes(content)
    with pytest.raises(DownloadError, match=r"rename it to train\.zip\.partial"):
        setting.run(train=TRAIN)
    assert setting.target.read_bytes() == content


def test_download_verifies_an_archive_only_once(setting: Setting) -> None:
    setting.run(train=TRAIN)
    hashed: list[str] = []
    digest = hashlib.file_digest
    setting.patch.setattr(
        hashlib, "file_digest", lambda *a: (hashed.append(a[0].name), digest(*a))[1]
    )
    (setting.raw / "manifest.json").unlink()
    setting.run()
    assert hashed == []
    os.utime(setting.target, ns=(1, 1))
    (setting.raw / "manifest.json").unlink()
    setting.run()
    assert hashed == [str(setting.target)]


def test_download_fails_at_once_without_disk_space(setting: Setting) -> None:
    usage = download_module.shutil._ntuple_diskusage(100, 90, 10)
    setting.patch.setattr(download_module.shutil, "disk_usage", lambda path: usage)
    setting.patch.setattr(download_module, "fetch", None)
    message = r"B remain to be downloaded, 10 B are free.*Free some disk space"
    with pytest.raises(StorageError, match=message):
        setting.run(train=TRAIN)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_download_reports_a_full_disk_in_one_line(setting: Setting) -> None:
    setting.patch.setattr(fetch_module.PartialDownload, "discard", lambda self: None)
    setting.raw.mkdir(parents=True)
    (setting.raw / "train.zip.partial").symlink_to("/dev/full")
    message = r"No space left on device.*Free some disk space"
    with pytest.raises(StorageError, match=message) as caught:
        setting.run(train=TRAIN)
    assert "\n" not in str(caught.value)
    assert not setting.target.exists()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("name", ["open", "replace"])
def test_download_reports_what_the_system_refuses_in_one_line(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    real = getattr(Path, name)

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self.name.endswith(".zip.partial"):
            raise OSError(code, os.strerror(code), str(self))
        return real(self, *args, **options)

    message = rf"train\.zip\.partial could not be written: {os.strerror(code)}\."
    with monkeypatch.context() as patch, pytest.raises(StorageError, match=message) as caught:
        patch.setattr(Path, name, refuse)
        setting.run(train=TRAIN)
    assert "\n" not in str(caught.value)
    setting.run(train=TRAIN)
    assert setting.target.read_bytes() == TRAIN


def test_download_fails_while_another_process_writes(setting: Setting) -> None:
    with locked(setting.raw), pytest.raises(ShowTellError, match="another showtell process"):
        setting.run(train=TRAIN)


@pytest.mark.parametrize("dataset", sorted(ON_REQUEST))
def test_download_of_flickr_names_the_request_form(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(DownloadError) as caught:
        download(DownloadConfig(data=tmp_path, dataset=dataset))
    assert ON_REQUEST[dataset] in str(caught.value)
    assert f"showtell prepare --dataset {dataset} --source DIR" in str(caught.value)
    assert not (tmp_path / dataset).exists()


def test_download_of_an_unknown_dataset_lists_the_known_ones() -> None:
    with pytest.raises(
        DownloadError, match=r"'coco2015' cannot be downloaded, only coco2014, coco2017 and scenes"
    ):
        find_archives("coco2015")


def test_archives_contain_the_captions_of_both_splits() -> None:
    for year in ("2014", "2017"):
        archives = ARCHIVES[f"coco{year}"]
        members = [member for archive in archives for member in archive.members]
        assert members == [f"annotations/captions_{split}{year}.json" for split in ("train", "val")]
        names = {archive.name for archive in archives}
        assert {f"train{year}.zip", f"val{year}.zip"} < names
        assert all(re.fullmatch("[0-9a-f]{32}", archive.md5) for archive in archives)


def test_download_draws_scenes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_two(directory: Path) -> int:
        (directory / "images").mkdir(parents=True)
        for number in (1, 2):
            (directory / "images" / f"00000{number}.jpg").write_bytes(b"picture")
        (directory / "captions.csv").write_text("file_name,caption,split\n")
        return 2

    monkeypatch.setattr(download_module, "draw_scenes", draw_two)
    config = DownloadConfig(data=tmp_path, dataset="scenes")
    manifest = download(config)
    assert manifest.counts == {"num_images": 2}
    assert set(manifest.outputs) == {"captions.csv", "images/000001.jpg", "images/000002.jpg"}
    monkeypatch.setattr(download_module, "draw_scenes", None)
    assert download(config) == manifest


def test_download_draws_damaged_scenes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "draw_scenes", small_scenes)
    config = DownloadConfig(data=tmp_path, dataset="scenes")
    manifest = download(config)
    raw = tmp_path / "scenes" / "raw"
    good = {name: (raw / name).read_bytes() for name in manifest.outputs}
    for name in ("captions.csv", "images/000002.jpg"):
        for bit in (5, 4 * len(good[name])):
            (raw / name).write_bytes(flip(good[name], bit))
            assert stage_status("download", raw).state == f"damaged: {name}"
            download(config)
            assert {name: (raw / name).read_bytes() for name in good} == good
    (raw / "manifest.json").write_bytes(b"{")
    assert stage_status("download", raw).state == "damaged: manifest.json"
    assert download(config).checksums == manifest.checksums


def test_download_that_is_up_to_date_writes_nothing(setting: Setting) -> None:
    first, _ = setting.run(train=TRAIN)
    (setting.raw / ".lock").unlink()
    assert setting.run() == (first, [])
    assert not (setting.raw / ".lock").exists()


def test_half_drawn_image_of_a_killed_process_is_no_image(tmp_path, monkeypatch) -> None:
    few = partial(download_module.draw_scenes, num_train=2, num_val=1, num_test=1)
    monkeypatch.setattr(download_module, "draw_scenes", few)
    images = tmp_path / "scenes/raw/images"
    images.mkdir(parents=True)
    (images / ".000001.123.partial.jpg").write_bytes(b"half")
    manifest = download(DownloadConfig(data=tmp_path, dataset="scenes"))
    assert len(manifest.outputs) == 5
    assert [path.name for path in sorted(images.iterdir())] == [f"{i:06}.jpg" for i in range(1, 5)]
