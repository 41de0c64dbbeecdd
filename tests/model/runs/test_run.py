import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from showtell.model.decoders.base import Decoder
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.runs.checkpoint import save_weights
from showtell.model.runs.layout import BEST_NAME, CONFIG_NAME, LAST_NAME, VOCAB_NAME
from showtell.model.runs.run import RunConfig, load_run, read_vocab
from showtell.model.runs.tensors import read_tensors
from showtell.pipeline.stage.artifacts import repair_command
from showtell.pipeline.stage.checksums import checksum_of_file, unseal
from showtell.pipeline.stage.errors import (
    DamagedFileError,
    MismatchError,
    MissingArtifactError,
)
from showtell.pipeline.stage.files import write_json
from showtell.pipeline.text.vocab import SPECIALS, Vocab

CPU = torch.device("cpu")
VOCAB = Vocab((*SPECIALS, "a", "dog", "runs"))
SMALL = {"feature_dim": 6, "vocab_size": len(VOCAB), "embed_size": 8, "hidden_size": 5}


def make_decoder(**options: object) -> Decoder:
    return create_decoder(DecoderConfig(**({"cell": "gru"} | SMALL | options)))


def make_run(run_dir: Path, decoder: Decoder) -> RunConfig:
    """Write the files that `load_run` needs, as `showtell train` does."""
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


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_run_survives_a_round_trip(tmp_path, cell: str, tie_embeddings: bool) -> None:
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
def test_loaded_run_keeps_where_the_image_enters(tmp_path, image_as: str) -> None:
    make_run(tmp_path / "r", make_decoder(cell="lstm", image_as=image_as))
    assert load_run(tmp_path / "r", CPU)[2].config.image_as == image_as


def test_damaged_weights_are_an_error_with_advice(tmp_path, damage: Callable[[Path], None]) -> None:
    make_run(tmp_path / "r", make_decoder())
    path = tmp_path / "r" / BEST_NAME
    damage(path)
    with pytest.raises(DamagedFileError) as caught:
        load_run(tmp_path / "r", CPU)
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged: ")
    assert message.endswith(f"Run '{repair_command(path)}'.") and "\n" not in message


def test_missing_files_are_an_error_with_the_command(tmp_path) -> None:
    make_run(tmp_path / "runs/r", make_decoder())
    fix = r"Run 'showtell train --run r --resume --data"
    (tmp_path / "runs/r" / BEST_NAME).unlink()
    with pytest.raises(MissingArtifactError, match=rf"best\.safetensors does not exist\. {fix}"):
        load_run(tmp_path / "runs/r", CPU)
    (tmp_path / "runs/r" / VOCAB_NAME).unlink()
    with pytest.raises(MissingArtifactError, match=r"vocab\.json does not exist"):
        load_run(tmp_path / "runs/r", CPU)
    (tmp_path / "runs/r" / CONFIG_NAME).unlink()
    with pytest.raises(MissingArtifactError, match=rf"config\.json does not exist\. {fix}"):
        load_run(tmp_path / "runs/r", CPU)
    with pytest.raises(MissingArtifactError, match=r"last\.safetensors does not exist"):
        read_tensors(tmp_path / "runs/r" / LAST_NAME)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"decoder": {}}', '{"decoder": {"cell": "gru", "nosuch": 1}}', "\xff"],
)
def test_damaged_config_is_an_error(tmp_path, content: str) -> None:
    make_run(tmp_path / "r", make_decoder())
    (tmp_path / "r" / CONFIG_NAME).write_text(content, "latin-1")
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged: .* Run 'showtell "):
        load_run(tmp_path / "r", CPU)


@pytest.mark.parametrize(
    "words",
    [("a", "dog", "walks"), ("dog", "a", "runs"), ("a", "dog", "runs", "home"), ("a", "dog")],
    ids=["other", "order", "more", "fewer"],
)
def test_vocabulary_of_another_run_is_an_error(tmp_path, words: tuple[str, ...]) -> None:
    make_run(tmp_path / "r", make_decoder())
    path, other = tmp_path / "r" / VOCAB_NAME, Vocab(SPECIALS + words)
    other.write(path)
    with pytest.raises(MismatchError) as caught:
        load_run(tmp_path / "r", CPU)
    message = str(caught.value)
    assert message.startswith(f"{path} has {len(other)} words and hash {other.sha256[:12]}")
    assert f"trained with {len(VOCAB)} and {VOCAB.sha256[:12]}" in message


