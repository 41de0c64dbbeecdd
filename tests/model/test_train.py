import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from showtell.features.config import FeaturesConfig
from showtell.model.config import TrainConfig
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.decoders.show_tell import ShowTell
from showtell.model.generation import generate as decoding
from showtell.model.runs.run import RunConfig
from showtell.model.train import train
from showtell.model.training import trainer as trainer_module
from showtell.model.training.batches import CaptionBatches
from showtell.model.training.data import decoder_config, load_training_data
from showtell.model.training.loss import caption_loss
from showtell.model.training.optim import learning_rate_at, make_optimizer
from showtell.model.training.resume import default_run_name
from showtell.model.training.trainer import Trainer
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.stage.errors import (
    MismatchError,
    MissingArtifactError,
    ShowTellError,
    StoppedError,
)

CPU = torch.device("cpu")


def tiny_config(data: Path, **options: object) -> TrainConfig:
    sizes = {"hidden_size": 16, "embed_size": 16, "batch_size": 16, "epochs": 3}
    return TrainConfig(data=data, dataset="scenes", run="r", **(sizes | options))


def weights_of(data: Path, run: str, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(data / "runs" / run / f"{name}.safetensors")


def assert_same_weights(data: Path, first: str, second: str) -> None:
    for name in ("best", "last"):
        left, right = weights_of(data, first, name), weights_of(data, second, name)
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]), key


def metrics_of(data: Path, run: str) -> list[dict[str, float]]:
    return [json.loads(x) for x in (data / "runs" / run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn", "transformer"])
def test_decoder_overfits_one_batch(grid_scenes, cell: str) -> None:
    config = tiny_config(grid_scenes, cell=cell, dropout=0.0, hidden_size=64, embed_size=64)
    data = load_training_data(config)
    torch.manual_seed(0)
    decoder = create_decoder(decoder_config(config, data))
    grid = decoder.uses_grid
    batch = CaptionBatches(data.store, data.captions, 8, CPU, grid=grid).gather(torch.arange(8))
    optimizer = make_optimizer(decoder, replace(config, learning_rate=1e-2))
    before = caption_loss(decoder, batch).item()
    for _ in range(150):
        optimizer.zero_grad()
        caption_loss(decoder, batch).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 5.0)
        optimizer.step()
    # Some loss remains, because captions of the same image differ.
    assert caption_loss(decoder, batch).item() < before / 4


def test_validation_with_a_wide_beam_uses_small_batches(scenes, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "MAX_ROWS", 12)
    sizes, look = [], ShowTell.init_state
    monkeypatch.setattr(
        ShowTell, "init_state", lambda self, *args: sizes.append(len(args[0])) or look(self, *args)
    )
    train(tiny_config(scenes, epochs=1, val_beam=4, val_images=5))
    assert sizes == [3, 2]


def test_train_lowers_the_loss_and_writes_a_run(scenes) -> None:
    manifest = train(tiny_config(scenes, epochs=8, learning_rate=1e-2))
    run_dir = scenes / "runs" / "r"
    records = metrics_of(scenes, "r")
    losses = [record["loss"] for record in records if "loss" in record]
    scores = [record["val_CIDEr"] for record in records if "val_CIDEr" in record]
    assert losses[-1] < losses[0]
    assert len(scores) == 8
    assert manifest.details["CIDEr"] == pytest.approx(max(scores))
    assert scores.index(max(scores)) + 1 == manifest.counts["best_epoch"]
    assert {"config.json", "vocab.json", "best.safetensors", "last.safetensors"} <= {
        path.name for path in run_dir.iterdir()
    }
    assert list((run_dir / "tensorboard").iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "gru", "num_layers": 2},
        {"cell": "lstm", "attention": "soft", "ema": 0.7, "scheduled_sampling": 0.3},
        {"window": 8},
        {"attention": "soft", "window": 8},
        {"cell": "transformer", "num_layers": 2, "ema": 0.7, "scheduled_sampling": 0.3},
        {"init": "first", "scst": True, "ema": 0.7, "batch_size": 32, "xe_weight": 0.2},
    ],
    ids=str,
)
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(
    grid_scenes, monkeypatch, options: dict[str, object]
) -> None:
    scenes, options = grid_scenes, {"dropout": 0.3} | options
    if "init" in options:
        train(replace(tiny_config(scenes, cell="lstm", epochs=1), run="first"))
    train(tiny_config(scenes, **options))
    shutil.move(scenes / "runs" / "r", scenes / "runs" / "whole")
    real_clip, stop_at = torch.nn.utils.clip_grad_norm_, iter((5, 11))
    next_stop, calls = next(stop_at), 0

    def clip_that_is_interrupted(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == next_stop:
            signal.raise_signal(signal.SIGINT)  # like Ctrl-C in the middle of a step
        return real_clip(*args)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_that_is_interrupted)
    match = r"stopped by SIGINT at step 5\. Run 'showtell train"
    with pytest.raises(StoppedError, match=match) as stopped:
        train(tiny_config(scenes, **options))
    assert stopped.value.exit_status == 130
    next_stop, calls = next(stop_at), 0
    with pytest.raises(StoppedError, match="at step 16"):
        train(TrainConfig(data=scenes, dataset="scenes", run="r", resume=True))
    next_stop = -1
    torch.manual_seed(999)  # the random state before resuming must not matter
    train(TrainConfig(data=scenes, dataset="scenes", run="r", resume=True))
    assert_same_weights(scenes, "r", "whole")
    # Loss and reward are means over the steps since the last record, or since resuming.
    others = ("loss", "reward", "checksum")
    without_time = [
        [
            {k: v for k, v in record.items() if "second" not in k and k not in others}
            for record in metrics_of(scenes, run)
        ]
        for run in ("r", "whole")
    ]
    assert without_time[0] == without_time[1]


