"""Results on a GPU agree with those on the CPU in float64.

Skipped without a GPU. `SHOWTELL_TEST_DEVICE=cpu` runs the same tests on the CPU, to try the code.
"""

import copy
import os
from dataclasses import fields, replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from showtell.features.encoders.caffe import caffe_transform
from showtell.features.reading.batches import read_batches, split_into_batches
from showtell.features.store import FeatureStore
from showtell.model.config import TrainConfig
from showtell.model.decoders.show_tell import CELLS
from showtell.model.generation.beam import beam_search
from showtell.model.generation.options import DecodingOptions
from showtell.model.train import train
from showtell.model.training import batches as batches_module
from showtell.model.training.batches import CaptionBatch, CaptionBatches
from showtell.model.training.data import load_training_data
from showtell.model.training.loss import caption_loss
from showtell.model.training.trainer import Trainer
from showtell.pipeline.images.image_files import ImageFiles
from showtell.pipeline.stage.manifest import Manifest

GPU = torch.device(os.environ.get("SHOWTELL_TEST_DEVICE", "cuda"))

pytestmark = pytest.mark.skipif(
    GPU.type == "cuda" and not torch.cuda.is_available(), reason="no GPU"
)

# Largest relative error in each precision.
TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def loss_and_gradients(decoder, batch, dtype=None, scale=1.0):
    """Return the mean loss of a batch and the gradient of each weight, both in float64."""
    device = decoder.output_bias.device
    moved = {
        field.name: getattr(batch, field.name).to(device)
        for field in fields(batch)
        if field.name not in ("image_rows", "lengths")
    }
    decoder.zero_grad()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype not in (None, torch.float32)):
        loss = caption_loss(decoder, replace(batch, **moved), 0.1)
    (loss * scale).backward()
    return loss.detach().double().cpu(), {
        name: weight.grad.double().cpu() / scale for name, weight in decoder.named_parameters()
    }


