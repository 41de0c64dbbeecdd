from showtell.bench.http_load import LoadResult


def test_percentile_is_a_latency_that_was_measured() -> None:
    result = LoadResult(latencies=[3.0, 1.0, 2.0, 4.0])
    assert [result.percentile(share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 4.0, 4.0]
