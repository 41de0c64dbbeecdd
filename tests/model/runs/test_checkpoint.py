import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from showtell.model.decoders.base import Decoder
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.runs import checkpoint
from showtell.model.runs.checkpoint import Progress, load_checkpoint, save_checkpoint, save_weights
from showtell.model.runs.layout import BEST_NAME, CONFIG_NAME, LAST_NAME, VOCAB_NAME
from showtell.model.runs.run import RunConfig, find_run, load_run
from showtell.pipeline.stage.errors import MismatchError, MissingArtifactError
from showtell.pipeline.text.vocab import SPECIALS, Vocab

CPU = torch.device("cpu")
VOCAB = Vocab((*SPECIALS, "a", "dog", "runs"))
SMALL = {"feature_dim": 6, "vocab_size": len(VOCAB), "embed_size": 8, "hidden_size": 5}
PROGRESS = Progress(epoch=2, batch=3, step=17, best_score=0.25, best_epoch=1, seconds=1.5)


def make_decoder(**options: object) -> Decoder:
    return create_decoder(DecoderConfig(**({"cell": "gru"} | SMALL | options)))


def make_run(run_dir: Path, decoder: Decoder) -> RunConfig:
    """The files that `load_run` needs, as `showtell train` writes them."""
    run_dir.mkdir(parents=True)
    VOCAB.write(run_dir / VOCAB_NAME)
    save_weights(run_dir / BEST_NAME, decoder)
    config = RunConfig(
        dataset="scenes",
        features="resnet18-random",
        backbone={"encoder": "resnet18", "transform": {"mean": [0.5, 0.25, 0.125]}},
        vocab_sha256=VOCAB.sha256,
        decoder=decoder.config,
        train={"epochs": 1},
        inputs={"vocab.json": "ab12"},
    )
    config.write(run_dir)
    return config


def scaler_for(dtype: torch.dtype) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)


