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

from showtell.features.reading import workers
from showtell.features.reading.batches import ImageBatch, read_batches, split_into_batches
from showtell.features.reading.transform import Transform
from showtell.features.reading.workers import LOOK_AHEAD
from showtell.pipeline.datasets.image_files import ImageFiles
from showtell.pipeline.stage.errors import ShowTellError

WHOLE = Transform(8, None, "bilinear", (0.5,) * 3, (0.5,) * 3)  # squashes to 8×8


def write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:03}.png" for index in range(count)]
    for index, name in enumerate(names):
        Image.new("RGB", (9, 9), (index, 255 - index, 7)).save(folder / name)
    return names


def start_reading(root: Path, names: list[str], batch_size: int = 4, **options):
    ids = np.arange(100, 100 + len(names))
    spans = split_into_batches(0, len(names), batch_size)
    settings = {"num_workers": 2} | options
    return read_batches(ImageFiles(root), ids, names, WHOLE, spans, **settings)


def read_all(root: Path, names: list[str], **options) -> list[ImageBatch]:
    batches = start_reading(root, names, **options)
    # The pixels are overwritten when the next batch is read.
    return [replace(batch, pixels=batch.pixels.clone()) for batch in batches]


def test_exception_in_a_thread_reaches_the_reader_and_ends_the_threads(tmp_path, monkeypatch):
    names = write_images(tmp_path, 40)

    def fail(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(workers, "decode_image", fail)
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
    batches = start_reading(tmp_path, names)
    for number, _ in enumerate(batches, start=1):
        assert len(read) <= (number + LOOK_AHEAD) * 4
    assert sorted(read) == names


def test_closing_the_reader_early_leaves_no_thread(tmp_path):
    names = write_images(tmp_path, 60)
    batches = start_reading(tmp_path, names)
    next(batches)
    assert count_decoders() > 0
    batches.close()
    assert count_decoders() == 0


def test_processes_and_threads_give_the_same_batches(tmp_path):
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


def test_killed_process_is_an_error_that_suggests_fewer_workers(tmp_path):
    names = write_images(tmp_path, 200)
    batches = start_reading(tmp_path, names, num_workers=1, for_gpu=True)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ShowTellError, match=r"was killed.*smaller --num-workers"):
        for _ in batches:
            pass


def test_closing_the_reader_early_leaves_no_process(tmp_path):
    names = write_images(tmp_path, 60)
    batches = start_reading(tmp_path, names, num_workers=1, for_gpu=True)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children()
