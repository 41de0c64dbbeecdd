import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from showtell.bench.measurement import forget_peak_memory, peak_memory
from showtell.model.runs.tensors import read_tensors, write_tensors
from showtell.pipeline.stage.errors import DamagedFileError, StorageError

METADATA = {"progress": '{"epoch": 1, "best_score": 0.5}', "scaler": "{}"}


def make_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.weight": torch.randn(5, 7, generator=generator).T,  # not contiguous
        "optimizer.0.step": torch.tensor(3.0),
        "average.n_averaged": torch.tensor(2),
        "rng.cpu": torch.randint(0, 256, (37,), dtype=torch.uint8, generator=generator),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "empty": torch.empty(0, 4),
    }


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "runs/r/last.safetensors"
    write_tensors(path, make_tensors(), METADATA)
    return path


def test_tensors_and_metadata_survive_a_round_trip(path) -> None:
    tensors, metadata = read_tensors(path)
    assert metadata == METADATA
    for read in (tensors, load_file(path)):  # the library reads the same
        assert read.keys() == make_tensors().keys()
        for name, value in make_tensors().items():
            assert read[name].dtype == value.dtype and torch.equal(read[name], value), name


def test_every_flipped_bit_is_damage(path) -> None:
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"damaged: .*Run 'showtell train --run r --res"):
            read_tensors(path)


def test_every_cut_and_hole_is_damage(path) -> None:
    whole = path.read_bytes()
    for at in range(0, len(whole), 31):
        for content in (whole[:at], whole[:at] + bytes(len(whole) - at), whole[at + 1 :]):
            path.write_bytes(content)
            with pytest.raises(DamagedFileError):
                read_tensors(path)


@pytest.mark.parametrize("value", ["0.75", "1.5", "null"])
def test_edited_progress_is_damage(path, value: str) -> None:
    content = path.read_bytes()
    edited = json.dumps(METADATA["progress"].replace("0.5", value.ljust(3)))[1:-1].encode()
    original = json.dumps(METADATA["progress"])[1:-1].encode()
    assert original in content
    size = int.from_bytes(content[:8], "little") + len(edited) - len(original)
    content = size.to_bytes(8, "little") + content[8:].replace(original, edited)
    path.write_bytes(content)
    load_file(path)  # a sound file as far as the library can tell
    with pytest.raises(DamagedFileError, match="its content does not match its checksum"):
        read_tensors(path)


def test_files_of_earlier_versions_are_read(tmp_path) -> None:
    tensors = {name: value.contiguous() for name, value in make_tensors().items()}
    save_file(tensors, tmp_path / "best.safetensors")
    assert read_tensors(tmp_path / "best.safetensors")[1] == {}
    save_file(tensors, tmp_path / "last.safetensors", METADATA)
    assert read_tensors(tmp_path / "last.safetensors")[1] == METADATA


def test_files_have_the_mode_of_the_umask(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "best.safetensors", make_tensors())
    finally:
        os.umask(before)
    assert (tmp_path / "best.safetensors").stat().st_mode & 0o777 == 0o640


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(StorageError, match=r"last\.safetensors could not be written: No space"):
        write_tensors(tmp_path / "last.safetensors", make_tensors())
    assert not list(tmp_path.iterdir())


def test_reading_takes_twice_the_memory_of_the_file(tmp_path):
    path = tmp_path / "large.safetensors"
    write_tensors(path, {f"t{number}": torch.ones(1 << 20) for number in range(16)})
    forget_peak_memory()
    before = peak_memory()
    tensors, _ = read_tensors(path)
    assert peak_memory() - before < 2.5 * path.stat().st_size
    assert len(tensors) == 16
