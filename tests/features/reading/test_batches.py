import multiprocessing
import re
import signal
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from showtell.features.reading.batches import ImageBatch, read_batches, split_into_batches
from showtell.features.reading.broken_images import READ_FAILED
from showtell.features.reading.decode import decode_image
from showtell.features.reading.transform import Transform
from showtell.pipeline.images.image_files import ImageFiles

SQUASH = Transform(8, None, "bilinear", (0.5,) * 3, (0.5,) * 3)


def read_all(
    root: Path, names: list[str], num_workers: int | None = 2, for_gpu: bool = False
) -> list[ImageBatch]:
    ids = np.arange(100, 100 + len(names))
    spans = split_into_batches(0, len(names), 4)
    batches = read_batches(ImageFiles(root), ids, names, SQUASH, spans, num_workers, for_gpu)
    # The pixels are overwritten when the next batch is read.
    return [replace(batch, pixels=batch.pixels.clone()) for batch in batches]


@pytest.mark.parametrize("num_workers", [1, 3, None])
def test_batches_equal_a_plain_loop(tmp_path, num_workers, write_images):
    names = write_images(tmp_path, 11)
    batches = read_all(tmp_path, names, num_workers=num_workers)
    assert [len(batch.image_ids) for batch in batches] == [4, 4, 3]
    assert np.concatenate([batch.image_ids for batch in batches]).tolist() == [*range(100, 111)]
    pixels = np.concatenate([batch.pixels.numpy() for batch in batches])
    expected = [SQUASH(decode_image((tmp_path / name).read_bytes(), SQUASH)) for name in names]
    np.testing.assert_array_equal(pixels, np.stack(expected))


def test_batches_are_channels_last(tmp_path, write_images):
    pixels = read_all(tmp_path, write_images(tmp_path, 4))[0].pixels
    assert pixels.shape == (4, 3, 8, 8)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_batches_of_processes_and_threads_are_equal(tmp_path, write_images):
    names = write_images(tmp_path, 6)
    (tmp_path / names[1]).write_bytes(b"")
    for batch, expected in zip(
        read_all(tmp_path, names, for_gpu=True), read_all(tmp_path, names), strict=True
    ):
        assert torch.equal(batch.pixels, expected.pixels)
        assert batch.image_ids.tolist() == expected.image_ids.tolist()
        assert batch.skipped == expected.skipped


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_process_receives_ctrl_c(tmp_path, write_images):
    names = write_images(tmp_path, 12)
    spans = split_into_batches(0, len(names), 4)
    batches = read_batches(ImageFiles(tmp_path), np.arange(12), names, SQUASH, spans, 2, True)
    next(batches)
    statuses = [
        Path(f"/proc/{process.pid}/status").read_text()
        for process in multiprocessing.active_children()
    ]
    batches.close()
    blocked = [int(re.search(r"SigBlk:\s+(\w+)", status)[1], 16) for status in statuses]
    assert len(blocked) == 2
    assert all(mask >> (signal.SIGINT - 1) & 1 for mask in blocked)


def test_unreadable_images_are_skipped_without_affecting_others(tmp_path, write_images):
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


def test_batch_without_a_readable_image_is_empty(tmp_path):
    batch = read_all(tmp_path, ["a.jpg", "b.jpg"])[0]
    assert batch.pixels.shape == (0, 3, 8, 8)
    assert batch.image_ids.shape == (0,)
    assert len(batch.skipped) == 2


def test_empty_list_gives_no_batch(tmp_path):
    assert read_all(tmp_path, []) == []


def test_damaged_zip_member_is_skipped(tmp_path, write_images):
    names = write_images(tmp_path / "images", 3)
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / "images" / name, name)
        offset = archive.getinfo(names[1]).header_offset + 30 + len(names[1]) + 40
    content = bytearray((tmp_path / "zipped.zip").read_bytes())
    content[offset] ^= 0xFF
    (tmp_path / "zipped.zip").write_bytes(content)
    batch = read_all(tmp_path, [f"zipped/{name}" for name in names])[0]
    assert batch.image_ids.tolist() == [100, 102]
    assert "damaged" in batch.skipped[0][1]
    assert not batch.skipped[0][1].startswith(READ_FAILED)


def test_read_error_is_distinguished_from_a_corrupt_image(tmp_path, monkeypatch, write_images):
    names = write_images(tmp_path, 2)

    def fail(self, file_name: str) -> bytes:
        raise PermissionError(13, "Permission denied", file_name)

    monkeypatch.setattr(ImageFiles, "read", fail)
    batch = read_all(tmp_path, names)[0]
    assert batch.skipped[0] == (100, f"{READ_FAILED}: Permission denied")
