import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.evaluate import evaluate, read_captions
from showtell.model.train import train
from showtell.model.training.data import load_training_data
from showtell.pipeline.stage.errors import MismatchError, MissingArtifactError
from showtell.pipeline.text.vocab import Vocab

SIZES = {"hidden_size": 16, "embed_size": 16, "batch_size": 32, "epochs": 1, "device": "cpu"}


def config_of(data: Path, **options: object) -> TrainConfig:
    return TrainConfig(data=data, dataset="scenes", **SIZES | options)


def write_captions(path: Path, captions: dict[int, str]) -> Path:
    rows = [{"image_id": key, "caption": text} for key, text in captions.items()]
    path.write_text(json.dumps(rows))
    return path


def test_captions_are_added_to_those_of_their_images(scenes, tmp_path) -> None:
    plain = load_training_data(config_of(scenes))
    first, second = np.unique(plain.captions.image_ids)[:2].tolist()
    texts = {first: "There is a red circle!", second: ""}
    path = write_captions(tmp_path / "more.json", texts)
    more = load_training_data(config_of(scenes, extra_captions=path))
    vocab = Vocab.read(scenes / "scenes/captions/vocab.json")
    added = list(more.captions)[len(plain.captions) :]
    assert [tokens.tolist() for tokens in added] == [
        vocab.encode(["there", "is", "a", "red", "circle"])
    ]
    assert more.captions.image_ids[len(plain.captions) :].tolist() == [first]
    assert len(set(more.captions.caption_ids.tolist())) == len(more.captions)
    before = [tokens.tolist() for tokens in plain.captions]
    assert [tokens.tolist() for tokens in more.captions][: len(before)] == before
    assert "extra_captions" in more.inputs and "extra_captions" not in plain.inputs


def test_captions_of_other_splits_are_refused(scenes, tmp_path) -> None:
    val = load_training_data(config_of(scenes)).val_image_ids[0]
    path = write_captions(tmp_path / "more.json", {val: "a red circle"})
    message = rf"--extra-captions .*more.json has a caption of image {val}, which is not in"
    with pytest.raises(MismatchError, match=message):
        load_training_data(config_of(scenes, extra_captions=path))
    with pytest.raises(MissingArtifactError, match=r"missing\.json does not exist"):
        load_training_data(config_of(scenes, extra_captions=tmp_path / "missing.json"))


def test_run_learns_from_its_own_captions_of_the_train_split(scenes) -> None:
    """The whole way of distillation: train, caption the train split with consensus, train on."""
    train(config_of(scenes, run="teacher"))
    evaluate(EvalConfig(data=scenes, run=["teacher"], split="train", beam=2, consensus=10))
    (folder,) = (scenes / "runs/teacher/eval").iterdir()
    assert len(read_captions(folder)) == 40
    copy = shutil.copy(folder / "captions.json", scenes / "own.json")
    options = {"init": "teacher", "extra_captions": Path(copy), "run": "student"}
    manifest = train(config_of(scenes, **options))
    assert manifest.counts["num_captions"] == 240
    assert manifest.inputs["extra_captions"]
    again = train(config_of(scenes, **options))
    assert again == manifest  # up to date
    write_captions(Path(copy), {next(iter(read_captions(folder))): "a circle"})
    with pytest.raises(MismatchError, match="extra_captions"):
        train(config_of(scenes, **options))
