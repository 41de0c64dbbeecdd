"""Where every stage stands, read off the manifests: done, stale, stopped or missing."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .config import RESERVED
from .stage.console import format_bytes, format_seconds, print_note, print_table
from .stage.manifest import Manifest, hash_file, is_locked

WEIGHTS_NAME = "best.safetensors"  # among the inputs of an evaluation

# Counts that say most about a stage, as many as fit into a line.
SHOWN_COUNTS = (
    "num_archives",
    "num_images",
    "num_captions",
    "vocab_size",
    "num_skipped",
    "feature_dim",
    "num_views",
    "grid_places",
    "num_epochs",
    "best_epoch",
)


@dataclass(frozen=True)
class StageStatus:
    """One line of `showtell status`.

    Attributes:
        stage: as typed on the command line.
        path: of the stage's folder.
        state: `done`, `missing`, `running`, `stopped` (it can go on), or `stale: ` and what has
            changed.
        manifest: None unless the stage has come to its end.
    """

    stage: str
    path: Path
    state: str
    manifest: Manifest | None


def show_status(data: Path) -> None:
    """Print a line for each stage of each dataset and run under `data`."""
    statuses = list(find_stages(data))
    if not statuses:
        print_note(f"{data} holds nothing yet. Begin with 'showtell prepare' or 'make demo'.")
        return
    header = ("stage", "folder", "state", "counts", "time", "size")
    rows = [(s.stage, str(s.path.relative_to(data)), s.state, *_describe(s)) for s in statuses]
    print_table(f"status of {data}", rows, header)


def find_stages(data: Path) -> Iterator[StageStatus]:
    """Yield the stages under `data` in the order in which data flows."""
    for dataset in sorted(path for path in data.glob("*") if path.is_dir()):
        if dataset.name not in RESERVED and holds_files(dataset):
            yield from _dataset_stages(dataset)
    for run in sorted(path.parent for path in data.glob("runs/*/config.json")):
        yield _run_status(data, run)
        for evaluation in filter(holds_files, sorted(run.glob("eval/*"))):
            yield eval_status(data, evaluation)
    for evaluation in filter(holds_files, sorted(data.glob("ensembles/*/eval/*"))):
        yield eval_status(data, evaluation)


def _dataset_stages(dataset: Path) -> Iterator[StageStatus]:
    if holds_files(dataset / "raw"):
        yield _status("download", dataset / "raw", [])
    captions = dataset / "captions"
    prepared = Manifest.read(captions)
    sources = [Path(name) for name in prepared.inputs] if prepared else []
    changed = [
        path.name
        for path in sources
        if path.is_file() and prepared and _hash(path) != prepared.inputs[str(path)]
    ]
    yield _status("prepare", captions, changed)
    folders = sorted(filter(holds_files, dataset.glob("features/*")))
    for features in folders:
        manifest = Manifest.read(features)
        name = "captions/images.parquet"
        is_old = manifest is not None and manifest.inputs.get(name) != _hash(dataset / name)
        yield _status("features", features, ["images.parquet"] if is_old else [])
    if not folders:
        yield StageStatus("features", dataset / "features", "missing", None)


def holds_files(folder: Path) -> bool:
    """Whether a stage has written anything there: the lock alone tells of one that failed."""
    return any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*"))


def _run_status(data: Path, run: Path) -> StageStatus:
    manifest = Manifest.read(run)
    if is_locked(run):
        return StageStatus("train", run, "running", manifest)
    if manifest is None and (run / "last.safetensors").exists():
        return StageStatus("train", run, "stopped: --resume goes on", None)
    return _status("train", run, _changed_captions(data, manifest, manifest))


def eval_status(data: Path, evaluation: Path) -> StageStatus:
    """Where one evaluation of a run, or of several together, stands."""
    manifest, changed = Manifest.read(evaluation), list[str]()
    for name, sha256 in manifest.inputs.items() if manifest else ():
        run, _, file = name.rpartition("/")  # RUN/FILE of an ensemble's members
        if file == WEIGHTS_NAME:
            run_dir = data / "runs" / run if run else evaluation.parents[1]
            changed = changed or _changed_captions(data, manifest, Manifest.read(run_dir))
            changed += [name] * (_hash(run_dir / file) != sha256)
    return _status("eval", evaluation, changed)


def _changed_captions(data: Path, manifest: Manifest | None, run: Manifest | None) -> list[str]:
    """Files of the run's dataset that are no longer those of the manifest."""
    if manifest is None or run is None:
        return []
    captions = data / run.config["dataset"] / "captions"
    names = ("images.parquet", "captions.parquet", "vocab.json")
    return [name for name in names if manifest.inputs.get(name) != _hash(captions / name)]


def _status(stage: str, path: Path, changed: list[str]) -> StageStatus:
    manifest = Manifest.read(path)
    if manifest is None:
        return StageStatus(stage, path, "missing", None)
    if missing := manifest.missing_outputs(path):
        return StageStatus(stage, path, f"stale: {missing[0]} is missing", manifest)
    state = f"stale: {', '.join(changed)} changed" if changed else "done"
    return StageStatus(stage, path, state, manifest)


def _describe(status: StageStatus) -> tuple[str, str, str]:
    """Counts, time and size of a finished stage."""
    if status.manifest is None:
        return "", "", ""
    counts = [
        f"{status.manifest.counts[name]:,} {name.removeprefix('num_').replace('_', ' ')}"
        for name in SHOWN_COUNTS
        if status.manifest.counts.get(name)
    ]
    size = format_bytes(sum(status.manifest.outputs.values()))
    return ", ".join(counts), format_seconds(status.manifest.seconds), size


@cache
def _hash(path: Path) -> str:
    """sha256 of a file, "" where there is none."""
    return hash_file(path) if path.is_file() else ""