def test_run_stopped_in_a_validation_continues_with_it(scenes, monkeypatch) -> None:
    train(tiny_config(scenes))
    shutil.move(scenes / "runs" / "r", scenes / "runs" / "whole")
    decode = Trainer.decode_validation

    def decode_and_stop(self: Trainer) -> list[str]:
        captions = decode(self)
        if self.progress.epoch == stop_at:
            signal.raise_signal(number)
            raise AssertionError("the validation went on")
        return captions

    monkeypatch.setattr(Trainer, "decode_validation", decode_and_stop)
    for stop_at, number in ((1, signal.SIGTERM), (2, signal.SIGINT), (0, 0)):
        config = tiny_config(scenes, resume=stop_at != 1)
        if not stop_at:
            train(config)
            continue
        with pytest.raises(StoppedError, match=f"stopped by {number.name} at step") as stopped:
            train(config)
        assert stopped.value.exit_status == 128 + number
    assert_same_weights(scenes, "r", "whole")
    assert [record["step"] for record in metrics_of(scenes, "r") if "val_CIDEr" in record] == [
        record["step"] for record in metrics_of(scenes, "whole") if "val_CIDEr" in record
    ]


def test_ema_keeps_the_running_mean_of_the_weights(scenes, monkeypatch) -> None:
    train(tiny_config(scenes, epochs=1, ema=0.8))
    weights, kept = weights_of(scenes, "r"), weights_of(scenes, "r", "best")
    for name, value in kept.items():
        assert torch.equal(value, weights[f"average.module.{name}"])
    assert not torch.equal(kept["output_bias"], weights["model.output_bias"])
    # With a decay near 0 the mean equals the weights.
    train(replace(tiny_config(scenes, epochs=1, ema=1e-12), run="forgets"))
    train(replace(tiny_config(scenes, epochs=1), run="plain"))
    plain = weights_of(scenes, "plain", "best")
    for name, value in weights_of(scenes, "forgets", "best").items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-7)


