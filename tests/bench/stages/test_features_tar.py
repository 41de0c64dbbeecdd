from showtell.bench.config import BenchConfig
from showtell.bench.measurement import Measurement
from showtell.bench.run import measure_stage
from showtell.bench.stages import features_tar


def test_tar_is_measured_beside_a_folder(trained, monkeypatch) -> None:
    monkeypatch.setattr(features_tar, "NUM_DECODED", 128)
    result = measure_stage(
        "features-tar", BenchConfig(data=trained, dataset="scenes", seconds=0.05)
    )
    assert isinstance(result, Measurement), result
    assert result.limited_by == "the same images in a folder"
    assert result.throughput > 0 and result.details["decoding_from_tar"] > 0