def make_batch(attention, size=512, num_steps=12, num_words=1000):
    torch.manual_seed(1)
    shape = (size, 4, 32) if attention != "none" else (size, 32)
    words = torch.randint(4, num_words, (size, num_steps + 1))
    lengths = torch.randint(5, num_steps + 1, (size,)).sort(descending=True).values
    lengths[0] = num_steps
    nonpad = torch.arange(num_steps) < lengths[:, None]
    return CaptionBatch(
        features=torch.rand(shape).half(),
        image_rows=torch.arange(size),
        image_index=torch.arange(size),
        inputs=words[:, :-1],
        targets=words[:, 1:],
        lengths=lengths,
        nonpad=nonpad.flatten().nonzero()[:, 0],
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("attention", ["none", "soft", "adaptive"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_match_float64_on_the_cpu(random_decoder, cell, attention, dtype) -> None:
    exact = random_decoder(
        cell=cell, attention=attention, feature_dim=32, vocab_size=1000,
        embed_size=64, hidden_size=64, dropout=0.0,
    ).train()  # fmt: skip
    batch, tolerance = make_batch(attention), TOLERANCES[dtype]
    expected_loss, expected = loss_and_gradients(exact, batch)
    on_gpu = copy.deepcopy(exact).float().to(GPU)
    # Gradients of a mean over thousands of words underflow in float16 without a scale.
    scale = 2.0**12 if dtype == torch.float16 else 1.0
    loss, gradients = loss_and_gradients(on_gpu, batch, dtype, scale)
    assert abs(loss - expected_loss) < tolerance * expected_loss
    expected_all = torch.cat([expected[name].flatten() for name in expected])
    all_gradients = torch.cat([gradients[name].flatten() for name in expected])
    assert torch.dist(all_gradients, expected_all) < tolerance * expected_all.norm()
    # Check the cell on its own, because the embedding's gradient is much larger.
    for name in ("cell.weight_hh_l0", "cell.weight_ih_l0"):
        error = torch.dist(gradients[name], expected[name])
        assert error < 5 * tolerance * expected[name].norm(), name


@pytest.mark.parametrize("attention", ["none", "soft", "adaptive"])
@pytest.mark.parametrize("cell", CELLS)
def test_beam_search_finds_the_same_captions(random_decoder, cell, attention) -> None:
    decoder = random_decoder(cell=cell, attention=attention)
    features = torch.rand((7, 4, 6) if attention != "none" else (7, 6), dtype=torch.float64)
    options = DecodingOptions(beam=5, max_length=8)
    on_cpu = beam_search(decoder, decoder.init_state(features), options)
    decoder = decoder.to(GPU)
    on_gpu = beam_search(decoder, decoder.init_state(features.to(GPU)), options)
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        assert [h.token_ids for h in found] == [h.token_ids for h in expected]
        log_probs = [h.log_prob for h in expected]
        assert [h.log_prob for h in found] == pytest.approx(log_probs, rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_stopped_training_resumes_to_the_same_weights(scenes, monkeypatch, precision) -> None:
    config = TrainConfig(
        data=scenes, dataset="scenes", run="r", hidden_size=32, embed_size=32, batch_size=16,
        epochs=3, precision=precision, dropout=0.0, val_images=2, device=GPU.type,
    )  # fmt: skip
    train(replace(config, run="whole"))
    save, num_saved = Trainer._save_checkpoint, 0

    def save_and_stop(trainer, log):
        nonlocal num_saved
        save(trainer, log)
        num_saved += 1
        if num_saved == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_save_checkpoint", save_and_stop)
        train(replace(config, save_every_s=0.0))
    assert Manifest.read(scenes / "runs/r") is None
    assert train(replace(config, resume=True)).counts["num_epochs"] == 3
    resumed, whole = (load_file(scenes / f"runs/{run}/last.safetensors") for run in ("r", "whole"))
    resumed, whole = (
        torch.cat([run[name].flatten() for name in sorted(run) if name.startswith("model.")])
        for run in (resumed, whole)
    )
    # A GPU adds in varying order.
    assert torch.dist(resumed, whole) < 0.02 * whole.norm()


def test_one_process_of_torchrun_trains_the_same_weights(scenes, monkeypatch) -> None:
    config = TrainConfig(
        data=scenes, dataset="scenes", run="alone", hidden_size=32, embed_size=32, batch_size=16,
        epochs=2, precision="fp32", val_images=2, device=GPU.type,
    )  # fmt: skip
    train(config)
    environment = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    train(replace(config, run="group"))  # with NCCL on a GPU
    alone, group = (
        torch.cat([value.flatten() for name, value in sorted(weights.items()) if "model." in name])
        for run in ("alone", "group")
        for weights in (load_file(scenes / f"runs/{run}/last.safetensors"),)
    )
    # A GPU adds in varying order.
    assert torch.dist(alone, group) < 0.02 * alone.norm()


def test_decoded_batches_are_pinned_and_stay_intact(scenes) -> None:
    paths = sorted((scenes / "scenes" / "raw" / "images").glob("*.jpg"))[:40]
    names, spans = [path.name for path in paths], split_into_batches(0, len(paths), 8)

    def read(for_gpu: bool):
        return read_batches(
            ImageFiles(paths[0].parent),
            np.arange(len(names)),
            names,
            caffe_transform(),
            spans,
            num_workers=2,
            for_gpu=for_gpu,
        )

    expected = [batch.pixels.clone() for batch in read(for_gpu=False)]
    # The buffers are reused while copies to the GPU may still be running.
    copied = []
    for batch in read(for_gpu=True):
        assert batch.pixels.is_pinned() or GPU.type != "cuda"
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
        copied.append(batch.pixels.to(GPU, non_blocking=True, copy=True))
    for found, pixels in zip(copied, expected, strict=True):
        assert found.cpu().equal(pixels)


@pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="no pycocoevalcap")
@pytest.mark.parametrize("has_room", [True, False])
@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("is_mapped", [True, False])
def test_features_that_do_not_fit_the_gpu_are_copied_batch_by_batch(
    scenes, monkeypatch, is_mapped: bool, window: int | None, has_room: bool
) -> None:
    monkeypatch.setattr(batches_module, "has_room", lambda *_: has_room)
    data = load_training_data(TrainConfig(data=scenes, dataset="scenes"))
    store = FeatureStore.load(data.store.directory, is_mapped=is_mapped)
    expected = CaptionBatches(store, data.captions, 16, torch.device("cpu"), window=window)
    batches = CaptionBatches(store, data.captions, 16, GPU, window=window)
    for positions, same in zip(expected.plan_epoch(0), batches.plan_epoch(0), strict=True):
        assert torch.equal(positions, same)
        batch, other = batches.gather(positions), expected.gather(positions)
        assert batch.features.device.type == GPU.type
        assert torch.equal(batch.features.cpu(), other.features)
        assert torch.equal(batch.inputs.cpu(), other.inputs)


def test_run_is_trained_and_evaluated(showtell, scenes, scorers) -> None:
    options = ("--data", scenes, "--device", GPU.type)
    status, output = showtell("train", *options, "--dataset", "scenes", "--epochs", 1)
    assert status == 0, output
    status, output = showtell("eval", *options, "--beam", 5)
    assert status == 0 and len(scorers) == 1, output
