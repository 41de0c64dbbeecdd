"""Limits on the memory of decoding: pixels of one image, bytes of all images decoded at once."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it warns

# Memory that all workers together may decode in at once, not counting small images.
BYTES_AT_ONCE = 1 << 30
SMALL_BYTES = 8 << 20
HUGE_BYTES = 128 << 20


@dataclass(frozen=True)
class DecodingBudget:
    """Makes workers wait while others decode large images.

    Attributes:
        changed: a condition of `threading` or `multiprocessing`.
        free: a C integer, in shared memory if the workers are processes; its `value` is the number
            of bytes that may still be reserved.
    """

    changed: Any
    free: Any

    @classmethod
    def for_threads(cls) -> "DecodingBudget":
        """Return a budget for the threads of this process."""
        return cls(threading.Condition(), ctypes.c_longlong(BYTES_AT_ONCE))

    @classmethod
    def for_processes(cls, context: BaseContext) -> "DecodingBudget":
        """Return a budget to pass to new processes."""
        return cls(context.Condition(), context.RawValue("q", BYTES_AT_ONCE))

    @contextmanager
    def reserve(self, num_bytes: int) -> Iterator[None]:
        """Wait until this many bytes are free, and reserve them during the `with` block.

        An image that is larger than the whole budget waits until nothing else is decoded.
        """
        if num_bytes <= SMALL_BYTES:
            yield
            return
        taken = min(num_bytes, BYTES_AT_ONCE)
        with self.changed:
            self.changed.wait_for(lambda: self.free.value >= taken)
            self.free.value -= taken
        try:
            yield
        finally:
            if taken > HUGE_BYTES:
                return_freed_memory()
            with self.changed:
                self.free.value += taken
                self.changed.notify_all()


def return_freed_memory() -> None:
    """Make glibc release freed memory to the system. Without glibc this does nothing."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
