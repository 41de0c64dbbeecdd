"""Every state that a kill or a damaged file can leave of a run, and what `showtell` makes of it."""

import errno
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.evaluate import evaluate
from showtell.model.metrics.caption_scorer import CaptionScorer
from showtell.model.runs.layout import (
    BEST_NAME,
    CONFIG_NAME,
    CURVES_NAME,
    LAST_NAME,
    LOG_NAME,
    VOCAB_NAME,
)
from showtell.model.runs.repair import find_problems
from showtell.model.runs.run import RunConfig
from showtell.model.runs.tensors import read_tensors
from showtell.model.train import train
from showtell.model.training.trainer import Trainer
from showtell.pipeline.stage.errors import (
    DamagedFileError,
    MismatchError,
    MissingArtifactError,
    ShowTellError,
    StorageError,
)
from showtell.pipeline.stage.files import write_json
from showtell.pipeline.stage.manifest import COPY_NAME, MANIFEST_NAME, Manifest

Run = Callable[..., tuple[int, str]]
SIZES: dict[str, Any] = {"hidden_size": 8, "embed_size": 8, "batch_size": 64, "epochs": 2}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
TRAIN = ("train", "--dataset", "scenes", "--run", "r", *OPTIONS)


def config_of(data: Path, **options: Any) -> TrainConfig:
    return TrainConfig(data=data, dataset="scenes", run="r", **(SIZES | options))


class Snapshots:
    """Copies of a folder after each file that was written: the states a kill can leave.

    Attributes:
        names: of the files, in the order in which they were written.
        folders: the copies.
    """

    def __init__(self, folder: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.folders: list[Path] = []
        rename = Path.replace

        def replace_and_copy(path: Path, target: Path) -> Path:
            replaced = rename(path, target)
            if target.parent == folder:
                self.names.append(target.name)
                copy = copies / str(len(self.names))
                self.folders.append(Path(shutil.copytree(folder, copy)))
            return replaced

        monkeypatch.setattr(Path, "replace", replace_and_copy)


def improve_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each epoch the best so far, so that every epoch writes all files."""

    def score(self: CaptionScorer, captions: dict[int, str]) -> dict[str, float]:
        return dict.fromkeys(("CIDEr", "Bleu_4"), int(next(iter(captions.values()))) / 4)

    monkeypatch.setattr(Trainer, "decode_validation", lambda self: [str(self.progress.epoch)] * 10)
    monkeypatch.setattr(CaptionScorer, "score", score)


@pytest.fixture(scope="module")
def trained(prepared_scenes, tmp_path_factory) -> tuple[Path, Snapshots]:
    """A data folder with a finished run `r`, and its states after each write."""
    data = Path(shutil.copytree(prepared_scenes, tmp_path_factory.mktemp("resume") / "data"))
    with pytest.MonkeyPatch.context() as patch:
        states = Snapshots(data / "runs/r", tmp_path_factory.mktemp("states"), patch)
        improve_every_epoch(patch)
        train(config_of(data))
    return data, states


@pytest.fixture
def data(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the data folder that a test may write to."""
    improve_every_epoch(monkeypatch)
    return Path(shutil.copytree(trained[0], tmp_path / "data"))


def assert_finished(data: Path, whole: Path) -> None:
    """Check that the run is finished, with the weights of a run that was never stopped."""
    run_dir = data / "runs/r"
    assert Manifest.read(run_dir) is not None and not find_problems(run_dir)
    for name in (BEST_NAME, LAST_NAME):
        if (run_dir / name).exists():
            left, right = read_tensors(run_dir / name)[0], read_tensors(whole / name)[0]
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left)
    assert len((run_dir / LOG_NAME).read_text().splitlines()) == 4


def advised_command(output: str) -> list[str]:
    """Return the command that a message names, without `showtell`."""
    found = re.search(r"Run 'showtell (.*?)'(?: |\.|$)", " ".join(output.split()))
    assert found, output
    return shlex.split(found[1])


# What `train` and `eval` write, in order, and what a kill just after it leads to.
STATES = (
    # file written      `train` again               `train --resume`
    (VOCAB_NAME, "starts", "nothing to resume"),
    (CONFIG_NAME, "starts", "starts"),
    (LOG_NAME, "starts", "starts"),
    (BEST_NAME, "refers to --resume", "starts from step 0"),
    (LAST_NAME, "refers to --resume", "resuming"),
    (BEST_NAME, "refers to --resume", "resuming"),
    (LAST_NAME, "refers to --resume", "resuming"),
    (CURVES_NAME, "refers to --resume", "resuming"),
    (COPY_NAME, "refers to --resume", "resuming"),
    (MANIFEST_NAME, "up to date", "is finished"),
)


