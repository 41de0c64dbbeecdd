"""Read the contents of images ahead of use, in order, with bounded memory."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MAX_ITEMS = 512  # read or being read, but not used yet
MAX_BYTES = 64 << 20  # read but not used yet; nothing more is started then


class ReadAhead(Generic[T]):
    """Calls functions in threads, ahead of use, and yields their results in order.

    Args:
        reads: functions, each of which returns some content. A result that is not bytes counts as
            0 bytes.
        num_threads: with one thread, the functions are called one after the other.
    """

    def __init__(self, reads: Iterator[Callable[[], T]], num_threads: int) -> None:
        self._reads, self._num_threads = reads, num_threads
        self._changed = threading.Condition()
        self._num_bytes = 0  # of results that have not been used
        self._next = 0  # number of the result to use next
        self._is_closed = False

    def results(self) -> Generator[T, None, None]:
        """Yield the results. Closing the generator waits for the functions that are running."""
        pool = ThreadPoolExecutor(self._num_threads, "read")
        window: deque[Future[T]] = deque()
        try:
            for number, read in enumerate(self._reads):
                window.append(pool.submit(self._call, number, read))
                if len(window) == MAX_ITEMS:
                    yield self._take(window.popleft())
            while window:
                yield self._take(window.popleft())
        finally:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
            pool.shutdown(cancel_futures=True)

    def _call(self, number: int, read: Callable[[], T]) -> T:
        with self._changed:
            # The result that is used next never waits: only its use makes room for others.
            self._changed.wait_for(
                lambda: self._num_bytes < MAX_BYTES or number == self._next or self._is_closed
            )
        result = read()
        self._count(size_of(result))
        return result

    def _take(self, future: Future[T]) -> T:
        result = future.result()
        self._count(-size_of(result), num_used=1)
        return result

    def _count(self, num_bytes: int, num_used: int = 0) -> None:
        with self._changed:
            self._num_bytes += num_bytes
            self._next += num_used
            self._changed.notify_all()


def size_of(content: Any) -> int:
    """Return the size of some content in bytes; 0 for anything else."""
    return len(content) if isinstance(content, bytes) else 0
