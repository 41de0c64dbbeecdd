import pytest

from showtell.bench.config import BenchConfig
from showtell.bench.measurement import Measurement
from showtell.bench.run import measure_stage
from showtell.bench.stages import workers


def test_decoding_is_measured_for_each_number_of_workers(trained, monkeypatch, capsys) -> None:
    monkeypatch.setattr(workers, "count_cores", lambda: 2)
    result = measure_stage("workers", BenchConfig(data=trained, dataset="scenes", seconds=0.05))
    assert isinstance(result, Measurement)
    for kind in ("threads", "processes", "features"):
        assert result.details[f"{kind}_1"] > 0 and result.details[f"{kind}_2"] > 0
    assert result.throughput == result.details["features_2"]
    assert result.limit == result.details["network_alone"]
    assert "features stage" in capsys.readouterr().out


@pytest.mark.parametrize("cores, counts", [(1, [1]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_worker_counts_double_up_to_the_cores(cores, counts) -> None:
    assert workers.worker_counts(cores) == counts
