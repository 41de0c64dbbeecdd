"""`showtell train --init`: start from a run or a bundle, also on another dataset."""

import json
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.evaluate import evaluate
from showtell.model.runs.layout import BEST_NAME, MODEL_NAME
from showtell.model.runs.run import RunConfig
from showtell.model.train import train
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.prepare import prepare
from showtell.pipeline.stage.errors import MismatchError, MissingArtifactError, StoppedError
from showtell.pipeline.stage.files import hash_file
from showtell.pipeline.text.vocab import Vocab

Run = Callable[..., tuple[int, str]]
SIZES = {"hidden_size": 16, "embed_size": 16, "batch_size": 16}
# At this rate, the weights stay what they were at the start.
FROZEN = {"epochs": 1, "learning_rate": 1e-9, "weight_decay": 0.0}


def add_holidays(data: Path) -> None:
    """Add the dataset `holidays`: the same images, but some words have other names."""
    shutil.copytree(data / "scenes", data / "holidays")
    table = data / "holidays/raw/captions.csv"
    text = table.read_text()
    table.write_text(text.replace("circle", "balloon").replace(" red ", " crimson "))
    shutil.rmtree(data / "holidays/captions")
    source = data / "holidays/raw"
    prepare(PrepareConfig(data=data, dataset="holidays", source=source, table=table, min_count=1))


@pytest.fixture(scope="module")
def trained(prepared_scenes, tmp_path_factory) -> Path:
    """A data folder with two datasets, `scenes` and `holidays`, and a run `r` on scenes."""
    data = Path(shutil.copytree(prepared_scenes, tmp_path_factory.mktemp("source") / "data"))
    add_holidays(data)
    train(TrainConfig(data=data, dataset="scenes", run="r", epochs=2, **SIZES))
    return data


@pytest.fixture
def data(trained, tmp_path) -> Path:
    """A copy of the data folder that a test may write to."""
    return Path(shutil.copytree(trained, tmp_path / "data"))


