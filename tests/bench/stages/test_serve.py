import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from showtell.bench.config import BenchConfig
from showtell.bench.stages import serve


def test_server_is_measured_beside_the_captioner(trained, monkeypatch) -> None:
    monkeypatch.setattr(serve, "BATCHED", ((1, 1), (64, 1)))
    monkeypatch.setattr(serve, "UNBATCHED", ((2, 3),))
    monkeypatch.setattr(serve, "NUM_IMAGES", 8)
    result = serve.measure(BenchConfig(data=trained, dataset="scenes", seconds=0.2))
    details = result.details
    assert result.throughput == details["full_batches_64_clients_1_images_images_per_second"] > 0
    loaded = "single_batches_2_clients_3_images"
    ratio = details[f"{loaded}_images_per_second"] / details[f"{loaded}_requests_per_second"]
    assert ratio == pytest.approx(3)
    assert 0 < details[f"{loaded}_p50_s"] <= details[f"{loaded}_p99_s"]
    assert result.limit >= details["captioner_before"] > 0
