"""Inject faults into every stage, and count what survives: `make chaos`.

    python tests/chaos [--quick] [--jobs N] [--flips N] [--output DIR] [--faults KIND…]

`--quick` is the short version of `make test`: fewer places, and no controls. It prints a table, and
writes `chaos.json` and `chaos.md` to DIR. Exit status 1: something was lost, used silently although
it was damaged, or ended in a traceback; or a version of the code without one of its protections
passed, which would show that the faults prove nothing.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from injection import preload

if __name__ == "__main__":
    preload()

import controls
import faults
from faults import LOST, SILENT, SURVIVED, TRACEBACK, Trial
from scenario import QUICK_STAGES, STAGES, import_everything, project

KINDS = ("killed", "full disk", "two at once", "flipped bit", "control")


def plan(options: argparse.Namespace) -> list[tuple[tuple[str, ...], str, tuple]]:
    """Return (stages of the project, function, arguments) of each task."""
    stages = QUICK_STAGES if options.quick else tuple(STAGES)
    every, count = (40, 1) if options.quick else (1, options.flips)
    tasks: list[tuple[tuple[str, ...], str, tuple]] = []
    for kind, name in (("killed", "kills"), ("full disk", "full_disks"), ("two at once", "pairs")):
        if kind in options.faults:
            chosen = ("prepare", "train") if options.quick else stages
            tasks += [(stages, name, (stage, every)) for stage in chosen]
    if "flipped bit" in options.faults:
        files = faults.QUICK_READERS if options.quick else faults.READERS
        tasks += [(stages, "flips", (name, count, False)) for name in files]
        files = faults.READERS_OF_STOPPED[:2] if options.quick else faults.READERS_OF_STOPPED
        tasks += [(stages, "flips", (name, count, True)) for name in files]
    return tasks


def run_task(
    stages: tuple[str, ...], name: str, arguments: tuple, control: str | None = None
) -> list[Trial]:
    patch = controls.CONTROLS[control] if control else None
    made = project(os.getpid(), stages)
    if name == "flips":
        file, count, stopped = arguments
        return list(faults.flips(made, file, count, stopped=stopped, patch=patch))
    stage, every = arguments
    return list(getattr(faults, name)(made, stage, every, patch))


def run_all(tasks: list[tuple], jobs: int) -> list[list[Trial]]:
    """Run tasks in parallel; return their trials in the order of the tasks."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context) as pool:
        return [future.result() for future in [pool.submit(run_task, *task) for task in tasks]]


def table(trials: list[Trial]) -> list[tuple[str, ...]]:
    """Return rows (fault, where, tried, survived, lost, silent, traceback), with totals."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for where_of in (lambda trial: trial.where, lambda trial: "**all**"):
        for trial in trials:
            counts.setdefault((trial.fault, where_of(trial)), Counter())[trial.outcome] += 1
    rows = [("fault", "where", "tried", SURVIVED, LOST, SILENT, TRACEBACK)]
    for (fault, where), counter in counts.items():
        numbers = (counter[outcome] for outcome in (SURVIVED, LOST, SILENT, TRACEBACK))
        rows.append((fault, where, *map(str, (counter.total(), *numbers))))
    return rows


def markdown(rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4))
    parser.add_argument("--flips", type=int, default=20, help="bits per file and reading command")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--faults", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    started = time.monotonic()
    import_everything()
    trials = [trial for found in run_all(plan(options), options.jobs) for trial in found]
    bad = [trial for trial in trials if trial.outcome != SURVIVED]
    for trial in bad:
        print(f"{trial.outcome}: {trial.fault}, {trial.where}, {trial.place}: {trial.detail}\n")
    text = markdown(table(trials))
    print(text)
    passed = []
    if "control" in options.faults and not options.quick:
        results = run_all(controls.TASKS, options.jobs)
        for (*_, control), found in zip(controls.TASKS, results, strict=True):
            outcomes = Counter(trial.outcome for trial in found)
            print(f"{control}: {dict(outcomes)}")
            if set(outcomes) <= {SURVIVED}:
                passed.append(control)
    print(f"{len(trials):,} faults, {len(bad):,} not survived, {time.monotonic() - started:.0f} s")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "chaos.md").write_text(text)
        listed = [asdict(trial) for trial in trials]
        (options.output / "chaos.json").write_text(json.dumps(listed, indent=1))
    for control in passed:
        print(f"{control}: the faults did not notice that this protection is missing")
    return 1 if bad or passed else 0


if __name__ == "__main__":
    sys.exit(main())
