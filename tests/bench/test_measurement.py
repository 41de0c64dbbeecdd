from showtell.bench.measurement import peak_memory


def test_peak_memory_is_in_bytes() -> None:
    assert 10**7 < peak_memory() < 10**12