def test_table_lists_every_write_of_a_training(trained) -> None:
    assert trained[1].names == [name for name, _, _ in STATES]


@pytest.mark.parametrize("index", range(len(STATES)), ids=lambda i: f"{i}-{STATES[i][0]}")
def test_every_state_of_a_killed_training_is_continued_or_explained(
    data, trained, showtell: Run, index: int
) -> None:
    _, again, resumed = STATES[index]
    for outcome, arguments in ((again, ()), (resumed, ("--resume",))):
        shutil.rmtree(data / "runs")
        shutil.copytree(trained[1].folders[index], data / "runs/r")
        status, output = showtell(*TRAIN, *arguments, "--data", data)
        output = " ".join(output.split())
        if outcome == "refers to --resume":
            assert status == 1 and ("Add --resume" in output or "--resume --data" in output)
            status, output = showtell(*TRAIN, "--resume", "--data", data)
        elif outcome == "nothing to resume":
            assert status == 1 and outcome in output
            assert advised_command(output)[:3] == ["train", "--run", "r"]
            status, output = showtell(*TRAIN, "--data", data)
        else:
            assert outcome in output or outcome == "starts"
        assert status == 0, output
        assert_finished(data, trained[0] / "runs/r")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [CONFIG_NAME, VOCAB_NAME, BEST_NAME, LAST_NAME])
def test_damaged_file_of_an_unfinished_run_is_repaired_by_the_command_that_all_name(
    data, trained, scorers, showtell: Run, name: str, damage: str
) -> None:
    command = ["train", "--run", "r", "--resume", "--data", str(data)]
    shutil.rmtree(data / "runs")
    shutil.copytree(trained[1].folders[4], data / "runs/r")  # after the first last checkpoint
    DAMAGES[damage](data / "runs/r" / name)
    named = []
    for arguments in (TRAIN, ("eval", "--run", "r"), ("train", "--init", "r", "--run", "s")):
        status, output = showtell(*arguments, "--data", data)
        if status:
            named.append(advised_command(output) if "Add --resume" not in output else command)
    # Without weights, `eval` finds no run; it does not need the last checkpoint.
    assert named[0] == command and all(words == command for words in named if "--run" in words)
    status, output = showtell(*command)
    assert status == 0, output
    assert_finished(data, trained[0] / "runs/r")
    kept = sorted(path.name for path in (data / "runs/r").glob("earlier-1/*"))
    lost = {BEST_NAME: [LAST_NAME], LAST_NAME: [BEST_NAME]}.get(name, [])
    assert set(lost) <= set(kept) and bool(kept) == bool(lost)  # sound files are not lost


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [CONFIG_NAME, VOCAB_NAME, BEST_NAME, LOG_NAME, MANIFEST_NAME])
def test_damaged_file_of_a_finished_run_is_repaired_by_the_command_that_train_names(
    data, trained, showtell: Run, name: str, damage: str
) -> None:
    DAMAGES[damage](data / "runs/r" / name)
    status, output = showtell(*TRAIN, "--data", data)
    assert status == 1
    words = ["train", "--run", "r", "--resume", "--data", str(data)]
    assert "Add --resume" in output or advised_command(output) == words
    status, output = showtell(*words)
    assert status == 0, output
    run_dir, lines = data / "runs/r", (data / "runs/r" / LOG_NAME).read_text().splitlines()
    assert Manifest.read(run_dir) is not None and not find_problems(run_dir)
    assert len(lines) == 4 or name == LOG_NAME
    assert (run_dir / "earlier-1").exists() == (name == BEST_NAME)
    if name not in (LOG_NAME, MANIFEST_NAME):
        whole = trained[0] / "runs/r" / name
        assert (run_dir / name).read_bytes() == whole.read_bytes()