def test_scst_starts_from_a_run_and_is_named_after_it(showtell, scenes) -> None:
    train(tiny_config(scenes, cell="lstm", learning_rate=1e-2))
    common = ("train", "--data", scenes, "--init", "r", "--scst", "--epochs", 1)
    status, output = showtell(*common, "--learning-rate", 1e-9, "--weight-decay", 0)
    assert status == 0, output
    config = json.loads((scenes / "runs/r-scst/config.json").read_text())
    assert config["decoder"]["cell"] == "lstm" and config["decoder"]["hidden_size"] == 16
    before = weights_of(scenes, "r", "best")
    for name, value in weights_of(scenes, "r-scst", "best").items():  # the learning rate is near 0
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-6)
    assert default_run_name(tiny_config(scenes, init="r")) == "r-tuned"
    assert default_run_name(tiny_config(scenes)) == "scenes-gru"
    assert default_run_name(tiny_config(scenes, attention="soft")) == "scenes-gru-soft"
    assert default_run_name(tiny_config(scenes, cell="transformer")) == "scenes-transformer"
    status, output = showtell(*common, "--cell", "gru", "--run", "x")
    assert status == 1
    assert "--init r was trained with --cell lstm, got gru. Leave out --cell" in output
    with pytest.raises(MismatchError, match="--init r was trained with --num-layers 1, got 2"):
        train(replace(tiny_config(scenes, init="r", num_layers=2), run="x"))
    with pytest.raises(MissingArtifactError, match=r"no run 'nosuch' with weights \(found: r"):
        train(replace(tiny_config(scenes, init="nosuch"), run="x"))
    assert not (scenes / "runs/x/config.json").exists()


def test_transformer_is_continued_with_self_critical_training(grid_scenes) -> None:
    train(tiny_config(grid_scenes, cell="transformer", num_layers=2, epochs=1))
    options = {"init": "r", "scst": True, "learning_rate": 1e-9, "batch_size": 32, "epochs": 1}
    train(replace(tiny_config(grid_scenes, **options), run="x"))
    decoder = RunConfig.read(grid_scenes / "runs/x").decoder
    assert (decoder.cell, decoder.num_layers) == ("transformer", 2)
    before, after = (weights_of(grid_scenes, run, "best") for run in ("r", "x"))
    for name, value in after.items():  # the learning rate is near 0
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-6)


def test_missing_grids_and_views_name_the_command(scenes, grid_scenes) -> None:
    command = "Run 'showtell features --dataset scenes .*"
    for options, what, wanted in (
        ({"attention": "soft"}, "has no grids, which --attention soft needs", "--grid"),
        ({"cell": "transformer"}, "has no grids, which --cell transformer needs", "--grid"),
        ({"views": 2}, "has 1 views of each image, --views .* needs 2", "--views 2"),
    ):
        with pytest.raises(MissingArtifactError, match=f"{what}. {command}{wanted} .*--data"):
            train(tiny_config(scenes, **options))
    with pytest.raises(MissingArtifactError, match=f"needs 3. {command}--views 3 --grid .*--data"):
        train(tiny_config(grid_scenes, views=3))


def test_all_cached_views_are_used_by_default(grid_scenes) -> None:
    for run, views in (("one", 1), ("two", 2), ("all", None)):
        train(replace(tiny_config(grid_scenes, epochs=1, views=views), run=run))
    assert_same_weights(grid_scenes, "two", "all")
    one, two = (weights_of(grid_scenes, run, "best") for run in ("one", "two"))
    assert torch.equal(one["feature_mean"], two["feature_mean"])  # of the plain view
    assert not torch.equal(one["image_proj.weight"], two["image_proj.weight"])


