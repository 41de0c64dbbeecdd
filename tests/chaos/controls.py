"""Versions of showtell with one protection removed: the faults must find each."""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scenario import QUICK_STAGES, RESUMED


def replace_everywhere(name: str, new: object) -> None:
    """Replace a function of showtell's in every module that has imported it."""
    for module in list(sys.modules.values()):
        if module.__name__.startswith("showtell") and hasattr(module, name):
            setattr(module, name, new)


def without_checksums() -> None:
    from showtell.pipeline.stage.manifest import Manifest

    Manifest.find_problem = lambda *args, **options: None
    Manifest.find_problems = lambda *args, **options: []
    replace_everywhere("unseal", lambda value: {k: v for k, v in value.items() if k != "checksum"})


def without_rename() -> None:
    @contextmanager
    def in_place(path: Path, **options: object) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path

    replace_everywhere("atomic_path", in_place)


def without_lock() -> None:
    fcntl.flock = lambda *args: None


def without_sync() -> None:
    os.fsync = lambda descriptor: None


CONTROLS: dict[str, Callable[[], None]] = {
    "no checksums": without_checksums,
    "written in place": without_rename,
    "no lock": without_lock,
    "no fsync": without_sync,
}
# (stages of the project, function, arguments, control)
TASKS = [
    (QUICK_STAGES, "flips", ("scenes/captions/captions.parquet", 8, False), "no checksums"),
    (QUICK_STAGES, "kills", (RESUMED, 1), "written in place"),
    (QUICK_STAGES, "pairs", ("prepare", 1), "no lock"),
    (QUICK_STAGES, "power_cuts", ("prepare", 1), "no fsync"),
]