def test_finished_run_without_checkpoint_restores_its_config(data, trained, showtell: Run) -> None:
    (data / "runs/r" / LAST_NAME).unlink()
    for name in (CONFIG_NAME, VOCAB_NAME, LOG_NAME):
        (data / "runs/r" / name).write_bytes(b"")
    assert showtell("train", "--run", "r", "--resume", "--data", data)[0] == 0
    assert not find_problems(data / "runs/r")
    whole = trained[0] / "runs/r" / CONFIG_NAME
    assert (data / "runs/r" / CONFIG_NAME).read_bytes() == whole.read_bytes()


def test_lost_options_are_explained(data, trained, showtell: Run) -> None:
    shutil.rmtree(data / "runs")
    shutil.copytree(trained[1].folders[4], data / "runs/r")
    for name in (CONFIG_NAME, LAST_NAME):
        (data / "runs/r" / name).write_bytes(b"")
        (data / "runs/r" / BEST_NAME).write_bytes(b"")
    status, output = showtell("verify", "--data", data)
    assert status == 1 and "config.json is damaged" in output
    status, output = showtell("train", "--run", "r", "--resume", "--data", data)
    assert status == 1 and "no other file holds the options of the run. Run" in output
    status, output = showtell(*TRAIN, "--data", data)
    assert status == 0 and "starts from step 0" in output
    assert_finished(data, trained[0] / "runs/r")
    assert (data / "runs/r/earlier-1" / LAST_NAME).exists()


def test_config_deleted_during_training_is_restored(data, trained, showtell: Run) -> None:
    for index in (3, 4):  # after the first best, and after the first checkpoint
        shutil.rmtree(data / "runs")
        shutil.copytree(trained[1].folders[index], data / "runs/r")
        (data / "runs/r" / CONFIG_NAME).unlink()
        status, output = showtell("verify", "--data", data)
        assert status == 1 and "config.json does not exist. Run" in output
        status, output = showtell(*advised_command(output))
        assert status == 0, output
        assert_finished(data, trained[0] / "runs/r")


REPAIRED_ALONE = (CONFIG_NAME, LAST_NAME, LOG_NAME, MANIFEST_NAME)


@pytest.mark.parametrize("is_gone", [True, False], ids=["features gone", "captions changed"])
@pytest.mark.parametrize("name", [*REPAIRED_ALONE, VOCAB_NAME, BEST_NAME])
def test_finished_run_is_repaired_without_its_dataset(
    data, trained, showtell: Run, name: str, is_gone: bool
) -> None:
    if is_gone:
        shutil.rmtree(data / "scenes/features")
    else:
        prepare = ("prepare", "--dataset", "scenes", "--min-count")
        assert showtell(*prepare, 9, "--data", data)[0] == 0
    flip(data / "runs/r" / name)
    resume = ("train", "--run", "r", "--resume", "--data", data)
    status, output = showtell(*resume)
    output = " ".join(output.split())
    if name in REPAIRED_ALONE or (name == VOCAB_NAME and is_gone):
        assert status == 0 and "is finished" in output
        assert showtell("verify", data / "runs", "--data", data)[0] == 0
    elif is_gone:
        assert status == 1 and "resnet18-random-64 has no finished features. Run" in output
        assert "--encoder resnet18 --weights /" in output and "--image-size 64" in output
    else:
        assert status == 1 and "or move" in output
        command = re.search(r"train again with 'showtell (.*?)'", output)
        assert command is not None
        shutil.move(data / "runs/r", data / "old")
        assert showtell(*shlex.split(command[1]))[0] == 0


def test_manifest_of_another_run_is_replaced_by_the_copy(data, trained, showtell: Run) -> None:
    other = config_of(data, seed=1, epochs=1)
    train(replace(other, run="s"))
    for path in (data / "runs/r" / LAST_NAME, data / "runs/s" / LAST_NAME):
        path.unlink()
    shutil.copy(data / "runs/s" / MANIFEST_NAME, data / "runs/r")
    assert showtell("train", "--run", "r", "--resume", "--data", data)[0] == 0
    assert_finished(data, trained[0] / "runs/r")


def test_weights_of_another_run_are_refused(data, trained, showtell: Run) -> None:
    shutil.rmtree(data / "runs")
    shutil.copytree(trained[1].folders[4], data / "runs/r")
    train(replace(config_of(data, seed=1, epochs=1), run="s"))
    shutil.copy(data / "runs/s" / BEST_NAME, data / "runs/r")
    for command in (("eval", "--run", "r"), ("verify",), ("export", "r", data / "bundle")):
        status, output = showtell(*command, "--data", data)
        assert status == 1 and "best.safetensors is damaged: it belongs to another run" in output


