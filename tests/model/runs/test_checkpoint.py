import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from showtell.model.decoders.base import Decoder
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.runs.checkpoint import Progress, load_checkpoint, save_checkpoint, save_weights
from showtell.model.runs.layout import BEST_NAME, LAST_NAME
from showtell.pipeline.stage.errors import DamagedFileError, StorageError
from showtell.pipeline.text.vocab import SPECIALS, Vocab

CPU = torch.device("cpu")
VOCAB = Vocab((*SPECIALS, "a", "dog", "runs"))
SMALL = {"feature_dim": 6, "vocab_size": len(VOCAB), "embed_size": 8, "hidden_size": 5}
PROGRESS = Progress(epoch=2, batch=3, step=17, best_score=0.25, best_epoch=1, seconds=1.5)


def make_decoder(**options: object) -> Decoder:
    return create_decoder(DecoderConfig(**({"cell": "gru"} | SMALL | options)))


def scaler_for(dtype: torch.dtype) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)


class Training:
    """A decoder and an optimizer; their steps depend on the global random generator."""

    def __init__(self, seed: int, **options: object) -> None:
        torch.manual_seed(seed)
        self.decoder = make_decoder(dropout=0.5, **options)
        # Two groups, as in training: the state is stored by index across groups.
        matrices = [p for p in self.decoder.parameters() if p.ndim > 1]
        others = [p for p in self.decoder.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.05)
        self.scaler = scaler_for(torch.float32)

    def step(self) -> None:
        features, inputs = torch.randn(4, 6), torch.randint(0, len(VOCAB), (4, 3))
        self.decoder.logits(self.decoder(features, inputs)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, path: Path) -> None:
        save_checkpoint(path, self.decoder, self.optimizer, self.scaler, PROGRESS)

    def load(self, path: Path) -> Progress:
        return load_checkpoint(path, self.decoder, self.optimizer, self.scaler)


def header_of(path: Path) -> dict[str, object]:
    """Return the JSON header of a safetensors file."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header: dict[str, object] = json.loads(content[8 : 8 + size])
    return header


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_checkpoint_restores_weights_optimizer_and_random_state_exactly(
    tmp_path, cell: str
) -> None:
    path = tmp_path / LAST_NAME
    first = Training(seed=0, cell=cell)
    for _ in range(3):
        first.step()
    first.save(path)
    for _ in range(3):
        first.step()

    second = Training(seed=1, cell=cell)
    second.step()
    assert second.load(path) == PROGRESS
    for _ in range(3):
        second.step()
    for name, value in second.decoder.state_dict().items():
        assert torch.equal(value, first.decoder.state_dict()[name]), name
    left, right = first.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    assert left.keys() == right.keys() and len(left) > 5
    for index, values in left.items():
        assert values.keys() == right[index].keys()
        assert all(torch.equal(values[name], right[index][name]) for name in values)
    assert float(left[0]["step"]) == 6
    assert torch.equal(torch.rand(5), torch.rand(5, generator=after_six_steps(cell)))


def after_six_steps(cell: str) -> torch.Generator:
    """Return the state of the global generator after six uninterrupted steps."""
    training = Training(seed=0, cell=cell)
    for _ in range(6):
        training.step()
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return generator


def test_saving_a_checkpoint_does_not_change_training(tmp_path) -> None:
    plain, saved = Training(seed=0), Training(seed=0)
    for training, saves in ((plain, False), (saved, True)):
        torch.manual_seed(5)
        for _ in range(3):
            training.step()
            if saves:
                training.save(tmp_path / LAST_NAME)
    for name, value in plain.decoder.state_dict().items():
        assert torch.equal(value, saved.decoder.state_dict()[name])


def test_checkpoint_before_the_first_step_can_be_resumed(tmp_path) -> None:
    Training(seed=0).save(tmp_path / LAST_NAME)
    training = Training(seed=1)
    training.step()
    assert training.load(tmp_path / LAST_NAME) == PROGRESS
    assert training.optimizer.state_dict()["state"] == {}


def test_gradient_scaler_is_restored(tmp_path) -> None:
    saved, loaded = Training(seed=0), Training(seed=0)
    saved.scaler, loaded.scaler = scaler_for(torch.float16), scaler_for(torch.float16)
    saved.scaler.load_state_dict(saved.scaler.state_dict() | {"scale": 128.0, "_growth_tracker": 7})
    saved.save(tmp_path / LAST_NAME)
    loaded.load(tmp_path / LAST_NAME)
    state = loaded.scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (128.0, 7)


def test_files_contain_only_a_header_and_tensors(tmp_path) -> None:
    training = Training(seed=0)
    training.step()
    training.save(tmp_path / LAST_NAME)
    save_weights(tmp_path / BEST_NAME, training.decoder)
    best, last = header_of(tmp_path / BEST_NAME), header_of(tmp_path / LAST_NAME)
    names = training.decoder.state_dict().keys()
    assert set(best) - {"__metadata__"} == set(names)
    assert best["embedding.weight"]["dtype"] == "F32"  # type: ignore[index]
    assert best["embedding.weight"]["shape"] == [len(VOCAB), 8]  # type: ignore[index]
    assert {f"model.{name}" for name in names} | {"rng.cpu"} <= set(last)
    assert "optimizer.0.exp_avg_sq" in last
    metadata = last["__metadata__"]
    assert json.loads(metadata["progress"])["step"] == 17  # type: ignore[index]
    for name, header in ((BEST_NAME, best), (LAST_NAME, last)):
        # Length, header and tensors are the whole file: it cannot contain pickle.
        content = (tmp_path / name).read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]  # type: ignore[index]
        assert 8 + size + max(ends) == len(content)


def fill_the_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch) -> None:
    training, path = Training(seed=0), tmp_path / LAST_NAME
    training.save(path)
    before = path.read_bytes()

    monkeypatch.setattr(os, "fsync", fill_the_disk)
    with pytest.raises(StorageError, match="No space"):
        training.save(path)
    with pytest.raises(StorageError, match="No space"):
        save_weights(path, training.decoder)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [LAST_NAME]


def test_damaged_checkpoint_changes_nothing(tmp_path, damage: Callable[[Path], None]) -> None:
    path, training = tmp_path / LAST_NAME, Training(seed=0)
    training.save(path)
    damage(path)
    before = {name: value.clone() for name, value in training.decoder.state_dict().items()}
    with pytest.raises(DamagedFileError, match=r"is damaged: .*\. Run 'showtell "):
        training.load(path)
    for name, value in training.decoder.state_dict().items():
        assert torch.equal(value, before[name])
