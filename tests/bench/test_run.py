import json
import os
import re

import pytest

from showtell.bench.config import BENCH_STAGES, COCO_SCALE_STAGES, BenchConfig
from showtell.bench.measurement import Measurement
from showtell.bench.run import bench, choose_data, choose_dataset, measure_stage
from showtell.pipeline.stage.errors import ConfigError, MissingArtifactError


@pytest.mark.parametrize("stage", ["prepare", "shards", "train", "decode", "rerank", "caption"])
def test_stage_is_measured_beside_its_limit(trained, stage: str) -> None:
    result = measure_stage(stage, BenchConfig(data=trained, dataset="scenes", seconds=0.05))
    assert isinstance(result, Measurement)
    assert result.throughput > 0 and result.limit > 0 and result.peak_bytes > 10**7
    assert 0.5 < sum(result.shares.values()) <= 1.01
    assert result.as_json()["ratio"] == result.throughput / result.limit
    if stage == "decode":
        details = result.details
        assert 0 < details["words_of_step"] < details["rows_of_step"]
        assert 0 < details["states_of_step"] < details["rows_of_step"]
        assert details["ratio_with_products_of_each_beam"] > 0
    if stage == "rerank":
        details = result.details
        assert details["images_per_second_of_neighbors"] > 0
        assert details["images_per_second_of_scores"] > 0
        assert 1 < details["candidates_per_image"] <= 50


def test_command_prints_a_table_and_adds_to_the_summary(trained, showtell) -> None:
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


def test_json_holds_the_figures_of_each_stage(trained, showtell_json, measured_here) -> None:
    options = ("--data", str(trained), "--seconds", "0.05")
    status, document = showtell_json("bench", "shards", "--dataset", "scenes", *options)
    assert status == 0 and document["dataset"] == "scenes"
    assert document["stages"]["shards"]["unit"] == "MB/s"
    assert document["machine"]["cores"] == os.cpu_count()


def test_stage_without_its_data_is_left_out_with_the_reason(
    scenes, showtell, measured_here
) -> None:
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


def test_every_stage_has_a_file_with_its_name() -> None:
    from importlib import import_module

    for stage in {*BENCH_STAGES, *COCO_SCALE_STAGES}:
        module = import_module(f"showtell.bench.stages.{stage.replace('-', '_')}")
        assert callable(module.measure)


def test_dataset_with_the_most_captions_is_measured(scenes, tmp_path) -> None:
    assert choose_dataset(BenchConfig(data=scenes)) == "scenes"
    with pytest.raises(MissingArtifactError, match="no prepared dataset"):
        choose_dataset(BenchConfig(data=tmp_path / "empty"))


def test_scale_without_coco_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match="add --coco-scale"):
        BenchConfig(scale=0.5)


def test_data_of_each_scale_has_its_own_folder(tmp_path) -> None:
    full, small = (
        choose_data(BenchConfig(data=tmp_path, coco_scale=True, scale=scale)).data
        for scale in (1.0, 0.01)
    )
    assert (full.name, small.name) == ("coco-scale", "coco-scale-0.01")


@pytest.mark.parametrize(
    "stage, earlier",
    [("prepare", "draw"), ("epoch", "draw"), ("decode", "epoch"), ("scst", "epoch")],
)
def test_stage_at_coco_scale_names_the_stage_to_run_first(tmp_path, stage, earlier) -> None:
    config = BenchConfig(data=tmp_path, coco_scale=True, stages=[stage])
    with pytest.raises(MissingArtifactError, match=f"showtell bench {earlier} --coco-scale"):
        bench(config)
