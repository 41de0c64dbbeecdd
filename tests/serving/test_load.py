import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from showtell.features.encoders.backbone import Backbone
from showtell.model.decoders.base import Decoder
from showtell.model.runs.layout import BEST_NAME
from showtell.model.runs.run import RunConfig
from showtell.model.runs.tensors import read_tensors, write_tensors
from showtell.pipeline.stage.errors import (
    MismatchError,
    MissingArtifactError,
)
from showtell.serving.load import load


def test_load_takes_a_folder_a_name_or_the_newest_run(
    data, captioner, image_paths, run_dir
) -> None:
    expected = captioner.caption(image_paths[:4])
    for options in (
        {"model": data / "runs/r"},
        {"model": str(run_dir)},
        {"model": "r", "data": str(data)},
        {"data": data},
    ):
        loaded = load(**options, device="cpu", precision="fp32")
        assert loaded.caption(image_paths[:4]) == expected
        assert not loaded.decoder.training


def test_run_with_grids_needs_an_encoder_with_grids(run_dir, monkeypatch) -> None:
    monkeypatch.setattr(Decoder, "uses_grid", True)
    monkeypatch.setattr(Backbone, "has_grid", False)
    with pytest.raises(
        MismatchError, match=r"needs grid features, which resnet18-\S+ does not have"
    ):
        load(run_dir, device="cpu")


def test_unknown_run_is_refused(data, tmp_path) -> None:
    with pytest.raises(MissingArtifactError, match=r"no run 'x' with weights \(found: r\)"):
        load("x", data=data)
    with pytest.raises(MissingArtifactError, match="found none"):
        load("x", data=tmp_path)


def change_backbone(run_dir: Path, **values: object) -> None:
    (run_dir / "manifest.json").unlink()
    config = RunConfig.read(run_dir)
    replace(config, backbone=config.backbone | values).write(run_dir)
    tensors, _ = read_tensors(run_dir / BEST_NAME)
    write_tensors(run_dir / BEST_NAME, tensors)  # without the config, as in earlier versions


def test_other_weights_are_refused(run_dir, tmp_path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(1)
    torch.save(resnet18().state_dict(), tmp_path / "other.pth")
    change_backbone(run_dir, weights=str(tmp_path / "other.pth"))
    with pytest.raises(MismatchError) as caught:
        load(run_dir, device="cpu")
    trained_with = json.loads((run_dir / "config.json").read_text())["backbone"]["weights_sha256"]
    assert str(run_dir) in str(caught.value)
    assert f"was trained with {trained_with[:12]}" in str(caught.value)


def test_missing_weights_are_named(run_dir, tmp_path) -> None:
    change_backbone(run_dir, weights=str(tmp_path / "gone.pth"))
    with pytest.raises(MissingArtifactError, match=r"gone\.pth does not exist\. Give --weights"):
        load(run_dir, device="cpu")
