import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from showtell.bench import caching, coco_scale, decoding, memory, training
from showtell.bench.config import BENCH_STAGES, COCO_SCALE_STAGES, BenchConfig
from showtell.bench.figures import Figures, peak_memory
from showtell.bench.limits import count_flops, time_products, time_reading
from showtell.bench.run import bench, choose_dataset, measure
from showtell.model.config import TrainConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.kernels import recurrence
from showtell.model.kernels.padding import ALIGNMENT
from showtell.model.train import train
from showtell.model.training import loss as objective
from showtell.model.training.batches import CaptionBatches
from showtell.model.training.data import decoder_config, load_training_data
from showtell.model.training.loss import caption_loss
from showtell.pipeline.captions import read_captions
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.prepare import prepare
from showtell.pipeline.stage.errors import MissingArtifactError
from showtell.pipeline.stage.manifest import Manifest


@pytest.fixture
def trained(scenes) -> Path:
    train(TrainConfig(data=scenes, dataset="scenes", hidden_size=16, embed_size=8, epochs=1))
    return scenes


@pytest.fixture
def coco(trained, tmp_path) -> Path:
    """A dozen photographs in COCO's layout, prepared."""
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


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_products_of_a_training_step_are_those_that_torch_counts(
    scenes, cell: str, monkeypatch
) -> None:
    for module in (recurrence, objective):  # not the rows that only round up
        monkeypatch.setattr(module, "round_rows", lambda count: count)
    config = TrainConfig(data=scenes, dataset="scenes", cell=cell, hidden_size=24, embed_size=16)
    data = load_training_data(config)
    decoder = create_decoder(decoder_config(config, data))
    batches = CaptionBatches(data.store, data.captions, 32, torch.device("cpu"))
    batch = batches.gather(batches.plan_epoch(0)[0])
    with FlopCounterMode(display=False) as counter:
        caption_loss(decoder, batch).backward()
    shapes = training.products_of(decoder.config, len(batch.image_rows), batch.lengths.tolist())
    num_words, vocab_size = len(batch.nonpad), len(data.vocab)
    # Between cell and words stands `project`, as their sizes differ here and not by default; and
    # torch does not count the product that adds to the words' gradient in place.
    counted = counter.get_total_flops() - 3 * 2 * num_words * 24 * 16
    counted += 2 * num_words * 16 * vocab_size
    # The loss rounds the vocabulary up, in the two products that are counted.
    counted -= 2 * 2 * num_words * 16 * (-vocab_size % ALIGNMENT)
    assert counted == count_flops(shapes)


def test_products_of_a_decoding_step_are_those_that_torch_counts(random_decoder) -> None:
    decoder = random_decoder().eval()
    state = decoder.init_state(torch.randn(3, decoder.config.feature_dim))
    state = state.select(torch.arange(3), torch.zeros(3, 2).long())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder.step(torch.tensor([7, 9, 7, 7, 9, 9]), state)
    shapes = decoding.products_of(decoder.config, 6, num_words=2, num_states=3)
    assert counter.get_total_flops() == count_flops(shapes)


@pytest.mark.parametrize("stage", ["prepare", "shards", "train", "decode"])
def test_stage_is_measured_beside_its_limit(trained, stage: str) -> None:
    figures = measure(stage, BenchConfig(data=trained, dataset="scenes", seconds=0.05))
    assert isinstance(figures, Figures)
    assert figures.throughput > 0 and figures.limit > 0 and figures.peak_bytes > 10**7
    assert 0.5 < sum(figures.shares.values()) <= 1.01
    assert figures.as_json()["ratio"] == figures.throughput / figures.limit
    if stage == "decode":
        details = figures.details
        assert 0 < details["words_of_step"] < details["rows_of_step"]
        assert 0 < details["states_of_step"] < details["rows_of_step"]
        assert details["ratio_with_products_of_each_beam"] > 0


def test_features_are_measured_beside_the_network_and_the_decoding(trained) -> None:
    figures = measure("features", BenchConfig(data=trained, dataset="scenes", seconds=0.05))
    assert isinstance(figures, Figures)
    assert set(figures.shares) == {"read", "model", "write"}
    limits = figures.details["network_alone"], figures.details["decoding_alone"]
    assert figures.limit == min(limits)


def test_photographs_of_coco_are_read_from_folder_and_zip(trained, coco) -> None:
    figures = measure("features-coco", BenchConfig(data=trained, dataset="scenes", seconds=0.05))
    assert isinstance(figures, Figures)
    assert figures.details["num_files"] < figures.details["num_images"]
    assert figures.details["decoding_from_folder"] > 0 and figures.details["decoding_from_zip"] > 0


def test_photographs_that_are_gone_leave_the_other_stages(trained, coco, showtell) -> None:
    options = ("--dataset", "scenes", "--data", str(trained), "--seconds", "0.05")
    for image in (coco / "train2017").iterdir():
        image.unlink()
    code, shown = showtell("bench", "features-coco", "shards", *options)
    assert code == 0 and "none of the 12 images of coco2017" in " ".join(shown.split())
    summary = json.loads((trained / "bench/summary.json").read_text())
    assert set(summary) == {"shards", "machine"}


def test_photographs_that_cannot_be_read_are_not_measured(trained, coco) -> None:
    next((coco / "train2017").iterdir()).write_bytes(b"no picture")
    figures = measure("features-coco", BenchConfig(data=trained, dataset="scenes", seconds=0.05))
    assert isinstance(figures, str) and "cannot be measured" in figures


