"""What a benchmark says of a stage, and the memory of the process that it ran in."""

import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How fast a stage was, beside a limit measured in the same process.

    Attributes:
        throughput: of the stage, in `unit`.
        unit: e.g. `captions/s`.
        limit: what the machine can do, in the same unit.
        limited_by: what that limit is, in a few words.
        shares: cause → share of the stage's time, 0 to 1.
        details: more numbers of the stage, by name.
        peak_bytes: most memory that the process had; filled in at its end.
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
        """Throughput over limit."""
        return self.throughput / self.limit

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values, with the ratio."""
        return asdict(self) | {"ratio": self.ratio}


def peak_memory() -> int:
    """Most bytes of memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike getrusage's, this one does not remember the parent from before the exec.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
