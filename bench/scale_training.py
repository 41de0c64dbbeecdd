"""Measure training from features larger than a memory limit, beside training without the limit.

    python -m showtell.bench.scale_training DIR --scale 0.1 --views 4 --limit-mb 1000

DIR gets generated captions and features, relative to COCO in size. Each measurement is a process
of its own, which trains one epoch: planning it and reading the first window count. The limit is
that of a cgroup, which needs root, or of `ulimit -d`. A cgroup also limits the page cache, so that
every window comes from the disk. The files leave the page cache before each measurement.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..model.config import TrainConfig
from ..model.training.data import load_training_data
from ..model.training.memory import choose_window
from ..model.training.trainer import Trainer
from ..pipeline.stage.console import format_bytes, print_table
from .coco_scale import features_name, generate
from .config import COCO_SCALE_DATASET
from .measurement import peak_memory
from .stages.train import TimedSteps

# cgroup version → folder, file of the limit and of the peak.
CGROUPS = {
    1: (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    2: (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
}


def main() -> None:
    """Generate the data, measure without and with the limit, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scale", type=float, default=0.1, help="size relative to COCO")
    parser.add_argument("--views", type=int, default=4, help="views of each image")
    parser.add_argument("--limit-mb", type=int, default=1000, help="memory of the process, in MB")
    parser.add_argument("--steps", type=int, help="measure this many; default the whole epoch")
    parser.add_argument("--ulimit", action="store_true", help="limit by ulimit -d, not a cgroup")
    parser.add_argument("--cell", default="gru")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_epoch(arguments)))
        return
    generate(arguments.data, arguments.scale, num_views=arguments.views)
    limit = arguments.limit_mb * 10**6
    results = {"no limit": run(arguments, None), "limit": run(arguments, limit)}
    for name, result in results.items():
        rows = [(key, show(key, value)) for key, value in result.items()]
        print_table(name, rows)
    speeds = [result["captions_per_second"] for result in results.values()]
    print_table("limit / no limit", [("captions/s", f"{speeds[1] / speeds[0]:.3f}")])


def show(key: str, value: float) -> str:
    """Return a figure as text."""
    if key.endswith("_bytes"):
        return format_bytes(int(value))
    return f"{value:,.3f}" if isinstance(value, float) else f"{value}"


def measure_epoch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one epoch in this process; return its figures by name."""
    options = TrainConfig(
        data=arguments.data,
        dataset=COCO_SCALE_DATASET,
        features=features_name(arguments.views),
        cell=arguments.cell,
        epochs=1,
    )
    run_dir = arguments.data / "bench" / "run"
    config = choose_window(options, run_dir)
    started = time.perf_counter()
    trainer = Trainer(config, load_training_data(config), run_dir)
    start_s = time.perf_counter() - started
    trainer.decoder.train()
    steps = TimedSteps(trainer)
    started = time.perf_counter()
    for positions in trainer.batches.plan_epoch(0)[: arguments.steps]:
        steps.step(positions)
    seconds = time.perf_counter() - started
    store = trainer.data.store
    return {
        "captions_per_second": steps.num_captions / seconds,
        "num_captions": steps.num_captions,
        "epoch_seconds": seconds,
        "gather_share": steps.parts["gather"] / seconds,
        "start_seconds": start_s,
        "window": config.window or 0,
        "num_windows": trainer.batches.reader.index + 1,
        "features_bytes": 2 * len(store.image_ids) * store.num_views * store.feature_dim,
        "peak_bytes": peak_memory(),
    }


def run(arguments: argparse.Namespace, limit: int | None) -> dict[str, Any]:
    """Measure in a new process, with a limit in bytes or without."""
    drop_page_cache(arguments.data / COCO_SCALE_DATASET / "features")
    command = [sys.executable, "-m", "showtell.bench.scale_training", *sys.argv[1:], "--measure"]
    if limit is None:
        return run_process(command, None)
    if arguments.ulimit:
        limits = (limit, limit)
        return run_process(command, lambda: resource.setrlimit(resource.RLIMIT_DATA, limits))
    with cgroup(limit) as (folder, peak_name):
        processes = folder / "cgroup.procs"
        result = run_process(command, lambda: processes.write_text(str(os.getpid())))
        peak = folder / peak_name
        return result | {"cgroup_peak_bytes": int(peak.read_text()) if peak.exists() else 0}


def run_process(command: list[str], prepare: Callable[[], object] | None) -> dict[str, Any]:
    """Run a command, after a call in its process, and parse the last line of its output."""
    done = subprocess.run(
        command, preexec_fn=prepare, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"The measurement ended with {done.returncode}: {' '.join(command)}")
    *notes, last = done.stdout.splitlines()
    print(*notes, sep="\n")
    result: dict[str, Any] = json.loads(last)
    return result


@contextmanager
def cgroup(limit: int) -> Iterator[tuple[Path, str]]:
    """Create a cgroup with a memory limit in bytes; yield its folder and the file of its peak."""
    root, limit_name, peak_name = CGROUPS[1 if (CGROUPS[1][0] / CGROUPS[1][1]).exists() else 2]
    folder = root / f"showtell-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / limit_name).write_text(str(limit))
        yield folder, peak_name
    finally:
        folder.rmdir()


def drop_page_cache(directory: Path) -> None:
    """Remove the files of a folder from the page cache."""
    for path in directory.rglob("part-*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # the kernel drops only clean pages
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    main()