def test_resume_checks_vocabulary_and_encoder_before_training(data, trained, monkeypatch) -> None:
    shutil.rmtree(data / "runs")
    run_dir = Path(shutil.copytree(trained[1].folders[4], data / "runs/r"))
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("trained"))
    saved = RunConfig.read(run_dir)
    values = {key: value for key, value in vars(saved).items() if key != "decoder"}
    values["decoder"] = vars(saved.decoder)
    for key, value in (("encoder", "vgg16"), ("weights_sha256", "0" * 64), ("transform", {})):
        # As in a run of an earlier version, whose config has no checksum.
        changed = values | {"backbone": saved.backbone | {key: value}}
        write_json(run_dir / CONFIG_NAME, changed)
        with pytest.raises(MismatchError, match=f"has {key} .* but the run was trained on"):
            train(config_of(data, resume=True))
        with pytest.raises(MismatchError, match=f"has {key} .* but the run was trained on"):
            evaluate(EvalConfig(data=data, run="r"))


def test_checkpoint_of_another_run_is_refused(data, trained) -> None:
    shutil.rmtree(data / "runs")
    shutil.copytree(trained[1].folders[4], data / "runs/r")
    train(replace(config_of(data, seed=1), run="s"))
    shutil.copy(data / "runs/s" / LAST_NAME, data / "runs/r" / LAST_NAME)
    with pytest.raises(DamagedFileError, match=r"last\.safetensors is damaged: .* another run"):
        train(config_of(data))


def test_folder_deleted_during_training_ends_it_and_leaves_nothing(data, monkeypatch) -> None:
    shutil.rmtree(data / "runs")
    decode = Trainer.decode_validation

    def delete(self: Trainer) -> list[str]:
        shutil.rmtree(self.run_dir, ignore_errors=True)
        return decode(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "decode_validation", delete)
        with pytest.raises(MissingArtifactError, match="moved or deleted during") as caught:
            train(config_of(data))
    command = advised_command(str(caught.value))
    assert command[:3] == ["train", "--dataset", "scenes"] and "--hidden-size" in command
    assert not (data / "runs/r").exists()
    train(config_of(data))


@pytest.mark.parametrize("name", [name for name, _, _ in STATES[:5]] + [MANIFEST_NAME])
def test_full_disk_is_one_line_and_training_continues(
    data, trained, monkeypatch, name: str
) -> None:
    shutil.rmtree(data / "runs")
    rename = Path.replace

    def fill(path: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fill)
        with pytest.raises(StorageError, match=rf"{name} could not be written: No space left"):
            train(config_of(data))
    assert not list((data / "runs/r").glob(".*.partial*"))
    try:
        train(config_of(data))
    except ShowTellError:
        train(config_of(data, resume=True))
    assert_finished(data, trained[0] / "runs/r")


def test_old_run_without_checksums_is_resumed(data, trained) -> None:
    shutil.rmtree(data / "runs")
    run_dir = Path(shutil.copytree(trained[1].folders[4], data / "runs/r"))
    _, metadata = read_tensors(run_dir / LAST_NAME)
    progress = re.sub(r', "log_bytes.*}', "}", metadata["progress"])
    old = {"progress": progress, "scaler": metadata["scaler"]}
    save_file(load_file(run_dir / LAST_NAME), run_dir / LAST_NAME, old)
    save_file(load_file(run_dir / BEST_NAME), run_dir / BEST_NAME)
    config = RunConfig.read(run_dir)
    values = vars(config) | {"decoder": vars(config.decoder)}
    del values["vocab_checksum"]
    write_json(run_dir / CONFIG_NAME, values)
    train(config_of(data, resume=True))
    assert_finished(data, trained[0] / "runs/r")


def test_up_to_date_run_and_evaluation_write_nothing(data, scorers, monkeypatch, capsys) -> None:
    evaluate(EvalConfig(data=data, run="r"))
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    for name in ("replace", "mkdir", "unlink", "touch"):
        monkeypatch.setattr(Path, name, lambda *_, **__: pytest.fail("wrote"))
    for resume in (False, True):
        train(config_of(data, resume=resume))
    evaluate(EvalConfig(data=data, run="r"))
    said = capsys.readouterr().out
    assert said.count("is up to date") == 2 and said.count("is finished") == 1
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
