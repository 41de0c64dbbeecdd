"""The Markdown table of `bench/gpu.sh`: each figure with its goal, its command and the machine.

Usage: python -m showtell.bench.gpu_report DATA STEPS

DATA is the data folder that was measured in. STEPS is a file of tab-separated lines: name of a
step, result (passed, failed, timed out), seconds, limit in seconds.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EPOCH_GOAL_S = 4.0
HEADER = ("what", "measured", "goal", "command", "machine")

Summary = dict[str, dict[str, Any]]  # stage → its fields in summary.json


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: description of the figure.
        measured: its value and unit.
        command: that measured it.
        goal: and whether it was met; empty if there is none.
    """

    what: str
    measured: str
    command: str
    goal: str = ""


def main(data: Path, steps: Path) -> None:
    """Print the table and the time of each step."""
    summary = read_summary(data)
    machine = describe_machine(summary)
    rows = [*epoch_rows(summary, data), *process_rows(summary), *decoding_rows(summary)]
    rows += worker_rows(summary, "224×224")
    rows += worker_rows(read_summary(data / "full-size"), "640×480")
    print(table(HEADER, [(r.what, r.measured, r.goal, r.command, machine) for r in rows]))
    print()
    lines = [line.split("\t") for line in steps.read_text("utf-8").splitlines()]
    print(
        table(
            ("step", "result", "seconds", "limit"),
            [(name, result, seconds, limit) for name, result, seconds, limit in lines],
        )
    )


def read_summary(data: Path) -> Summary:
    """Return the figures that `showtell bench` wrote, by stage; empty if there are none."""
    path = data / "bench" / "summary.json"
    summary: Summary = json.loads(path.read_text("utf-8")) if path.exists() else {}
    # "coco-scale-0.01 epoch" → "epoch"
    return {name.split(" ")[-1]: fields for name, fields in summary.items()}


def describe_machine(summary: Summary) -> str:
    """Return the GPU, the cores and the version of torch."""
    machine = summary.get("machine", {})
    gpu = machine.get("gpu") or "no GPU"
    return f"{gpu}, {machine.get('cores', '?')} cores, torch {machine.get('torch', '?')}"


def epoch_rows(summary: Summary, data: Path) -> Iterator[Row]:
    """Yield the rows of training at COCO's size."""
    for stage, name in (("epoch", "epoch of COCO's size"), ("scst", "epoch of SCST")):
        if stage not in summary:
            continue
        details = summary[stage]["details"]
        command = f"showtell bench {stage} --coco-scale"
        with_validation = details["seconds_of_epoch"]
        seconds = with_validation - details["seconds_of_validation"]
        what = f"{name}, batches of {details['batch_size']:,}, {read_precision(data, stage)}"
        goal = compare(seconds, EPOCH_GOAL_S, seconds < EPOCH_GOAL_S, "below {:g} s")
        yield Row(what, f"{seconds:.1f} s", command, goal if stage == "epoch" else "")
        yield Row(f"{name} with validation", f"{with_validation:.1f} s", command)
        yield Row(f"{name}, whole command", f"{details['seconds']:.1f} s", command)


def read_precision(data: Path, run: str) -> str:
    """Return the precision that a run was trained in."""
    for path in data.glob(f"bench/coco-scale*/runs/{run}/config.json"):
        precision: str = json.loads(path.read_text("utf-8"))["train"]["precision"]
        return precision
    return "unknown precision"


def process_rows(summary: Summary) -> Iterator[Row]:
    """Yield the row of training with torchrun."""
    if "train-processes" in summary:
        details, rate = summary["train-processes"]["details"], summary["train-processes"]
        count = details["num_processes"]
        processes = "1 process" if count == 1 else f"{count} processes"
        what = f"training with {processes} by torchrun, batches of 128"
        measured = f"{rate['throughput']:,.0f} captions/s, {details['speedup']:.2f} times one alone"
        yield Row(what, measured, "showtell bench train-processes --dataset scenes")


def decoding_rows(summary: Summary) -> Iterator[Row]:
    """Yield the rows of beam search at COCO's size and of the features stage."""
    if "decode" in summary:
        rate = summary["decode"]["throughput"]
        command = "showtell bench decode --coco-scale"
        yield Row("beam search, beam 5, batches of 500", f"{rate:,.0f} images/s", command)
    if "features" in summary:
        rate = summary["features"]["throughput"]
        yield Row(
            "features stage, start included", f"{rate:,.0f} images/s", "showtell bench features"
        )
    if "features-tar" in summary:
        rates = summary["features-tar"]
        measured = f"{rates['throughput']:,.0f} images/s, from a folder {rates['limit']:,.0f}"
        yield Row("features stage, images in tars", measured, "showtell bench features-tar")


def worker_rows(summary: Summary, size: str) -> Iterator[Row]:
    """Yield the rows of image decoding by number of workers, for images of one size."""
    if "workers" not in summary:
        return
    details = summary["workers"]["details"]
    network = details["network_alone"]
    command = f"showtell bench workers --dataset {summary['workers']['dataset']}"
    yield Row("network alone, batches of 64", f"{network:,.0f} images/s", command)
    counts = [int(name.removeprefix("threads_")) for name in details if name.startswith("threads_")]
    for count in counts:
        threads, processes, stage = (
            details[f"{kind}_{count}"] for kind in ("threads", "processes", "features")
        )
        last = count == max(counts)
        decoding_goal = compare(processes, network, processes >= network, "at least {:,.0f}")
        what = f"images of {size} with {count} worker{'s' * (count > 1)}"
        yield Row(f"{what}: threads alone", f"{threads:,.0f} images/s", command)
        yield Row(
            f"{what}: processes alone",
            f"{processes:,.0f} images/s",
            command,
            decoding_goal if last else "",
        )
        yield Row(f"{what}: features stage", f"{stage:,.0f} images/s", command)


def compare(measured: float, goal: float, is_met: bool, text: str) -> str:
    """Return the goal and whether it is met, such as `below 4 s: met`."""
    verdict = "met" if is_met else f"missed by {abs(measured / goal - 1):.0%}"
    return f"{text.format(goal)}: {verdict}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
