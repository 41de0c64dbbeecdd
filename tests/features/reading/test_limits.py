import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

from showtell.features.reading.limits import BYTES_AT_ONCE, SMALL_BYTES, DecodingBudget


def test_threads_never_hold_more_memory_than_the_budget():
    budget, lock = DecodingBudget.for_threads(), threading.Lock()
    held, most = 0, 0

    def decode(num_bytes: int) -> None:
        nonlocal held, most
        with budget.reserve(num_bytes):
            with lock:
                held += min(num_bytes, BYTES_AT_ONCE)
                most = max(most, held)
            threading.Event().wait(0.001)
            with lock:
                held -= min(num_bytes, BYTES_AT_ONCE)

    sizes = [BYTES_AT_ONCE // 3, BYTES_AT_ONCE * 2, SMALL_BYTES + 1] * 20
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, sizes))
    assert BYTES_AT_ONCE // 3 < most <= BYTES_AT_ONCE
    assert budget.free.value == BYTES_AT_ONCE


def test_budget_is_returned_after_an_error():
    budget = DecodingBudget.for_processes(multiprocessing.get_context("spawn"))
    try:
        with budget.reserve(BYTES_AT_ONCE * 2):
            assert budget.free.value == 0
            raise KeyError
    except KeyError:
        pass
    assert budget.free.value == BYTES_AT_ONCE


def test_small_images_do_not_wait():
    budget = DecodingBudget.for_threads()
    with budget.reserve(BYTES_AT_ONCE), budget.reserve(SMALL_BYTES):
        assert budget.free.value == 0
