"""The model that comes with showtell."""

from pathlib import Path

import matplotlib
import pytest
import torch

from showtell.features.encoders import hub
from showtell.features.encoders.caffe import CACHE_NAME
from showtell.model.runs.find import DEFAULT_MODEL, find_model
from showtell.model.runs.run import load_run
from showtell.model.verify import bundle_checks
from showtell.pipeline.layout import BUILT_IN
from showtell.serving.load import load

FOLDER = BUILT_IN / DEFAULT_MODEL
MAX_BYTES = 12_000_000


def test_built_in_model_is_whole_and_small() -> None:
    checks = list(bundle_checks(FOLDER))
    assert len(checks) == 5 and all(check.find_problem() is None for check in checks)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES


def test_built_in_model_names_no_folder_and_its_license() -> None:
    for path in FOLDER.glob("*.json"):
        assert '"/' not in path.read_text("utf-8"), path
    card = (FOLDER / "README.md").read_text("utf-8")
    assert "license_name: research-use-only" in card
    assert "| val | beam5-penalty1.0 | 1000 |" in card


def test_built_in_decoder_has_a_vector_per_word() -> None:
    _, vocab, decoder = load_run(FOLDER, torch.device("cpu"))
    assert len(vocab) == decoder.output_bias.shape[0]
    assert {"a", "dog", "man", "running"} <= set(vocab.words)


@pytest.mark.skipif(
    not (hub.checkpoints_dir() / CACHE_NAME).exists(), reason="the encoder's weights are not cached"
)
def test_built_in_model_captions_a_photograph(tmp_path) -> None:
    assert find_model(tmp_path, None) == FOLDER
    photo = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
    (caption,) = load(data=tmp_path, device="cpu").caption(photo)
    assert "uniform" in caption
