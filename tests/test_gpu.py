"""What a GPU computes, against the same on the CPU in float64; skipped where there is no GPU."""

import copy
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import load_file

from showtell.model.config import TrainConfig
from showtell.model.decoders.show_tell import CELLS
from showtell.model.generation.beam import beam_search
from showtell.model.generation.options import DecodingOptions
from showtell.model.train import Trainer, train
from showtell.model.training.batches import CaptionBatch
from showtell.model.training.loss import caption_loss
from showtell.pipeline.stage.manifest import Manifest

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PRECISIONS = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def loss_and_gradients(decoder, batch, dtype=None, scale=1.0):
    """The mean loss of a batch, and the gradient of each weight."""
    device = decoder.output_bias.device
    moved = {
        field.name: getattr(batch, field.name).to(device)
        for field in fields(batch)
        if field.name not in ("rows", "lengths")
    }
    decoder.zero_grad()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype not in (None, torch.float32)):
        loss = caption_loss(decoder, replace(batch, **moved), 0.1)
    (loss * scale).backward()
    named = decoder.named_parameters()
    return loss.detach().double().cpu(), {
        name: weight.grad.double().cpu() / scale for name, weight in named
    }


def make_batch(attention, size=512, num_steps=12, num_words=1000):
    torch.manual_seed(1)
    shape = (size, 4, 32) if attention != "none" else (size, 32)
    words = torch.randint(4, num_words, (size, num_steps + 1))
    lengths = torch.randint(5, num_steps + 1, (size,)).sort(descending=True).values
    lengths[0] = num_steps
    real = torch.arange(num_steps) < lengths[:, None]
    rows = torch.arange(size)
    return CaptionBatch(
        features=torch.rand(shape).half(),
        rows=rows,
        owners=rows,
        inputs=words[:, :-1],
        targets=words[:, 1:],
        lengths=lengths,
        real=real.flatten().nonzero()[:, 0],
    )


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("attention", ["none", "soft", "adaptive"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_float64(random_decoder, cell, attention, dtype):
    """Of a mean over thousands of words: far below what float16 can hold without a scale."""
    exact = random_decoder(
        cell=cell, attention=attention, feature_dim=32, vocab_size=1000,
        embed_size=64, hidden_size=64, dropout=0.0,
    ).train()  # fmt: skip
    batch = make_batch(attention)
    loss, gradients = loss_and_gradients(exact, batch)
    on_gpu = copy.deepcopy(exact).float().to(GPU)
    scale = 2.0**12 if dtype == torch.float16 else 1.0
    found_loss, found = loss_and_gradients(on_gpu, batch, dtype, scale)
    assert abs(found_loss - loss) < PRECISIONS[dtype] * loss
    whole = torch.cat([gradients[name].flatten() for name in gradients])
    ours = torch.cat([found[name].flatten() for name in gradients])
    assert torch.dist(ours, whole) < PRECISIONS[dtype] * whole.norm()
    # The matrices of the cell by themselves: the embedding's gradient is much the largest.
    for name in ("cell.weight_hh_l0", "cell.weight_ih_l0"):
        difference = torch.dist(found[name], gradients[name])
        assert difference < 5 * PRECISIONS[dtype] * gradients[name].norm(), name


@pytest.mark.parametrize("attention", ["none", "soft", "adaptive"])
@pytest.mark.parametrize("cell", CELLS)
def test_beam_search_finds_the_same(random_decoder, cell, attention):
    decoder = random_decoder(cell=cell, attention=attention)
    features = torch.rand((7, 4, 6) if attention != "none" else (7, 6), dtype=torch.float64)
    options = DecodingOptions(beam=5, max_length=8)
    expected = beam_search(decoder, decoder.init_state(features), options)
    decoder = decoder.to(GPU)
    found = beam_search(decoder, decoder.init_state(features.to(GPU)), options)
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.token_ids for h in ours] == [h.token_ids for h in theirs]
        assert [h.log_prob for h in ours] == pytest.approx([h.log_prob for h in theirs], rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_goes_on_where_it_was_stopped(scenes, monkeypatch, precision):
    """Up to the order of a GPU's sums, to the weights of a training that was never stopped."""
    config = TrainConfig(
        data=scenes, dataset="scenes", run="r", hidden_size=32, embed_size=32, batch_size=16,
        epochs=3, precision=precision, dropout=0.0, val_images=2,
    )  # fmt: skip
    train(replace(config, run="whole"))
    save, num_saved = Trainer._save_checkpoint, 0

    def save_and_stop(trainer):
        nonlocal num_saved
        save(trainer)
        num_saved += 1
        if num_saved == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_save_checkpoint", save_and_stop)
        train(replace(config, save_every_s=0.0))
    assert Manifest.read(scenes / "runs/r") is None
    assert train(replace(config, resume=True)).counts["num_epochs"] == 3
    ours, whole = (load_file(scenes / f"runs/{run}/last.safetensors") for run in ("r", "whole"))
    for name in whole:
        if name.startswith("decoder."):
            torch.testing.assert_close(ours[name], whole[name], rtol=0.02, atol=0.002)


def test_run_is_evaluated(showtell, scenes, scorers):
    status, output = showtell("train", "--data", scenes, "--dataset", "scenes", "--epochs", 1)
    assert status == 0, output
    status, output = showtell("eval", "--data", scenes, "--beam", 5)
    assert status == 0 and len(scorers) == 1, output
