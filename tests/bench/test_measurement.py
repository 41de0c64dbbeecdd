import math
import mmap
import sys

import pytest

from showtell.bench.measurement import forget_peak_memory, peak_memory


def test_peak_memory_is_in_bytes() -> None:
    assert 10**7 < peak_memory() < 10**12


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_the_peak_is_forgotten() -> None:
    before, size = peak_memory(), 8 * 10**8
    with mmap.mmap(-1, size) as block:
        block[:: mmap.PAGESIZE] = b"1" * math.ceil(size / mmap.PAGESIZE)
        high = peak_memory()
    forget_peak_memory()
    assert peak_memory() < high - size / 2
    assert high >= before
