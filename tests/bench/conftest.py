"""Datasets to measure on: drawn scenes with a trained run, and a dataset in COCO's layout."""

import json
from pathlib import Path

import pytest
from PIL import Image

from showtell.model.config import TrainConfig
from showtell.model.train import train
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.prepare import prepare


@pytest.fixture(autouse=True)
def limits_are_measured_briefly(monkeypatch) -> None:
    """Repeat matrix products and reads for 0.05 s, not for seconds: no test needs their speed."""
    from showtell.bench import limits

    measure = limits.mean_seconds
    monkeypatch.setattr(
        limits, "mean_seconds", lambda work, seconds: measure(work, min(seconds, 0.05))
    )


@pytest.fixture
def measured_here(monkeypatch) -> None:
    """Let `bench` measure in this process, where a new one would import torch for each stage."""
    from showtell.bench import run

    monkeypatch.setattr(run, "measure_in_new_process", run.measure_stage)


@pytest.fixture
def trained(scenes) -> Path:
    """A data folder with drawn scenes, their features and a run."""
    train(TrainConfig(data=scenes, dataset="scenes", hidden_size=16, embed_size=8, epochs=1))
    return scenes


@pytest.fixture
def coco(trained, tmp_path) -> Path:
    """A dozen images in COCO's layout, prepared as coco2017 in the data folder of `trained`."""
    images, annotations = [], []
    for folder in ("annotations", "train2017"):
        (tmp_path / folder).mkdir()
    for image_id in range(1, 13):
        name = f"{image_id:012}.jpg"
        Image.new("RGB", (640, 480), (20 * image_id, 80, 90)).save(tmp_path / "train2017" / name)
        images.append({"id": image_id, "file_name": name})
        annotations += [{"image_id": image_id, "caption": "A dog runs."}] * 5
    content = {"images": images, "annotations": annotations}
    (tmp_path / "annotations/captions_train2017.json").write_text(json.dumps(content))
    prepare(PrepareConfig(data=trained, dataset="coco2017", source=tmp_path))
    return tmp_path
