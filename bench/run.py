"""The stage `bench`: measure each stage in its own process, print a table, write a summary.

`data/bench/summary.json` maps each stage (`coco-scale <stage>` with `--coco-scale`) to the fields
of its `Measurement`, `ratio` and `dataset`; `machine` describes the machine.
"""

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
from ..pipeline.stage.signals import end_children_on_sigterm, signals_blocked
from .config import COCO_SCALE_DATASET, BenchConfig
from .measurement import Measurement, peak_memory

HEADER = ("stage", "throughput", "limit", "ratio", "time goes to", "peak memory", "limit is")

# Stages of --coco-scale → the stage whose output they need.
EARLIER_STAGE = {"prepare": "draw", "epoch": "draw", "decode": "epoch", "scst": "epoch"}


def bench(config: BenchConfig) -> dict[str, Measurement]:
    """Measure stages, print a table and write `data/bench/summary.json`.

    A stage whose data is missing is left out; a line says what is missing.

    Raises:
        MissingArtifactError: no stage could be measured.
    """
    path = config.data / "bench" / "summary.json"
    config = choose_data(config)
    stages = config.stages or config.known_stages
    if config.coco_scale:
        check_earlier_stages(config, stages)
    summary = json.loads(path.read_text("utf-8")) if path.exists() else {}
    prefix = f"{config.data.name} " if config.coco_scale else ""
    results: dict[str, Measurement] = {}
    for stage in stages:
        print_note(f"bench: {stage} …")
        result = measure_in_new_process(stage, config)
        if isinstance(result, str):
            print_warning(f"bench: {stage} is left out: {result}")
        else:
            results[stage] = result
            summary[prefix + stage] = {"dataset": config.dataset, **result.as_json()}
        # Written after every stage, so that nothing is lost if a later one is stopped.
        write_json(path, summary | {"machine": describe_machine()})
    if not results:
        raise MissingArtifactError(
            f"No stage could be measured on {config.dataset}. The lines above say what each stage "
            f"needs and which command makes it."
        )
    rows = [table_row(stage, result) for stage, result in results.items()]
    print_table(f"bench on {config.dataset}, {os.cpu_count()} cores", rows, HEADER)
    print_note(f"bench: {path}")
    measured = {stage: result.as_json() for stage, result in results.items()}
    print_json({"dataset": config.dataset, "stages": measured, "machine": describe_machine()})
    return results


def choose_data(config: BenchConfig) -> BenchConfig:
    """Set the data folder and the dataset to measure on.

    Raises:
        MissingArtifactError: no dataset is prepared.
    """
    if not config.coco_scale:
        return replace(config, dataset=choose_dataset(config))
    name = "coco-scale" if config.scale == 1 else f"coco-scale-{config.scale:g}"
    return replace(config, data=config.data / "bench" / name, dataset=COCO_SCALE_DATASET)


def choose_dataset(config: BenchConfig) -> str:
    """Return the dataset to measure on: `--dataset`, or the prepared one with the most captions.

    Raises:
        MissingArtifactError: no dataset is prepared.
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


def check_earlier_stages(config: BenchConfig, stages: Sequence[str]) -> None:
    """Check that every stage of `--coco-scale` has the output of an earlier stage that it needs.

    Raises:
        MissingArtifactError: naming the stage to run first.
    """
    output_of = {
        "draw": config.captions_dir / MANIFEST_NAME,
        "epoch": config.data / "runs" / "epoch" / MANIFEST_NAME,
    }
    for stage in stages:
        earlier = EARLIER_STAGE.get(stage)
        if earlier is None or earlier in stages or output_of[earlier].exists():
            continue
        raise MissingArtifactError(
            f"{output_of[earlier]} does not exist; 'showtell bench {stage} --coco-scale' needs it. "
            f"Run 'showtell bench {earlier} --coco-scale' first, or all stages with 'showtell "
            f"bench --coco-scale'."
        )


def measure_in_new_process(stage: str, config: BenchConfig) -> Measurement | str:
    """Measure a stage in a new process, so that its peak memory is its own.

    Returns:
        The measurement, or the reason why it is not possible.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, set_up_worker, (worker_initializer(),)) as pool:
        with signals_blocked():  # the process starts with its first task
            measured = pool.submit(measure_stage, stage, config)
        return measured.result()


def set_up_worker(silence: Callable[[], None] | None) -> None:
    """Initialize the worker process that runs the benchmark."""
    end_children_on_sigterm()
    if silence is not None:
        silence()


def measure_stage(stage: str, config: BenchConfig) -> Measurement | str:
    """Measure a stage in this process; returns the reason instead if its data is missing."""
    module = import_module(f".stages.{stage.replace('-', '_')}", __package__)
    measure: Callable[[BenchConfig], Measurement] = module.measure
    try:
        result = measure(config)
    except (ShowTellError, OSError) as error:
        return str(error)
    return replace(result, peak_bytes=peak_memory())


def table_row(stage: str, result: Measurement) -> tuple[str, ...]:
    """Return the cells of a stage under `HEADER`."""
    shares = sorted(result.shares.items(), key=lambda share: -share[1])
    return (
        stage,
        f"{result.throughput:,.0f} {result.unit}",
        f"{result.limit:,.0f}",
        f"{result.ratio:.2f}",
        ", ".join(f"{name} {share:.0%}" for name, share in shares),
        format_bytes(result.peak_bytes),
        result.limited_by,
    )


def describe_machine() -> dict[str, Any]:
    """Return the hardware and the versions that the figures depend on."""
    import torch

    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
