import multiprocessing
import os
import signal
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from showtell.features.reading import workers
from showtell.features.reading.transform import Transform
from showtell.features.reading.workers import (
    LOOK_AHEAD,
    ImageLoader,
    load_in_processes,
    load_in_threads,
)
from showtell.pipeline.images.image_files import ImageFiles
from showtell.pipeline.stage.errors import ShowTellError

SQUASH = Transform(8, None, "bilinear", (0.5,) * 3, (0.5,) * 3)


def start(load, root: Path, names: list[str], batch_size: int = 4, num_workers: int = 2):
    sizes = [min(batch_size, len(names) - i) for i in range(0, len(names), batch_size)]
    return load(ImageLoader(ImageFiles(root), SQUASH), iter(names), sizes, num_workers)


def count_threads() -> int:
    return sum(thread.name.startswith("decode") for thread in threading.enumerate())


def test_exception_in_a_thread_reaches_the_caller_and_ends_the_threads(
    tmp_path, monkeypatch, write_images
):
    def fail(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(workers, "decode_opened", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        next(start(load_in_threads, tmp_path, write_images(tmp_path, 40)))
    assert count_threads() == 0


def test_look_ahead_is_bounded(tmp_path, monkeypatch, write_images):
    names = write_images(tmp_path, 60)
    read: list[str] = []
    plain = ImageFiles.read
    monkeypatch.setattr(
        ImageFiles, "read", lambda self, name: (read.append(name), plain(self, name))[1]
    )
    for number, _ in enumerate(start(load_in_threads, tmp_path, names), start=1):
        assert len(read) <= (number + LOOK_AHEAD) * 4
    assert sorted(read) == names


def test_closing_the_generator_early_leaves_no_thread(tmp_path, write_images):
    loaded = start(load_in_threads, tmp_path, write_images(tmp_path, 60))
    next(loaded)
    assert count_threads() > 0
    loaded.close()
    assert count_threads() == 0


def test_processes_and_threads_load_the_same_images(tmp_path, write_images):
    names = write_images(tmp_path, 22)
    (tmp_path / names[5]).write_bytes(b"broken")
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        for name in names[:6]:
            archive.write(tmp_path / name, name)
    names += [f"zipped/{name}" for name in names[:6]]
    by_threads, by_processes = (
        [(pixels.copy(), reasons) for pixels, reasons in start(load, tmp_path, names, 9)]
        for load in (load_in_threads, load_in_processes)
    )
    assert len(by_threads) == len(by_processes) == 4
    for (pixels, reasons), (expected, expected_reasons) in zip(
        by_processes, by_threads, strict=True
    ):
        readable = [reason is None for reason in reasons]
        np.testing.assert_array_equal(pixels[readable], expected[readable])
        assert reasons == expected_reasons
    assert not multiprocessing.active_children()


def test_killed_process_is_an_error_that_suggests_fewer_workers(tmp_path, write_images):
    loaded = start(load_in_processes, tmp_path, write_images(tmp_path, 200), num_workers=1)
    next(loaded)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ShowTellError, match=r"was killed.*smaller --num-workers"):
        for _ in loaded:
            pass


def test_closing_the_generator_early_leaves_no_process(tmp_path, write_images):
    loaded = start(load_in_processes, tmp_path, write_images(tmp_path, 60), num_workers=1)
    next(loaded)
    assert multiprocessing.active_children()
    loaded.close()
    assert not multiprocessing.active_children()
