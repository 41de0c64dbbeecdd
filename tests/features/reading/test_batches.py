import multiprocessing
import os
import signal
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from showtell.features.reading import batches as images
from showtell.features.reading import decode as pictures
from showtell.features.reading.batches import LOOK_AHEAD, read_batches
from showtell.features.reading.decode import open_picture
from showtell.features.reading.transform import Transform
from showtell.pipeline.datasets.image_files import ImageFiles
from showtell.pipeline.stage.errors import ShowTellError

WHOLE = Transform(8, None, "bilinear", (0.5,) * 3, (0.5,) * 3)  # squashes to 8×8


def write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:03}.png" for index in range(count)]
    for index, name in enumerate(names):
        Image.new("RGB", (9, 9), (index, 255 - index, 7)).save(folder / name)
    return names


def read_all(root: Path, names: list[str], **options) -> list[images.ImageBatch]:
    settings = {"batch_size": 4, "num_workers": 2} | options
    ids = np.arange(100, 100 + len(names))
    batches = read_batches(ImageFiles(root), ids, names, WHOLE, **settings)
    # The pixels are overwritten when the next batch is read.
    return [replace(batch, pixels=batch.pixels.clone()) for batch in batches]


@pytest.mark.parametrize("num_workers", [1, 3, None])
def test_batches_equal_a_plain_loop(tmp_path, num_workers):
    names = write_images(tmp_path, 11)
    batches = read_all(tmp_path, names, num_workers=num_workers)
    assert [len(batch.image_ids) for batch in batches] == [4, 4, 3]
    assert np.concatenate([batch.image_ids for batch in batches]).tolist() == [*range(100, 111)]
    pixels = np.concatenate([batch.pixels.numpy() for batch in batches])
    expected = [WHOLE(open_picture((tmp_path / name).read_bytes(), WHOLE)) for name in names]
    np.testing.assert_array_equal(pixels, np.stack(expected))


def test_batches_lie_in_channels_last_memory(tmp_path):
    import torch

    pixels = read_all(tmp_path, write_images(tmp_path, 4))[0].pixels
    assert pixels.shape == (4, 3, 8, 8)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_unreadable_pictures_are_skipped_and_their_neighbours_stay(tmp_path):
    names = write_images(tmp_path, 9)
    whole = read_all(tmp_path, names)
    (tmp_path / names[1]).write_bytes(b"")
    (tmp_path / names[2]).unlink()
    (tmp_path / names[5]).write_bytes((tmp_path / names[6]).read_bytes()[:45])
    batches = read_all(tmp_path, names)
    assert [batch.image_ids.tolist() for batch in batches] == [[100, 103], [104, 106, 107], [108]]
    assert batches[0].skipped == ((101, "the file is empty"), (102, "does not exist"))
    assert [image_id for image_id, _ in batches[1].skipped] == [105]
    np.testing.assert_array_equal(batches[0].pixels, whole[0].pixels[[0, 3]])
    np.testing.assert_array_equal(batches[1].pixels, whole[1].pixels[[0, 2, 3]])


def test_batch_without_a_readable_picture_is_empty(tmp_path):
    batch = read_all(tmp_path, ["a.jpg", "b.jpg"])[0]
    assert batch.pixels.shape == (0, 3, 8, 8)
    assert batch.image_ids.shape == (0,)
    assert len(batch.skipped) == 2


def test_reading_nothing_gives_no_batch(tmp_path):
    assert read_all(tmp_path, []) == []


def test_damaged_zip_member_is_skipped(tmp_path):
    names = write_images(tmp_path / "pictures", 3)
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / "pictures" / name, name)
        offset = archive.getinfo(names[1]).header_offset + 30 + len(names[1]) + 40
    content = bytearray((tmp_path / "zipped.zip").read_bytes())
    content[offset] ^= 0xFF
    (tmp_path / "zipped.zip").write_bytes(content)
    batch = read_all(tmp_path, [f"zipped/{name}" for name in names])[0]
    assert batch.image_ids.tolist() == [100, 102]
    assert "damaged" in batch.skipped[0][1]
    assert not batch.skipped[0][1].startswith(pictures.UNREAD)


def test_failing_disk_is_told_apart_from_a_broken_picture(tmp_path, monkeypatch):
    names = write_images(tmp_path, 2)

    def fail(self, file_name: str) -> bytes:
        raise PermissionError(13, "Permission denied", file_name)

    monkeypatch.setattr(ImageFiles, "read", fail)
    batch = read_all(tmp_path, names)[0]
    assert batch.skipped[0] == (100, f"{pictures.UNREAD}: Permission denied")


def test_exception_of_a_thread_reaches_the_reader_and_ends_the_threads(tmp_path, monkeypatch):
    names = write_images(tmp_path, 40)

    def fail(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(pictures, "open_picture", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        read_all(tmp_path, names)
    assert count_decoders() == 0


def count_decoders() -> int:
    return sum(thread.name.startswith("decode") for thread in threading.enumerate())


def test_look_ahead_is_bounded(tmp_path, monkeypatch):
    names = write_images(tmp_path, 60)
    read: list[str] = []
    plain = ImageFiles.read
    monkeypatch.setattr(
        ImageFiles, "read", lambda self, name: (read.append(name), plain(self, name))[1]
    )
    ids = np.arange(60)
    batches = read_batches(ImageFiles(tmp_path), ids, names, WHOLE, 4, 2)
    for number, _ in enumerate(batches, start=1):
        assert len(read) <= (number + LOOK_AHEAD) * 4
    assert sorted(read) == names


def test_reader_closed_early_leaves_no_thread(tmp_path):
    names = write_images(tmp_path, 60)
    batches = read_batches(ImageFiles(tmp_path), np.arange(60), names, WHOLE, 4, 2)
    next(batches)
    assert count_decoders() > 0
    batches.close()
    assert count_decoders() == 0


def test_processes_give_what_threads_give(tmp_path):
    names = write_images(tmp_path, 22)
    (tmp_path / names[5]).write_bytes(b"broken")
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        for name in names[:6]:
            archive.write(tmp_path / name, name)
    names += [f"zipped/{name}" for name in names[:6]]
    by_threads, by_processes = (
        read_all(tmp_path, names, batch_size=9, for_gpu=for_gpu) for for_gpu in (False, True)
    )
    assert len(by_threads) == len(by_processes) == 4
    for one, other in zip(by_threads, by_processes, strict=True):
        assert one.pixels.equal(other.pixels)
        assert one.image_ids.tolist() == other.image_ids.tolist()
        assert one.skipped == other.skipped
    assert not multiprocessing.active_children()


def test_process_that_is_killed_ends_the_stage_with_what_to_do(tmp_path):
    names = write_images(tmp_path, 200)
    batches = read_batches(ImageFiles(tmp_path), np.arange(200), names, WHOLE, 4, 1, for_gpu=True)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ShowTellError, match=r"was killed.*smaller --num-workers"):
        for _ in batches:
            pass


def test_reader_closed_early_leaves_no_process(tmp_path):
    names = write_images(tmp_path, 60)
    batches = read_batches(ImageFiles(tmp_path), np.arange(60), names, WHOLE, 4, 1, for_gpu=True)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children()
