"""Inject faults into every stage, and count what survives: `make chaos`.

    python tests/chaos [--quick] [--jobs N] [--every N] [--flips N] [--output DIR] [--faults KIND…]

`--quick` is the short version of `make test`: fewer places, no controls, and no drawing of curves.
It prints a table, and writes `chaos.json` and `chaos.md` to DIR. Exit status 1: something was lost,
used silently although it was damaged, or ended in a traceback; or a version of the code without one
of its protections passed, which would show that the faults prove nothing.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from injection import preload

if __name__ == "__main__":
    preload()

import controls
import faults
from faults import OUTCOMES, SURVIVED, Trial
from scenario import QUICK_STAGES, RESUMED, STAGES, import_everything, project

# Kind of fault → function, for those that strike a stage.
OF_STAGES = {
    "killed": "kills",
    "power cut": "power_cuts",
    "full disk": "full_disks",
    "two at once": "pairs",
}
KINDS = (*OF_STAGES, "flipped bit", "control")

# Kind of fault → strike at every N-th change, unless `--every` says otherwise. Kills strike
# everywhere. The others do much the same at neighbouring changes, and must fit into half an hour.
STRIDES = {"full disk": 6, "two at once": 12}


def plan(options: argparse.Namespace) -> list[tuple[tuple[str, ...], str, tuple]]:
    """Return (stages of the project, function, arguments) of each task."""
    stages = QUICK_STAGES if options.quick else tuple(STAGES)
    every, count = (60, 1) if options.quick else (options.every, options.flips)
    tasks: list[tuple[tuple[str, ...], str, tuple]] = []
    for kind, name in OF_STAGES.items():
        if kind in options.faults:
            chosen = ("prepare", "train") if options.quick else (*STAGES, RESUMED)
            stride = every or STRIDES.get(kind, 1)
            tasks += [(stages, name, (stage, stride)) for stage in chosen]
    if "flipped bit" in options.faults:
        files = faults.QUICK_READERS if options.quick else faults.READERS
        tasks += [(stages, "flips", (name, count, False)) for name in files]
        files = faults.READERS_OF_STOPPED[:1] if options.quick else faults.READERS_OF_STOPPED
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


def run_all(tasks: list[tuple], jobs: int) -> Iterator[list[Trial]]:
    """Run tasks in parallel; yield their trials in the order of the tasks."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        for future in [pool.submit(run_task, *task) for task in tasks]:
            trials = future.result()
            for trial in trials:
                if trial.outcome != SURVIVED:
                    print("{outcome}: {fault}, {where}, {place}: {detail}\n".format(**vars(trial)))
            yield trials


def run_controls(jobs: int) -> list[tuple[str, ...]]:
    """Return (protection removed, fault, place, tried, not survived) of each control."""
    print("Now with protections removed: what follows is meant to fail.\n")
    rows = []
    for task, trials in zip(controls.TASKS, run_all(controls.TASKS, jobs), strict=True):
        failed = sum(trial.outcome != SURVIVED for trial in trials)
        rows.append((task[-1], trials[0].fault, trials[0].where, str(len(trials)), str(failed)))
    return rows


def count(trials: list[Trial], name: str) -> list[tuple[str, ...]]:
    """Return (place, tried, survived, lost, silent, traceback) by `fault` or by `where`."""
    counts: dict[str, Counter[str]] = {}
    for trial in trials:
        counts.setdefault(getattr(trial, name), Counter())[trial.outcome] += 1
    return [
        (key, *map(str, (counter.total(), *(counter[outcome] for outcome in OUTCOMES))))
        for key, counter in counts.items()
    ]


def markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = (" | ".join(row) for row in (header, ("---",) * len(header), *rows))
    return "".join(f"| {line} |\n" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4))
    parser.add_argument("--every", type=int, help="strike only at every N-th change")
    parser.add_argument("--flips", type=int, default=2, help="bits per file and reading command")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--faults", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    started = time.monotonic()
    import_everything(draws_curves=not options.quick)
    trials = [trial for found in run_all(plan(options), options.jobs) for trial in found]
    has_controls = "control" in options.faults and not options.quick
    removed = run_controls(options.jobs) if has_controls else []
    parts = [markdown(("fault", "tried", *OUTCOMES), count(trials, "fault"))]
    for fault in dict.fromkeys(trial.fault for trial in trials):
        of_fault = [trial for trial in trials if trial.fault == fault]
        parts.append(markdown((fault, "tried", *OUTCOMES), count(of_fault, "where")))
    header = ("protection removed", "fault", "place", "tried", "not survived")
    parts += [markdown(header, removed)] if removed else []
    text = "\n".join(parts)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "chaos.md").write_text(text)
        listed = [asdict(trial) for trial in trials]
        (options.output / "chaos.json").write_text(json.dumps(listed, indent=1))
    bad = sum(trial.outcome != SURVIVED for trial in trials)
    print(f"{len(trials):,} faults, {bad} not survived, {time.monotonic() - started:.0f} s")
    # A fault without a trial, such as with a high `--every`, has tested nothing.
    untried = set(options.faults) - {"control"} - {trial.fault for trial in trials}
    for fault in sorted(untried):
        print(f"{fault}: no trial. Give a smaller --every.")
    unnoticed = [row[0] for row in removed if row[-1] == "0"]
    for protection in unnoticed:
        print(f"{protection}: no fault noticed that this protection is missing.")
    return 1 if bad or unnoticed or untried else 0


if __name__ == "__main__":
    sys.exit(main())
