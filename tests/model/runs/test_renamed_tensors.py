"""Runs and checkpoints written by version 0.1 still load; see tests/data/old_runs/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from showtell.model.config import TrainConfig
from showtell.model.decoders.inputs import Inputs
from showtell.model.decoders.precision import Precision
from showtell.model.decoders.registry import create_decoder
from showtell.model.generation.generate import decode
from showtell.model.generation.options import DecodingOptions
from showtell.model.runs.checkpoint import load_checkpoint
from showtell.model.runs.renamed_tensors import with_current_names
from showtell.model.runs.run import RunConfig, load_run
from showtell.model.training.optim import make_optimizer

OLD_RUNS = Path(__file__).parents[2] / "data" / "old_runs"
CPU = torch.device("cpu")

each_run = pytest.mark.parametrize("name", ["none-gru", "soft-lstm", "adaptive-gru"])


@each_run
def test_old_run_writes_the_captions_it_always_wrote(name: str) -> None:
    _, _, decoder = load_run(OLD_RUNS / name, CPU)
    expected = np.load(OLD_RUNS / name / "expected.npz")
    features = torch.from_numpy(expected["features"])
    for key, beam in (("greedy", 1), ("beam3", 3)):
        options = DecodingOptions(beam=beam)
        (found,) = decode(decoder, [Inputs(features)], Precision("fp32", CPU), options)
        captions = [list(hypotheses[0].token_ids) for hypotheses in found]
        assert captions == [[t for t in row if t] for row in expected[key].tolist()]
        log_probs = [hypotheses[0].log_prob for hypotheses in found]
        np.testing.assert_allclose(log_probs, expected[f"{key}_log_probs"], rtol=1e-4)


@each_run
def test_old_run_computes_the_logits_it_always_computed(name: str) -> None:
    _, _, decoder = load_run(OLD_RUNS / name, CPU)
    expected = np.load(OLD_RUNS / name / "expected.npz")
    features, inputs = (torch.from_numpy(expected[key]) for key in ("features", "inputs"))
    with torch.no_grad():
        logits = decoder.logits(decoder(features[:1], inputs[None]))
    np.testing.assert_allclose(logits[0].numpy(), expected["logits"], rtol=1e-4, atol=1e-4)


def test_old_checkpoint_restores_weights_and_optimizer() -> None:
    run_dir = OLD_RUNS / "adaptive-gru"
    decoder = create_decoder(RunConfig.read(run_dir).decoder)
    optimizer = make_optimizer(decoder, TrainConfig())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    progress = load_checkpoint(run_dir / "last.safetensors", decoder, optimizer, scaler)
    assert progress.step > 0
    # The optimizer keeps its state by index: the order of the parameters must not have changed.
    old_names = json.loads((run_dir / "optimizer.json").read_text())
    expected = list(with_current_names({name: torch.empty(0) for name in old_names}))
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    groups = optimizer.param_groups
    assert [names[id(p)] for group in groups for p in group["params"]] == expected
    for parameter in decoder.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_only_old_names_are_changed() -> None:
    names = ["image.weight", "average.module.gate.bias", "attention.key.weight", "output_bias"]
    found = with_current_names({name: torch.empty(0) for name in names})
    assert list(found) == [
        "image_proj.weight",
        "average.module.context_gate.bias",
        "attention.key.weight",
        "output_bias",
    ]
