"""Whether the stages of a dataset are done, stale or missing, read from their manifests."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .layout import IMAGES_INPUT, IMAGES_PARQUET
from .stage.console import format_bytes, format_seconds
from .stage.files import hash_file
from .stage.manifest import Manifest

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


def dataset_stages(dataset: Path) -> Iterator[StageStatus]:
    """Yield download, prepare and each features folder of `data/<dataset>`."""
    if holds_files(dataset / "raw"):
        yield stage_status("download", dataset / "raw", [])
    captions = dataset / "captions"
    prepared = Manifest.read(captions)
    sources = [Path(name) for name in prepared.inputs] if prepared else []
    changed = [
        path.name
        for path in sources
        if path.is_file() and prepared and hash_if_present(path) != prepared.inputs[str(path)]
    ]
    yield stage_status("prepare", captions, changed)
    folders = sorted(filter(holds_files, dataset.glob("features/*")))
    for features in folders:
        manifest = Manifest.read(features)
        name = IMAGES_INPUT
        is_old = manifest is not None and manifest.inputs.get(name) != hash_if_present(
            dataset / name
        )
        yield stage_status("features", features, [IMAGES_PARQUET] if is_old else [])
    if not folders:
        yield StageStatus("features", dataset / "features", "missing", None)


def holds_files(folder: Path) -> bool:
    """Whether a stage has written anything there: the lock alone tells of one that failed."""
    return any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*"))


def stage_status(stage: str, path: Path, changed: list[str]) -> StageStatus:
    """Read the manifest in `path`; the stage is stale if any of its inputs have `changed`."""
    manifest = Manifest.read(path)
    if manifest is None:
        return StageStatus(stage, path, "missing", None)
    if missing := manifest.missing_outputs(path):
        return StageStatus(stage, path, f"stale: {missing[0]} is missing", manifest)
    state = f"stale: {', '.join(changed)} changed" if changed else "done"
    return StageStatus(stage, path, state, manifest)


def describe_stage(status: StageStatus) -> tuple[str, str, str]:
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
def hash_if_present(path: Path) -> str:
    """sha256 of a file, "" where there is none."""
    return hash_file(path) if path.is_file() else ""
