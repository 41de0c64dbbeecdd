import pytest

from showtell.pipeline.stage import stopwatch as stopwatch_module
from showtell.pipeline.stage.stopwatch import Stopwatch


class Clock:
    """Replaces `time`, and moves only when a test sets `now`."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_stopwatch_adds_up_its_parts(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stopwatch_module, "time", clock)
    watch = Stopwatch()
    for _ in range(2):
        with watch.part("read"):
            clock.now += 1.0
    with watch.part("compute"):
        clock.now += 5.0
    clock.now += 3.0
    assert watch.parts == {"read": 2.0, "compute": 5.0}
    assert watch.seconds == 10.0
    assert watch.shares() == {"read": 0.2, "compute": 0.5}


def test_stopwatch_counts_a_part_that_failed(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stopwatch_module, "time", clock)
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError), watch.part("read"):
        clock.now += 2.0
        raise ZeroDivisionError
    assert watch.parts == {"read": 2.0}


def test_stopwatch_shares_are_zero_at_the_start(monkeypatch) -> None:
    monkeypatch.setattr(stopwatch_module, "time", Clock())
    watch = Stopwatch()
    with watch.part("read"):
        pass
    assert watch.shares() == {"read": 0.0}
