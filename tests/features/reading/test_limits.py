import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

from showtell.features.reading.limits import PIXELS_AT_ONCE, SMALL_PIXELS, PixelBudget


def test_threads_never_hold_more_pixels_than_the_budget():
    budget, lock = PixelBudget.for_threads(), threading.Lock()
    held, most = 0, 0

    def decode(num_pixels: int) -> None:
        nonlocal held, most
        with budget.reserve(num_pixels):
            with lock:
                held += min(num_pixels, PIXELS_AT_ONCE)
                most = max(most, held)
            threading.Event().wait(0.001)
            with lock:
                held -= min(num_pixels, PIXELS_AT_ONCE)

    sizes = [PIXELS_AT_ONCE // 3, PIXELS_AT_ONCE * 2, SMALL_PIXELS + 1] * 20
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, sizes))
    assert PIXELS_AT_ONCE // 3 < most <= PIXELS_AT_ONCE
    assert budget.free.value == PIXELS_AT_ONCE


def test_budget_is_returned_after_an_error():
    budget = PixelBudget.for_processes(multiprocessing.get_context("spawn"))
    try:
        with budget.reserve(PIXELS_AT_ONCE * 2):
            assert budget.free.value == 0
            raise KeyError
    except KeyError:
        pass
    assert budget.free.value == PIXELS_AT_ONCE


def test_small_images_do_not_wait():
    budget = PixelBudget.for_threads()
    with budget.reserve(PIXELS_AT_ONCE), budget.reserve(SMALL_PIXELS):
        assert budget.free.value == 0