def test_word_counts_may_differ(tmp_path) -> None:
    make_run(tmp_path / "r", make_decoder())
    Vocab(VOCAB.words, (0, 0, 0, 0, 9, 8, 7)).write(tmp_path / "r" / VOCAB_NAME)
    assert load_run(tmp_path / "r", CPU)[1].counts[4:] == (9, 8, 7)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"hidden_size": 7}, r"has shape \(.*requires shape \("),
        ({"cell": "lstm"}, r"has shape \(.*requires shape \("),
        ({"num_layers": 2}, "requires no such tensor"),
        ({"tie_embeddings": False}, r"'output_weight' has .*requires no such tensor|'output_proj"),
    ],
    ids=str,
)
def test_weights_of_another_shape_are_an_error(tmp_path, options, named: str) -> None:
    make_run(tmp_path / "r", make_decoder())
    save_weights(tmp_path / "r" / BEST_NAME, make_decoder(**options))
    with pytest.raises(MismatchError, match=named) as caught:
        load_run(tmp_path / "r", CPU)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'r' / BEST_NAME}: '")
    assert message.endswith(f". Run '{repair_command(tmp_path / 'r' / BEST_NAME)}'.")


def test_missing_tensor_is_an_error(tmp_path) -> None:
    make_run(tmp_path / "r", make_decoder())
    path = tmp_path / "r" / BEST_NAME
    tensors = load_file(path)
    del tensors["output_bias"]
    save_file(tensors, path)
    with pytest.raises(MismatchError, match=r"'output_bias' is missing, but .* requires shape \("):
        load_run(tmp_path / "r", CPU)


def test_building_a_decoder_to_load_does_not_import_the_compiler() -> None:
    """Drawing random weights on the meta device would import it, which takes a second."""
    code = (
        "import sys, torch\n"
        "from showtell.model.decoders.config import DecoderConfig\n"
        "from showtell.model.decoders.registry import build_decoder\n"
        "with torch.device('meta'):\n"
        "    build_decoder(DecoderConfig(cell='gru', feature_dim=6, vocab_size=9))\n"
        "    build_decoder(DecoderConfig(cell='transformer', feature_dim=6, vocab_size=9))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_as", "first-inpuu"),
        ("cell", "grv"),
        ("attention", "sofu"),
        ("hidden_size", 0),
        ("hidden_size", "5"),
        ("num_layers", 10**18),
        ("dropout", 1.5),
        ("tie_embeddings", 1),
        ("feature_dim", -6),
        ("vocab_size", 7.5),
    ],
)
def test_impossible_values_are_damage(tmp_path, name: str, value: object) -> None:
    make_run(tmp_path / "r", make_decoder())
    path = tmp_path / "r" / CONFIG_NAME
    values = unseal(json.loads(path.read_text()))  # as in a run of an earlier version
    values["decoder"][name] = value
    write_json(path, values)
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged: .*\. Run 'showtell"):
        load_run(tmp_path / "r", CPU)


@pytest.mark.parametrize(("name", "value"), [("attention", "soft"), ("hidden_size", 100)])
def test_values_that_do_not_fit_a_transformer_are_damage(
    tmp_path, name: str, value: object
) -> None:
    config = make_run(tmp_path / "r", make_decoder(cell="transformer"))
    assert load_run(tmp_path / "r", CPU)[0] == config
    replace(config, decoder=replace(config.decoder, **{name: value})).write(tmp_path / "r")
    with pytest.raises(DamagedFileError, match=rf"config\.json is damaged: {name} is"):
        load_run(tmp_path / "r", CPU)


def test_every_flipped_bit_of_the_config_is_damage(tmp_path) -> None:
    make_run(tmp_path / "r", make_decoder())
    path = tmp_path / "r" / CONFIG_NAME
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 5):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(DamagedFileError):
            RunConfig.read(tmp_path / "r")


def test_every_flipped_bit_of_the_vocabulary_is_damage(tmp_path) -> None:
    config = make_run(tmp_path / "r", make_decoder())
    path = tmp_path / "r" / VOCAB_NAME
    config = replace(config, vocab_checksum=checksum_of_file(path))
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises((DamagedFileError, MismatchError), match="Run 'showtell "):
            read_vocab(tmp_path / "r", config)
