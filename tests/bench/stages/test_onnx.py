import pytest

from showtell.bench.config import BenchConfig
from showtell.bench.measurement import Measurement
from showtell.bench.run import measure_stage

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def test_graphs_are_measured_beside_torch_with_the_same_captions(trained) -> None:
    result = measure_stage("onnx", BenchConfig(data=trained, dataset="scenes", seconds=0.5))
    assert isinstance(result, Measurement), result
    assert result.throughput > 0 and result.limit > 0
    assert result.details["num_images"] == 10 and result.details["num_different_captions"] == 0
    assert min(result.details["single_image_s"], result.details["encoder_alone"]) > 0