def weights_of(data: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(data / "runs" / run / BEST_NAME)


def move(data: Path, **options: object) -> None:
    """Train on `holidays` from run `r`."""
    train(TrainConfig(data=data, dataset="holidays", **({"init": "r"} | FROZEN | options)))


def advised_command(output: str) -> list[str]:
    """Return the command that a message names, without `showtell`."""
    found = re.search(r"'showtell (.*?)'(?: |\.|$)", " ".join(output.split()))
    assert found, output
    return shlex.split(found[1])


def test_run_starts_on_another_dataset_with_its_own_words(data, showtell: Run, scorers) -> None:
    status, output = showtell(
        *("train", "--data", data, "--dataset", "holidays", "--init", "r", "--batch-size", 16),
        *("--epochs", 1, "--learning-rate", 1e-9, "--weight-decay", 0),
    )
    assert status == 0, output
    run_dir = data / "runs/holidays-tuned"
    saved, vocab = RunConfig.read(run_dir), Vocab.read(run_dir / "vocab.json")
    old = Vocab.read(data / "runs/r/vocab.json")
    num_known = len(vocab.ids.keys() & old.ids.keys())
    assert f"{num_known} of {len(vocab) - 4} words start from r" in output
    assert {"balloon", "crimson"} <= vocab.ids.keys() - old.ids.keys()
    assert (saved.dataset, saved.decoder.hidden_size) == ("holidays", 16)
    assert saved.inputs["init"] == hash_file(data / "runs/r" / BEST_NAME)
    before, after = weights_of(data, "r"), weights_of(data, "holidays-tuned")
    for name in ("feature_mean", "cell.weight_hh_l0", "image_proj.weight"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-6)
    for word in vocab.ids.keys() & old.ids.keys():
        was, now = (
            weights["embedding.weight"][words.ids[word]]
            for weights, words in ((before, old), (after, vocab))
        )
        torch.testing.assert_close(now, was, rtol=1e-4, atol=1e-6)
    evaluate(EvalConfig(data=data, run=["holidays-tuned"], split="val"))
    # Self-critical training continues it.
    status, output = showtell(
        *("train", "--data", data, "--init", "holidays-tuned", "--scst", "--epochs", 1),
    )
    assert status == 0, output
    assert RunConfig.read(data / "runs/holidays-tuned-scst").dataset == "holidays"


def test_the_same_dataset_with_another_vocabulary_is_remapped(data, capsys) -> None:
    prepare(PrepareConfig(data=data, dataset="scenes", vocab_size=10))
    train(TrainConfig(data=data, init="r", run="s", **FROZEN))
    assert "train: 10 of 10 words start from r." in capsys.readouterr().out


def test_words_that_would_be_lost_are_kept_by_the_advised_command(data, showtell: Run) -> None:
    known = Vocab.read(data / "runs/r/vocab.json").ids.keys()
    table = data / "holidays/raw/captions.csv"
    common = ("prepare", "--dataset", "holidays", "--source", data / "holidays/raw")
    assert showtell(*common, "--table", table, "--vocab-size", 10, "--data", data)[0] == 0
    train_again = ("train", "--dataset", "holidays", "--init", "r", "--epochs", 1, "--data", data)
    status, output = showtell(*train_again)
    assert status == 0 and "more words of the validation captions, such as" in output
    command = advised_command(output)
    assert command[0] == "prepare" and "--known-words" in command
    assert showtell(*command)[0] == 0
    assert known <= Vocab.read(data / "holidays/captions/vocab.json").ids.keys()
    status, output = showtell(*train_again, "--run", "again")
    assert status == 0 and "more words of the validation" not in output


def test_a_folder_of_a_run_or_a_bundle_is_a_source_too(data, showtell: Run) -> None:
    bundle = data.parent / "my bundle"
    bundle.mkdir()
    for name in ("config.json", "vocab.json"):
        shutil.copy(data / "runs/r" / name, bundle / name)
    shutil.copy(data / "runs/r" / BEST_NAME, bundle / MODEL_NAME)
    other = Path(shutil.copytree(data / "runs/r", data.parent / "elsewhere/runs/r"))
    for run, source in (("name", "r"), ("run", data / "runs/r"), ("bundle", bundle), ("b", other)):
        move(data, run=run, init=str(source))
        for name, value in weights_of(data, run).items():
            assert torch.equal(value, weights_of(data, "name")[name])
        config = RunConfig.read(data / "runs" / run)
        assert config.train["init"] == (str(source) if source in (bundle, other) else "r")
    status, output = showtell("train", "--data", data, "--init", data / "runs/none")
    assert status == 1 and "no run 'none' with weights (found: b, " in output
    status, output = showtell("train", "--data", data, "--init", data / "scenes")
    assert status == 1 and "with weights (found: b, " in output


def test_missing_features_name_the_whole_command(data, random_weights, showtell: Run) -> None:
    shutil.rmtree(data / "holidays/features")
    with pytest.raises(MissingArtifactError, match="has no finished features") as caught:
        move(data)
    command = advised_command(str(caught.value))
    assert command == [
        *("features", "--dataset", "holidays", "--encoder", "resnet18"),
        *("--weights", str(random_weights), "--image-size", "64", "--data", str(data)),
    ]
    status, output = showtell(*command)
    assert status == 0, output
    move(data)


def test_attention_names_grid_and_views_in_the_command(grid_scenes, showtell: Run) -> None:
    data = grid_scenes
    train(
        TrainConfig(
            data=data, dataset="scenes", run="r", epochs=1, attention="soft", views=2, **SIZES
        )
    )
    add_holidays(data)
    shutil.rmtree(data / "holidays/features")
    with pytest.raises(MissingArtifactError) as caught:
        move(data)
    command = advised_command(str(caught.value))
    assert "--grid" in command and command[command.index("--views") + 1] == "2"
    shutil.copytree(data / "scenes/features", data / "holidays/features")
    move(data)


def test_features_of_another_encoder_are_refused_with_the_command(data) -> None:
    run_dir = data / "runs/r"
    saved = RunConfig.read(run_dir)
    backbone = saved.backbone | {"weights_sha256": "0" * 64}
    shutil.copytree(run_dir, data.parent / "bundle")
    (data.parent / "bundle/manifest.json").unlink()
    replace(saved, backbone=backbone).write(data.parent / "bundle")
    with pytest.raises(MismatchError, match=r"has weights_sha256 .* Run 'showtell features --data"):
        move(data, init=str(data.parent / "bundle"))


def test_options_of_the_decoder_cannot_change(data, showtell: Run) -> None:
    common = ("train", "--data", data, "--dataset", "holidays", "--init", "r", "--run", "x")
    for option, value in (
        ("--cell", "lstm"),
        ("--attention", "soft"),
        ("--hidden-size", 32),
        ("--embed-size", 64),
        ("--num-layers", 2),
        ("--image-as", "initial-state"),
        ("--no-tie-embeddings", None),
    ):
        words = [option] if value is None else [option, value]
        status, output = showtell(*common, *words)
        assert status == 1
        assert "because the weights fit no other decoder, or train from random" in output
        command = advised_command(output)
        assert "--init" not in command and option in command
        assert showtell(*command, "--print-config")[0] == 0
    assert not (data / "runs/x").exists()


def test_resumed_run_does_not_need_its_source(data, monkeypatch) -> None:
    options = {"epochs": 2, "batch_size": 64}
    move(data, run="whole", **options)
    real_clip, calls = torch.nn.utils.clip_grad_norm_, 0

    def clip_and_stop(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGINT)
        return real_clip(*args)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_and_stop)
    with pytest.raises(StoppedError):
        move(data, run="t", **options)
    shutil.move(data / "runs/r", data / "gone")
    train(TrainConfig(data=data, run="t", resume=True))
    left, right = weights_of(data, "t"), weights_of(data, "whole")
    assert all(torch.equal(left[name], right[name]) for name in left)
    manifest = json.loads((data / "runs/t/manifest.json").read_text())
    assert manifest["inputs"]["init"] == hash_file(data / "gone" / BEST_NAME)
    # Only a start from step 0 needs it, with the same weights.
    (data / "runs/t" / BEST_NAME).write_bytes(b"")
    with pytest.raises(MissingArtifactError, match="no run 'r' with weights"):
        train(TrainConfig(data=data, run="t", resume=True))
    shutil.copytree(data / "runs/whole", data / "runs/r")
    with pytest.raises(MismatchError, match=r"best\.safetensors has changed since the run was"):
        train(TrainConfig(data=data, run="t", resume=True))
