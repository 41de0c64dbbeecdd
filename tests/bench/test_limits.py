import torch

from showtell.bench.limits import time_products, time_reading


def test_larger_products_take_longer() -> None:
    small, large = ([(size, size, size)] for size in (16, 400))
    on_cpu = (torch.device("cpu"), torch.float32, 0.02)
    assert 0 < time_products(small, *on_cpu) < time_products(large, *on_cpu)


def test_reading_takes_time_unless_there_is_no_file(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10**7)
    assert time_reading([tmp_path / "a"]) > 0 and time_reading([]) == 0