def test_command_shows_a_table_and_adds_to_the_summary(trained, showtell) -> None:
    path = trained / "bench/summary.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"train": {"ratio": 0.5}}))
    options = ("--data", str(trained), "--seconds", "0.05")
    code, shown = showtell("bench", "shards", "--dataset", "scenes", *options)
    assert code == 0 and re.search(r"shards +[\d,]+ MB/s", shown)
    summary = json.loads(path.read_text())
    assert summary["train"] == {"ratio": 0.5}
    names = {"throughput", "unit", "limit", "ratio", "shares", "peak_bytes"}
    assert names <= set(summary["shards"])
    assert summary["machine"]["cores"] == os.cpu_count()


def test_json_holds_the_figures_of_each_stage(trained, showtell_json) -> None:
    options = ("--data", str(trained), "--seconds", "0.05")
    status, document = showtell_json("bench", "shards", "--dataset", "scenes", *options)
    assert status == 0 and document["dataset"] == "scenes"
    assert document["stages"]["shards"]["unit"] == "MB/s"
    assert document["machine"]["cores"] == os.cpu_count()


def test_stage_without_its_data_is_left_out_and_named(scenes, showtell) -> None:
    options = ("--dataset", "scenes", "--data", str(scenes), "--seconds", "0.05")
    code, shown = showtell("bench", "shards", "decode", *options)
    assert code == 0 and re.search(r"decode is left out: .*showtell train", shown, re.DOTALL)
    assert set(json.loads((scenes / "bench/summary.json").read_text())) == {"shards", "machine"}
    code, shown = showtell("bench", "decode", *options)
    assert code == 1 and "could be measured" in shown


def test_unknown_stage_is_refused(showtell, tmp_path) -> None:
    code, shown = showtell("bench", "cooking", "--data", str(tmp_path))
    assert code != 0 and "STAGE must be one of" in shown
    assert all(name in shown for name in BENCH_STAGES)


def test_dataset_with_most_captions_is_taken(scenes, tmp_path) -> None:
    assert choose_dataset(BenchConfig(data=scenes)) == "scenes"
    with pytest.raises(MissingArtifactError, match="no prepared dataset"):
        choose_dataset(BenchConfig(data=tmp_path / "empty"))


def test_limits_are_times(tmp_path) -> None:
    small, large = ([(size, size, size)] for size in (16, 400))
    of_cpu = (torch.device("cpu"), torch.float32, 0.02)
    assert 0 < time_products(small, *of_cpu) < time_products(large, *of_cpu)
    (tmp_path / "a").write_bytes(b"x" * 10**7)
    assert time_reading([tmp_path / "a"]) > 0 and time_reading([]) == 0
    assert peak_memory() > 10**7


def test_drawn_coco_has_its_statistics_and_goes_through_all_stages(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(coco_scale, "TRAIN_IMAGES", 300)
    monkeypatch.setattr(coco_scale, "TRAIN_CAPTIONS", 1_501)
    monkeypatch.setattr(coco_scale, "VAL_IMAGES", 20)
    monkeypatch.setattr(coco_scale, "VAL_CAPTIONS", 100)
    monkeypatch.setattr(coco_scale, "FEATURE_DIM", 32)
    monkeypatch.setattr(memory, "FEW", 100)
    monkeypatch.setattr(memory, "MANY", 300)
    config = BenchConfig(data=tmp_path, dataset="coco-scale", coco_scale=True, seconds=0.05)
    for stage in COCO_SCALE_STAGES:
        assert isinstance(measure(stage, config), Figures), stage
    manifest = Manifest.read(config.captions_dir)
    assert manifest is not None
    counts = manifest.counts
    assert (counts["num_train_images"], counts["num_train_captions"]) == (300, 1_501)
    assert (counts["num_val_images"], counts["num_val_captions"]) == (20, 100)
    lengths = read_captions(config.captions_dir / "captions.parquet").lengths
    assert 10 < lengths.mean() < 11.5


def test_words_of_the_drawn_captions_are_as_many_as_cocos() -> None:
    weights = (np.arange(1, coco_scale.NUM_WORDS + 1) + coco_scale.SHIFT) ** -coco_scale.EXPONENT
    expected = weights / weights.sum() * coco_scale.TRAIN_CAPTIONS * 10.5
    assert np.sum(expected >= 5) == pytest.approx(coco_scale.VOCAB_SIZE, rel=0.05)
    words = [coco_scale.spell(rank) for rank in range(coco_scale.NUM_WORDS)]
    assert len(set(words)) == coco_scale.NUM_WORDS and words[0] == "ba"
    assert np.all(np.diff([len(word) for word in words]) >= 0)


def test_draw_is_the_same_for_a_seed() -> None:
    draws = [list(coco_scale.draw_images(0.001, np.random.default_rng(s))) for s in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]
    counts = [len(image["sentences"]) for image in draws[0] if image["split"] == "train"]
    assert sum(counts) == 567 and set(counts) == {5, 6}


@pytest.mark.parametrize(
    "stage, earlier", [("prepare", "draw"), ("epoch", "draw"), ("decode", "epoch")]
)
def test_stage_at_cocos_size_names_the_one_before(tmp_path, stage, earlier):
    config = BenchConfig(data=tmp_path, coco_scale=True, stages=(stage,))
    with pytest.raises(MissingArtifactError, match=f"showtell bench {earlier} --coco-scale"):
        bench(config)


def test_bare_rate_counts_the_images_of_the_timed_passes(monkeypatch):
    class Clock:
        ticks = iter(range(100))
        seconds = property(lambda self: next(self.ticks))

    class Network:
        num_images = 0

        def __call__(self, pixels):
            self.num_images += len(pixels)
            return pixels

    monkeypatch.setattr(caching, "Stopwatch", Clock)
    network = Network()
    rate = caching.measure_bare_rate(network, torch.zeros(4, 3, 6, 6, dtype=torch.uint8), 5)
    assert network.num_images == 4 * (1 + 5)  # one pass to warm up
    assert rate == 4 * 5 / 6
