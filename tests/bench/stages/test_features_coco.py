import json

from showtell.bench.config import BenchConfig
from showtell.bench.measurement import Measurement
from showtell.bench.run import measure_stage


def test_coco_images_are_read_from_folder_and_zip(trained, coco) -> None:
    config = BenchConfig(data=trained, dataset="scenes", seconds=0.05)
    result = measure_stage("features-coco", config)
    assert isinstance(result, Measurement)
    assert result.details["num_files"] < result.details["num_images"]
    assert result.details["decoding_from_folder"] > 0 and result.details["decoding_from_zip"] > 0


def test_missing_images_do_not_stop_the_other_stages(
    trained, coco, showtell, measured_here
) -> None:
    options = ("--dataset", "scenes", "--data", str(trained), "--seconds", "0.05")
    for image in (coco / "train2017").iterdir():
        image.unlink()
    code, shown = showtell("bench", "features-coco", "shards", *options)
    assert code == 0 and "None of the 12 images of coco2017 exists" in " ".join(shown.split())
    summary = json.loads((trained / "bench/summary.json").read_text())
    assert set(summary) == {"shards", "machine"}


def test_unreadable_images_are_not_measured(trained, coco) -> None:
    next((coco / "train2017").iterdir()).write_bytes(b"not an image")
    config = BenchConfig(data=trained, dataset="scenes", seconds=0.05)
    result = measure_stage("features-coco", config)
    assert isinstance(result, str) and "cannot be measured" in result