def test_word_vectors_initialise_the_embedding(scenes, capsys) -> None:
    from showtell.pipeline.text.vocab import Vocab

    vocab = Vocab.read(scenes / "scenes/captions/vocab.json")
    words, path = vocab.words[4:8], scenes / "vectors.txt"
    given = torch.randn(4, 16)
    lines = [" ".join([w, *map(str, v.tolist())]) for w, v in zip(words, given, strict=True)]
    path.write_text("\n".join(lines))
    options = {"epochs": 1, "learning_rate": 1e-9, "weight_decay": 0.0}
    train(tiny_config(scenes, word_vectors=path, **options))
    assert f"train: 4 of {len(vocab)} words start from" in capsys.readouterr().out
    put, centred = weights_of(scenes, "r", "best")["embedding.weight"][4:8], given - given.mean(0)
    factor = (put * centred).sum() / centred.square().sum()
    torch.testing.assert_close(put, factor * centred, rtol=1e-3, atol=1e-4)
    train(tiny_config(scenes, word_vectors=path, **options))  # up to date
    path.write_text(path.read_text() + "\n")
    with pytest.raises(MismatchError, match=r"'word_vectors' has changed since .* was trained"):
        train(tiny_config(scenes, word_vectors=path, **options))
    with pytest.raises(MissingArtifactError, match=r"nosuch does not exist\. Give --word-vec"):
        train(replace(tiny_config(scenes, word_vectors=scenes / "nosuch"), run="s"))


def test_killed_run_resumes_from_its_last_checkpoint(scenes, monkeypatch) -> None:
    train(tiny_config(scenes))
    shutil.move(scenes / "runs" / "r", scenes / "runs" / "whole")
    real_validate = Trainer._validate

    def die_in_second_epoch(self: Trainer, log: object) -> None:
        if self.progress.epoch == 2:
            raise RuntimeError("power cut")
        real_validate(self, log)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate", die_in_second_epoch)
        with pytest.raises(RuntimeError):
            train(tiny_config(scenes))
    train(tiny_config(scenes, resume=True))
    assert_same_weights(scenes, "r", "whole")
    steps = [record["step"] for record in metrics_of(scenes, "r")]
    assert steps == sorted(steps)
    assert len([record for record in metrics_of(scenes, "r") if "val_CIDEr" in record]) == 3


def test_features_are_centred_on_the_train_images_only(scenes) -> None:
    train(tiny_config(scenes, epochs=1))
    data = load_training_data(tiny_config(scenes))
    rows = data.store.rows(sorted(set(data.captions.image_ids.tolist())))
    features = data.store.features[rows].float()
    expected = (features / features.norm(dim=1, keepdim=True)).mean(0)
    torch.testing.assert_close(weights_of(scenes, "r", "best")["feature_mean"], expected)


def test_seed_determines_the_run(scenes) -> None:
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(replace(tiny_config(scenes, epochs=1), run=run, seed=seed))
    assert_same_weights(scenes, "a", "b")
    assert any(
        not torch.equal(value, weights_of(scenes, "c")[name])
        for name, value in weights_of(scenes, "a").items()
        if name.startswith("model.")
    )


def test_both_shard_formats_give_the_same_run(scenes, random_weights) -> None:
    from showtell.features.extract import extract

    train(replace(tiny_config(scenes, epochs=1), run="hdf5"))
    extract(
        FeaturesConfig(
            data=scenes,
            dataset="scenes",
            encoder="resnet18",
            weights=str(random_weights),
            image_size=64,
            shard_size=25,
            format="parquet",
        )
    )
    assert not list(scenes.glob("scenes/features/*/*.h5"))
    train(replace(tiny_config(scenes, epochs=1), run="parquet"))
    assert_same_weights(scenes, "hdf5", "parquet")


def test_finished_run_is_not_trained_again(scenes, capsys) -> None:
    train(tiny_config(scenes, epochs=1))
    before = (scenes / "runs" / "r" / "last.safetensors").read_bytes()
    train(tiny_config(scenes, epochs=1))
    assert "up to date" in capsys.readouterr().out
    assert (scenes / "runs" / "r" / "last.safetensors").read_bytes() == before


def test_run_is_never_overwritten_by_another(scenes) -> None:
    train(tiny_config(scenes, epochs=1))
    before = (scenes / "runs" / "r" / "best.safetensors").read_bytes()
    with pytest.raises(MismatchError, match="exists and was trained with --cell gru, got lstm"):
        train(tiny_config(scenes, epochs=1, cell="lstm"))
    with pytest.raises(MismatchError, match=r"started with --dropout 0\.5, got 0\.1"):
        train(tiny_config(scenes, epochs=1, dropout=0.1, resume=True))
    assert (scenes / "runs" / "r" / "best.safetensors").read_bytes() == before


