"""`showtell bench`: runs each stage in a process of its own, and shows what it reached."""

import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib import import_module
from typing import Any

from ..pipeline.stage.console import (
    format_bytes,
    print_json,
    print_note,
    print_table,
    print_warning,
    worker_initializer,
)
from ..pipeline.stage.errors import MissingArtifactError, ShowTellError
from ..pipeline.stage.files import write_json
from ..pipeline.stage.manifest import MANIFEST_NAME, Manifest
from .config import BenchConfig
from .figures import Figures, peak_memory

DATASET = "coco-scale"

HEADER = ("stage", "throughput", "limit", "ratio", "time goes to", "peak memory", "limit is")


def bench(config: BenchConfig) -> dict[str, Figures]:
    """Measure stages, print a table, and write `data/bench/summary.json`.

    A stage whose data is not there is left out, with a line that says what it misses.

    Raises:
        MissingArtifactError: no stage has its data.
    """
    path = config.data / "bench" / "summary.json"
    if config.coco_scale:
        config = replace(config, data=config.data / "bench" / "coco-scale", dataset=DATASET)
    else:
        config = replace(config, dataset=choose_dataset(config))
    stages = config.stages or tuple(config.known_stages)
    if config.coco_scale:
        require_drawn(config, stages)
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    prefix = "coco-scale " if config.coco_scale else ""
    found: dict[str, Figures] = {}
    for stage in stages:
        print_note(f"bench: {stage} …")
        result = run_alone(stage, config)
        if isinstance(result, str):
            print_warning(f"bench: {stage} is left out: {result}")
        else:
            found[stage] = result
            known[prefix + stage] = {"dataset": config.dataset, **result.as_json()}
        # After each stage: what comes after it may take long, and be stopped.
        write_json(path, known | {"machine": describe_machine()})
    if not found:
        raise MissingArtifactError(
            f"nothing of {config.dataset} could be measured: the lines above say what each stage "
            f"misses, and what to run first."
        )
    rows = [describe(stage, figures) for stage, figures in found.items()]
    print_table(f"bench on {config.dataset}, {os.cpu_count()} cores", rows, HEADER)
    print_note(f"bench: {path}")
    measured = {stage: figures.as_json() for stage, figures in found.items()}
    print_json({"dataset": config.dataset, "stages": measured, "machine": describe_machine()})
    return found


def choose_dataset(config: BenchConfig) -> str:
    """The dataset that is named; of those prepared, the one with most captions.

    Raises:
        MissingArtifactError: none is prepared.
    """
    if config.dataset != "auto":
        return config.dataset
    sizes = {
        path.parent.name: manifest.counts["num_captions"]
        for path in config.data.glob("*/captions")
        if (manifest := Manifest.read(path)) is not None
    }
    if not sizes:
        raise MissingArtifactError(
            f"{config.data} holds no prepared dataset. Run 'showtell prepare' or 'make demo' first."
        )
    return max(sizes, key=lambda name: sizes[name])


def require_drawn(config: BenchConfig, stages: Sequence[str]) -> None:
    """Refuse a stage at COCO's size whose data no earlier stage has left, or is about to leave.

    Raises:
        MissingArtifactError: naming the stage that has to run before.
    """
    left_by = {
        "draw": config.captions_dir / MANIFEST_NAME,
        "epoch": config.data / "runs" / "epoch" / MANIFEST_NAME,
    }
    for stage, earlier in (("prepare", "draw"), ("epoch", "draw"), ("decode", "epoch")):
        missing = earlier not in stages and not left_by[earlier].exists()
        if stage in stages and missing:
            raise MissingArtifactError(
                f"{left_by[earlier]} does not exist, which 'bench {stage} --coco-scale' goes on "
                f"from. Run 'showtell bench {earlier} --coco-scale' first, or all by 'showtell "
                f"bench --coco-scale'."
            )


def run_alone(stage: str, config: BenchConfig) -> Figures | str:
    """Run a stage's benchmark in a new process; why it cannot run, where its data is absent."""
    context = multiprocessing.get_context("spawn")  # nothing is loaded or in memory yet
    with ProcessPoolExecutor(1, context, worker_initializer()) as pool:
        return pool.submit(measure, stage, config).result()


def measure(stage: str, config: BenchConfig) -> Figures | str:
    """In the new process: the figures with the memory they took, or why there are none."""
    module, function = config.known_stages[stage].split(":")
    run: Callable[[BenchConfig], Figures] = getattr(
        import_module(f".{module}", __package__), function
    )
    try:
        figures = run(config)
    except (ShowTellError, OSError) as error:
        return str(error)
    return replace(figures, peak_bytes=peak_memory())


def describe(stage: str, figures: Figures) -> tuple[str, ...]:
    """A row of the table."""
    shares = sorted(figures.shares.items(), key=lambda share: -share[1])
    return (
        stage,
        f"{figures.throughput:,.0f} {figures.unit}",
        f"{figures.limit:,.0f}",
        f"{figures.ratio:.2f}",
        ", ".join(f"{name} {share:.0%}" for name, share in shares),
        format_bytes(figures.peak_bytes),
        figures.limited_by,
    )


def describe_machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