class Training:
    """A decoder with an optimizer whose steps depend on the global random generator."""

    def __init__(self, seed: int, **options: object) -> None:
        torch.manual_seed(seed)
        self.decoder = make_decoder(dropout=0.5, **options)
        # As in training: two groups, so that state is stored by parameter index across them.
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
    """The JSON header of a safetensors file, read by its published layout."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header: dict[str, object] = json.loads(content[8 : 8 + size])
    return header


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_run_round_trip_keeps_config_words_and_weights(
    tmp_path, cell: str, tie_embeddings: bool
) -> None:
    decoder = make_decoder(cell=cell, tie_embeddings=tie_embeddings, num_layers=2)
    written = make_run(tmp_path / "r", decoder)
    config, vocab, loaded = load_run(tmp_path / "r", CPU)
    assert config == written
    assert vocab.words == VOCAB.words
    assert not loaded.training
    assert loaded.config == decoder.config
    expected = decoder.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name]), name
    features, inputs = torch.randn(3, 6), torch.randint(0, len(VOCAB), (3, 4))
    assert torch.equal(loaded(features, inputs), decoder.eval()(features, inputs))


@pytest.mark.parametrize("image_as", ["first-input", "initial-state"])
def test_image_enters_a_loaded_run_where_it_did(tmp_path, image_as: str) -> None:
    make_run(tmp_path / "r", make_decoder(cell="lstm", image_as=image_as))
    assert load_run(tmp_path / "r", CPU)[2].config.image_as == image_as


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_checkpoint_restores_weights_optimizer_and_random_numbers_exactly(
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
    """Where the global generator stands after six uninterrupted steps."""
    training = Training(seed=0, cell=cell)
    for _ in range(6):
        training.step()
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return generator


def test_saving_a_checkpoint_disturbs_nothing(tmp_path) -> None:
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


def test_scaler_of_fp16_is_restored(tmp_path) -> None:
    saved, loaded = Training(seed=0), Training(seed=0)
    saved.scaler, loaded.scaler = scaler_for(torch.float16), scaler_for(torch.float16)
    saved.scaler.load_state_dict(saved.scaler.state_dict() | {"scale": 128.0, "_growth_tracker": 7})
    saved.save(tmp_path / LAST_NAME)
    loaded.load(tmp_path / LAST_NAME)
    state = loaded.scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (128.0, 7)


def test_files_hold_no_pickle_and_say_what_they_hold(tmp_path) -> None:
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
        # Length, header and tensors are the whole file: there is no room for anything else.
        content = (tmp_path / name).read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]  # type: ignore[index]
        assert 8 + size + max(ends) == len(content)


def test_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch) -> None:
    training, path = Training(seed=0), tmp_path / LAST_NAME
    training.save(path)
    before = path.read_bytes()

    def fill_the_disk(tensors: object, partial: Path, metadata: object = None) -> None:
        Path(partial).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        training.save(path)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, training.decoder)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [LAST_NAME]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def cut_into_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * 4096)


DAMAGES = (cut_short, cut_into_the_header, empty, overwrite)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named_with_what_to_do(
    tmp_path, damage: Callable[[Path], None]
) -> None:
    make_run(tmp_path / "r", make_decoder())
    path = tmp_path / "r" / BEST_NAME
    damage(path)
    with pytest.raises(MissingArtifactError) as caught:
        load_run(tmp_path / "r", CPU)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith("Delete it and train the run again.") and "\n" not in message


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_changes_nothing(tmp_path, damage: Callable[[Path], None]) -> None:
    path, training = tmp_path / LAST_NAME, Training(seed=0)
    training.save(path)
    damage(path)
    before = {name: value.clone() for name, value in training.decoder.state_dict().items()}
    with pytest.raises(MissingArtifactError, match="cannot be read"):
        training.load(path)
    for name, value in training.decoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_missing_files_of_a_run_are_named_with_the_command(tmp_path) -> None:
    make_run(tmp_path / "r", make_decoder())
    mend = r"Run 'showtell train --run r' first\."
    (tmp_path / "r" / BEST_NAME).unlink()
    with pytest.raises(MissingArtifactError, match=rf"best\.safetensors does not exist\. {mend}"):
        load_run(tmp_path / "r", CPU)
    (tmp_path / "r" / VOCAB_NAME).unlink()
    with pytest.raises(MissingArtifactError, match=r"vocab\.json does not exist"):
        load_run(tmp_path / "r", CPU)
    (tmp_path / "r" / CONFIG_NAME).unlink()
    with pytest.raises(MissingArtifactError, match=rf"config\.json does not exist\. {mend}"):
        load_run(tmp_path / "r", CPU)
    with pytest.raises(MissingArtifactError, match=r"last\.safetensors does not exist"):
        Training(seed=0).load(tmp_path / "r" / LAST_NAME)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"decoder": {}}', '{"decoder": {"cell": "gru", "nosuch": 1}}', "\xff"],
)
def test_config_that_is_none_is_refused(tmp_path, content: str) -> None:
    make_run(tmp_path / "r", make_decoder())
    (tmp_path / "r" / CONFIG_NAME).write_text(content, "latin-1")
    with pytest.raises(MissingArtifactError, match=r"config\.json is not the config of a run"):
        load_run(tmp_path / "r", CPU)


@pytest.mark.parametrize(
    "words",
    [("a", "dog", "walks"), ("dog", "a", "runs"), ("a", "dog", "runs", "home"), ("a", "dog")],
    ids=["other", "order", "more", "fewer"],
)
def test_words_of_another_run_are_refused(tmp_path, words: tuple[str, ...]) -> None:
    make_run(tmp_path / "r", make_decoder())
    path, other = tmp_path / "r" / VOCAB_NAME, Vocab(SPECIALS + words)
    other.write(path)
    with pytest.raises(MismatchError) as caught:
        load_run(tmp_path / "r", CPU)
    message = str(caught.value)
    assert message.startswith(f"{path} has {len(other)} words and hash {other.sha256[:12]}")
    assert f"trained with {len(VOCAB)} and {VOCAB.sha256[:12]}" in message


def test_counts_of_words_do_not_matter(tmp_path) -> None:
    make_run(tmp_path / "r", make_decoder())
    Vocab(VOCAB.words, (0, 0, 0, 0, 9, 8, 7)).write(tmp_path / "r" / VOCAB_NAME)
    assert load_run(tmp_path / "r", CPU)[1].counts[4:] == (9, 8, 7)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"hidden_size": 7}, r"is torch\.Size\(\[.*expected torch\.Size\(\["),
        ({"cell": "lstm"}, r"is torch\.Size\(\[.*expected torch\.Size\(\["),
        ({"num_layers": 2}, "expected nothing"),
        ({"tie_embeddings": False}, r"'output_weight' is .*, expected nothing|'project"),
    ],
    ids=str,
)
def test_weights_of_another_shape_are_refused(tmp_path, options, named: str) -> None:
    make_run(tmp_path / "r", make_decoder())
    save_weights(tmp_path / "r" / BEST_NAME, make_decoder(**options))
    with pytest.raises(MismatchError, match=named) as caught:
        load_run(tmp_path / "r", CPU)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'r' / BEST_NAME}: '")
    assert message.endswith("by config.json. Train the run again.") and "\n" not in message


def test_weights_without_one_of_their_tensors_are_refused(tmp_path) -> None:
    make_run(tmp_path / "r", make_decoder())
    path = tmp_path / "r" / BEST_NAME
    tensors = load_file(path)
    del tensors["output_bias"]
    save_file(tensors, path)
    with pytest.raises(MismatchError, match=r"'output_bias' is missing, expected torch\.Size"):
        load_run(tmp_path / "r", CPU)


def make_runs(data: Path, *names: str) -> None:
    """Runs with weights, each newer than the one before."""
    for age, name in enumerate(names):
        path = data / "runs" / name / BEST_NAME
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(path, (1_700_000_000 + age, 1_700_000_000 + age))


def test_decoder_to_be_loaded_is_built_without_torchs_compiler() -> None:
    """Which takes a second to import, and would be by normal draws on the meta device."""
    code = (
        "import sys, torch; from showtell.model.decoders.decoder import Decoder, DecoderConfig\n"
        "with torch.device('meta'):\n"
        "    create_decoder(DecoderConfig(cell='gru', feature_dim=6, vocab_size=9))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_newest_run_is_found_by_the_time_of_its_weights(tmp_path) -> None:
    make_runs(tmp_path, "b", "c", "a")
    (tmp_path / "runs" / "without-weights").mkdir()
    assert find_run(tmp_path, None) == tmp_path / "runs" / "a"


def test_run_is_found_by_name(tmp_path) -> None:
    make_runs(tmp_path, "b", "c", "a")
    assert find_run(tmp_path, "b") == tmp_path / "runs" / "b"


def test_unknown_run_is_refused_with_the_names_there_are(tmp_path) -> None:
    make_runs(tmp_path, "b", "a")
    (tmp_path / "runs" / "c").mkdir()
    for name in ("c", "d"):
        with pytest.raises(MissingArtifactError) as caught:
            find_run(tmp_path, name)
        assert str(caught.value) == (
            f"{tmp_path / 'runs'} has no run '{name}' with weights (there are a, b). "
            "Run 'showtell train --dataset NAME' first, or name another folder with --data."
        )


def test_run_stopped_in_its_first_epoch_is_told_from_one_that_never_was(tmp_path) -> None:
    make_runs(tmp_path, "b")
    (tmp_path / "runs/c").mkdir()
    (tmp_path / "runs/c/last.safetensors").touch()
    with pytest.raises(
        MissingArtifactError, match=r"c was stopped .*train --run c --resume' first"
    ):
        find_run(tmp_path, "c")


def test_no_runs_at_all_names_the_command(tmp_path) -> None:
    for name, what in ((None, "no run"), ("r", "no run 'r'")):
        with pytest.raises(MissingArtifactError) as caught:
            find_run(tmp_path / "nowhere", name)
        assert f"has {what} with weights (there is none)" in str(caught.value)
        assert str(caught.value).endswith(
            "'showtell train --dataset NAME' first, or name another folder with --data."
        )
