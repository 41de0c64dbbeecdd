from showtell.bench.config import BenchConfig
from showtell.bench.measurement import Measurement
from showtell.bench.run import measure_stage


def test_features_are_measured_beside_the_network_and_decoding(trained) -> None:
    result = measure_stage("features", BenchConfig(data=trained, dataset="scenes", seconds=0.05))
    assert isinstance(result, Measurement)
    assert set(result.shares) == {"read", "model", "write"}
    limits = result.details["network_alone"], result.details["decoding_alone"]
    assert result.limit == min(limits)
