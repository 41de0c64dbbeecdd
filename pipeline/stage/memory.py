"""How much memory this process may still use: of the machine, its cgroup and its ulimits."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# The rest is for captions, weights, activations and the page cache.
SHARE_OF_FEATURES, RESERVED_BYTES = 0.6, 512 << 20

# cgroup version → folder of the controller, its limit and its usage, and the parts of the usage
# that the kernel gives back when memory is short.
CGROUPS = {
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("sys/fs/cgroup", "memory.max", "memory.current", ""),
}


def memory_for_features(available: int | None = None) -> int:
    """Return how many bytes of features a machine can hold, for all processes of the job.

    Args:
        available: bytes that can still be allocated; default those of this machine.
    """
    available = available_memory() if available is None else available
    return max(0, int(SHARE_OF_FEATURES * (available - RESERVED_BYTES)))


def count_local_processes() -> int:
    """Return how many processes of the job torchrun has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_memory(root: Path = Path("/")) -> int:
    """Return how many bytes can still be allocated.

    Args:
        root: the folder of `proc` and `sys`; another one for tests.
    """
    return max(0, min([_of_machine(root), *_of_cgroups(root), *_of_ulimits(root)]))


def _of_machine(root: Path) -> int:
    fields = _read_fields(root / "proc/meminfo")
    if "MemAvailable" in fields:
        return fields["MemAvailable"] * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # not Linux


def _of_cgroups(root: Path) -> Iterator[int]:
    """Yield what is left of the limit of each cgroup that contains this process."""
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, limit_name, usage_name, prefix = CGROUPS[1 if controllers else 2]
        group = PurePosixPath(path)
        for parent in (group, *group.parents):
            # In a container, the path may be that outside of it: then only the root exists.
            own = root / folder / str(parent).lstrip("/")
            limit, usage = _read_text(own / limit_name), _read_text(own / usage_name)
            if limit.strip().isdigit() and usage.strip().isdigit():
                cache = _read_fields(own / "memory.stat")
                reclaimable = sum(
                    cache.get(f"{prefix}{kind}", 0) for kind in ("inactive_file", "active_file")
                )
                yield int(limit) - int(usage) + reclaimable


def _of_ulimits(root: Path) -> Iterator[int]:
    """Yield what is left of `ulimit -v` and `ulimit -d`."""
    used = _read_fields(root / "proc/self/status")
    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            yield limit - used.get(name, 0) * 1024


def _read_fields(path: Path) -> dict[str, int]:
    """Read lines such as `MemAvailable:  123 kB` or `inactive_file 123`: name → number."""
    words = [line.replace(":", " ").split() for line in _read_text(path).splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def _read_text(path: Path) -> str:
    """Return the content of a file, empty if it cannot be read."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
