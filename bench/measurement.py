"""The result of one benchmark: throughput, hardware limit, and where the time goes."""

import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Throughput of a stage beside a limit measured in the same process.

    Attributes:
        throughput: of the stage, in `unit`.
        unit: for example `captions/s`.
        limit: the most that the hardware allows, in the same unit.
        limited_by: what the limit is, in a few words.
        shares: part of the stage → share of its time, 0 to 1.
        details: further figures by name.
        peak_bytes: peak memory of the process.
    """

    throughput: float
    unit: str
    limit: float
    limited_by: str
    shares: dict[str, float]
    details: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0

    @property
    def ratio(self) -> float:
        """Throughput divided by the limit."""
        return self.throughput / self.limit

    def as_json(self) -> dict[str, Any]:
        """Return all fields and the ratio as JSON values."""
        return asdict(self) | {"ratio": self.ratio}


def peak_memory() -> int:
    """Return the peak memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would include the memory of the parent process before the exec.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_memory() -> None:
    """Make `peak_memory` start again from what this process uses now. Only Linux can do this."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")