def test_finished_run_needs_its_weights_but_no_checkpoint(scenes, capsys) -> None:
    train(tiny_config(scenes, epochs=1))
    run_dir = scenes / "runs" / "r"
    (run_dir / "last.safetensors").unlink()
    train(tiny_config(scenes, epochs=1))
    assert "up to date" in capsys.readouterr().out
    with pytest.raises(MismatchError, match="exists and was trained with --cell gru, got lstm"):
        train(tiny_config(scenes, epochs=1, cell="lstm"))
    (run_dir / "best.safetensors").unlink()
    with pytest.raises(MissingArtifactError, match=r"best\.safetensors does not exist.* --resume"):
        train(tiny_config(scenes, epochs=1))


def test_resume_checks_options_given_at_their_default(showtell, scenes) -> None:
    train(tiny_config(scenes, epochs=1, cell="lstm"))
    common = ("train", "--dataset", "scenes", "--run", "r", "--resume", "--data", scenes)
    assert showtell(*common)[0] == 0
    status, output = showtell(*common, "--cell", "gru")
    assert status == 1 and "started with --cell lstm, got gru" in output


def test_missing_train_features_are_counted_or_refused(scenes, monkeypatch, capsys) -> None:
    from showtell.features.store import FeatureStore

    real_has = FeatureStore.has
    val_ids = set(load_training_data(tiny_config(scenes)).val_image_ids)

    def has_all_but(first: int, self: FeatureStore, image_ids: object) -> torch.Tensor:
        ids = torch.as_tensor(image_ids)
        is_val = torch.tensor([int(i) in val_ids for i in ids])
        return real_has(self, image_ids) & (is_val | (ids > first))

    monkeypatch.setattr(FeatureStore, "has", lambda self, ids: has_all_but(2, self, ids))
    train(tiny_config(scenes, epochs=1))
    assert "warning: 10 train captions are ignored" in capsys.readouterr().err
    monkeypatch.setattr(FeatureStore, "has", lambda self, ids: has_all_but(10**9, self, ids))
    with pytest.raises(MissingArtifactError, match="has no features of train images"):
        train(replace(tiny_config(scenes), run="other"))


def test_resume_with_another_vocabulary_is_refused(scenes) -> None:
    from showtell.pipeline.prepare import prepare

    train(tiny_config(scenes, epochs=1))
    prepare(PrepareConfig(data=scenes, dataset="scenes", vocab_size=10))
    with pytest.raises(MismatchError, match=r"vocab.json' has changed since .* was trained"):
        train(tiny_config(scenes, epochs=1))


def test_patience_stops_the_training(scenes, monkeypatch) -> None:
    caption = "a red square above a blue star"
    monkeypatch.setattr(Trainer, "decode_validation", lambda self: [caption] * 10)
    manifest = train(tiny_config(scenes, epochs=10, patience=2))
    # All epochs score the same, so the first stays the best.
    assert manifest.counts["num_epochs"] == 3


def test_latest_weights_are_kept_while_every_score_is_0(scenes, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Trainer, "decode_validation", lambda self: ["a"] * 10)
    manifest = train(tiny_config(scenes, epochs=4, patience=2))
    assert manifest.counts["num_epochs"] == manifest.counts["best_epoch"] == 4
    assert "no val caption has a CIDEr above 0" in capsys.readouterr().err


def test_short_run_warns_and_shows_no_loss_before_the_first(scenes, capsys) -> None:
    train(tiny_config(scenes, epochs=1))
    captured = capsys.readouterr()
    assert "warning: the run has only 13 steps. A smaller --batch-size" in captured.err
    assert "nan" not in captured.out


def test_monitor_picks_the_best_epoch(scenes) -> None:
    manifest = train(tiny_config(scenes, epochs=3, monitor="Bleu_4", learning_rate=1e-2))
    scores = [r["val_Bleu_4"] for r in metrics_of(scenes, "r") if "val_Bleu_4" in r]
    assert manifest.details["Bleu_4"] == pytest.approx(max(scores))


