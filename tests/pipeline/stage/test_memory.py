import resource
from pathlib import Path

import pytest

from showtell.pipeline.stage.memory import available_memory, count_local_processes

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    defaults = {"proc/meminfo": f"MemTotal: {64 << 20} kB\nMemAvailable: {32 << 20} kB\n"}
    for name, content in (defaults | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_machine_without_limits(tmp_path) -> None:
    assert available_memory(write(tmp_path, {})) == 32 * GIB


V2 = {
    "proc/self/cgroup": "0::/job/step\n",
    "sys/fs/cgroup/job/step/memory.max": "max\n",
    "sys/fs/cgroup/job/step/memory.current": f"{3 * GIB}\n",
    "sys/fs/cgroup/job/memory.max": f"{8 * GIB}\n",
    "sys/fs/cgroup/job/memory.current": f"{5 * GIB}\n",
    "sys/fs/cgroup/job/memory.stat": f"anon 7\ninactive_file {GIB}\nactive_file {2 * GIB}\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/job\n3:cpu:/\n0::/\n",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{8 * GIB}\n",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{5 * GIB}\n",
    "sys/fs/cgroup/memory/job/memory.stat": f"total_inactive_file {3 * GIB}\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{9 * GIB}\n",
}
CONTAINER = {
    "proc/self/cgroup": "0::/outside/of/the/container\n",
    "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
    "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
}


@pytest.mark.parametrize("files", [V2, V1, CONTAINER], ids=["v2", "v1", "container"])
def test_limit_of_a_cgroup_without_what_the_kernel_can_reclaim(tmp_path, files) -> None:
    assert available_memory(write(tmp_path, files)) == 6 * GIB


def test_usage_above_the_limit_leaves_nothing(tmp_path) -> None:
    used = {"sys/fs/cgroup/memory.current": f"{9 * GIB}\n"}
    assert available_memory(write(tmp_path, CONTAINER | used)) == 0


@pytest.mark.parametrize(("kind", "name"), [("AS", "VmSize"), ("DATA", "VmData")])
def test_ulimit_without_what_is_used(tmp_path, monkeypatch, kind, name) -> None:
    root = write(tmp_path, {"proc/self/status": f"{name}:\t {1 << 20} kB\n"})

    def limit_of(asked: int) -> tuple[int, int]:
        is_limited = asked == getattr(resource, f"RLIMIT_{kind}")
        return (4 * GIB if is_limited else resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    monkeypatch.setattr(resource, "getrlimit", limit_of)
    assert available_memory(root) == 3 * GIB


def test_this_machine_has_memory() -> None:
    assert available_memory() > 0


def test_processes_of_torchrun_are_counted(monkeypatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert count_local_processes() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert count_local_processes() == 4
