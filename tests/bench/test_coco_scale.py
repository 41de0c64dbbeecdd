import numpy as np
import pytest

from showtell.bench import coco_scale
from showtell.bench.config import COCO_SCALE_STAGES, BenchConfig
from showtell.bench.measurement import Measurement
from showtell.bench.run import measure_stage
from showtell.bench.stages import memory
from showtell.pipeline.captions import read_captions
from showtell.pipeline.stage.manifest import Manifest


def test_generated_coco_has_its_statistics_and_passes_all_stages(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(coco_scale, "TRAIN_IMAGES", 60)
    monkeypatch.setattr(coco_scale, "TRAIN_CAPTIONS", 301)
    monkeypatch.setattr(coco_scale, "VAL_IMAGES", 6)
    monkeypatch.setattr(coco_scale, "VAL_CAPTIONS", 30)
    monkeypatch.setattr(coco_scale, "FEATURE_DIM", 32)
    monkeypatch.setattr(memory, "FEW", 100)
    monkeypatch.setattr(memory, "MANY", 300)
    monkeypatch.setattr(memory, "HUGE_MODES", ("1",))
    monkeypatch.setattr(memory, "HUGE_SIZES", (64, 9_460))
    config = BenchConfig(data=tmp_path, dataset="coco-scale", coco_scale=True, seconds=0.05)
    for stage in COCO_SCALE_STAGES:
        result = measure_stage(stage, config)
        assert isinstance(result, Measurement), f"{stage}: {result}"
    manifest = Manifest.read(config.captions_dir)
    assert manifest is not None
    counts = manifest.counts
    assert (counts["num_train_images"], counts["num_train_captions"]) == (60, 301)
    assert (counts["num_val_images"], counts["num_val_captions"]) == (6, 30)
    lengths = read_captions(config.captions_dir / "captions.parquet").lengths
    assert 10 < lengths.mean() < 11.5


def test_generated_captions_have_as_many_frequent_words_as_coco() -> None:
    weights = (np.arange(1, coco_scale.NUM_WORDS + 1) + coco_scale.SHIFT) ** -coco_scale.EXPONENT
    expected = weights / weights.sum() * coco_scale.TRAIN_CAPTIONS * 10.5
    assert np.sum(expected >= 5) == pytest.approx(coco_scale.VOCAB_SIZE, rel=0.05)
    words = [coco_scale.spell(rank) for rank in range(coco_scale.NUM_WORDS)]
    assert len(set(words)) == coco_scale.NUM_WORDS and words[0] == "ba"
    assert np.all(np.diff([len(word) for word in words]) >= 0)


def test_generated_images_depend_on_the_seed() -> None:
    draws = [list(coco_scale.generate_images(0.001, np.random.default_rng(s))) for s in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]
    counts = [len(image["sentences"]) for image in draws[0] if image["split"] == "train"]
    assert sum(counts) == 567 and set(counts) == {5, 6}