def test_single_val_image_is_monitored_by_bleu(scenes, capsys) -> None:
    manifest = train(tiny_config(scenes, epochs=3, val_images=1, learning_rate=1e-2))
    scores = [r["val_Bleu_4"] for r in metrics_of(scenes, "r") if "val_Bleu_4" in r]
    assert manifest.details["Bleu_4"] == pytest.approx(max(scores))
    assert "only one val image" in " ".join(capsys.readouterr().err.split())


def test_gradients_are_clipped_after_the_backward_pass(scenes, monkeypatch) -> None:
    norms = []
    real_clip = torch.nn.utils.clip_grad_norm_

    def clip(parameters: list[torch.Tensor], limit: float) -> torch.Tensor:
        norm = real_clip(parameters, limit)
        after = torch.stack([p.grad.norm() for p in parameters]).norm()
        norms.append((float(norm), float(after)))
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    train(tiny_config(scenes, epochs=1, grad_clip=0.01))
    assert norms and all(before > 0.01 and after <= 0.0101 for before, after in norms)


def test_non_finite_loss_ends_the_run_with_advice(scenes, monkeypatch) -> None:
    monkeypatch.setattr(trainer_module, "LOG_EVERY_STEPS", 1)
    monkeypatch.setattr(
        trainer_module, "caption_loss", lambda decoder, *_: decoder.output_bias.sum() * torch.inf
    )
    with pytest.raises(ShowTellError, match=r"the loss is nan at step 1.*--learning-rate"):
        train(tiny_config(scenes))


def test_missing_earlier_stage_names_the_command(tmp_path, scenes) -> None:
    with pytest.raises(MissingArtifactError, match="showtell prepare --dataset scenes"):
        train(tiny_config(tmp_path / "nothing"))
    shutil.rmtree(scenes / "scenes" / "features")
    with pytest.raises(MissingArtifactError, match="showtell features --dataset scenes"):
        train(tiny_config(scenes))


def test_resume_without_a_run_is_refused(scenes) -> None:
    with pytest.raises(MissingArtifactError, match="nothing to resume"):
        train(tiny_config(scenes, resume=True))


def test_run_of_another_version_is_not_resumed(scenes) -> None:
    train(tiny_config(scenes))
    saved = RunConfig.read(scenes / "runs/r")
    (scenes / "runs/r/manifest.json").unlink()
    replace(saved, train=saved.train | {"old_option": 1}).write(scenes / "runs/r")
    with pytest.raises(MismatchError, match=r"another version of showtell .*old_option"):
        train(tiny_config(scenes, resume=True))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_bf16_trains_on_any_cpu(scenes, cell: str) -> None:
    """A run started with bf16 may be resumed on a CPU whose LSTM does not support it."""
    train(tiny_config(scenes, precision="bf16", cell=cell, epochs=1))
    assert np.isfinite(metrics_of(scenes, "r")[-2]["loss"])


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_schedule_peaks_at_the_learning_rate_and_ends_low(schedule: str) -> None:
    config = TrainConfig(schedule=schedule, learning_rate=0.1)
    rates = [learning_rate_at(step, 1000, config) for step in range(1000)]
    assert max(rates) == pytest.approx(0.1, rel=1e-3)
    assert min(rates) > 0
    assert schedule == "constant" or (rates[-1] < 1e-4 and rates[0] < 0.01)


def test_decoder_config_follows_the_options(scenes) -> None:
    config = tiny_config(scenes, cell="rnn", num_layers=2, image_as="initial-state")
    data = load_training_data(config)
    assert decoder_config(config, data) == DecoderConfig(
        cell="rnn",
        feature_dim=512,
        vocab_size=len(data.vocab),
        embed_size=16,
        hidden_size=16,
        num_layers=2,
        dropout=0.5,
        image_as="initial-state",
        tie_embeddings=True,
    )
