"""Measures the wall time of a stage and of its parts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Measures wall time from its creation, and the time spent in named parts.

    Attributes:
        parts: part → seconds spent in it so far.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.parts: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Wall time since the creation."""
        return time.perf_counter() - self.started

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time spent in the `with` block to the part `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add time that was measured elsewhere to the part `name`."""
        self.parts[name] = self.parts.get(name, 0.0) + seconds

    def shares(self) -> dict[str, float]:
        """Return part → its share of the wall time so far, from 0 to 1."""
        seconds = max(self.seconds, 1e-9)
        return {name: spent / seconds for name, spent in self.parts.items()}
