"""Reading ahead: the order, the bounds, and errors."""

import threading
import time
from functools import partial

import pytest

from showtell.pipeline.images import ahead
from showtell.pipeline.images.ahead import ReadAhead


def test_results_keep_their_order_however_long_each_takes() -> None:
    def read(number: int) -> int:
        time.sleep(0.01 if number % 7 == 0 else 0)
        return number

    reads = (partial(read, number) for number in range(100))
    assert list(ReadAhead(reads, 8).results()) == list(range(100))


def test_bytes_that_wait_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(ahead, "MAX_BYTES", 1000)
    num_read, num_used = 0, 0
    lock = threading.Lock()
    largest = 0

    def read() -> bytes:
        nonlocal num_read, largest
        with lock:
            num_read += 1
            largest = max(largest, num_read - num_used)
        return bytes(400)

    for _ in ReadAhead(iter([read] * 200), 4).results():
        time.sleep(0.0005)
        num_used += 1
    assert num_used == 200
    assert largest <= 3 + 4 + 1  # those that fill the limit, and those that were being read


def test_items_that_wait_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(ahead, "MAX_ITEMS", 10)
    started = []
    results = ReadAhead((partial(started.append, i) for i in range(100)), 4).results()
    next(results)
    time.sleep(0.05)
    assert len(started) == 10
    results.close()


def test_error_reaches_the_caller_and_leaves_no_thread() -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(ReadAhead(iter([fail] * 20), 3).results())
    assert not any(thread.name.startswith("read") for thread in threading.enumerate())
