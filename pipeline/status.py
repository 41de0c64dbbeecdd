"""Status of the stages of a dataset (done, stale or missing), read from their manifests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from .layout import IMAGES_INPUT, IMAGES_PARQUET
from .stage.console import format_bytes, format_seconds
from .stage.errors import DamagedFileError, MissingArtifactError
from .stage.files import hash_file
from .stage.manifest import MANIFEST_NAME, MISSING, Manifest

# Counts to show on the line of a stage. Each stage has only a few of them.
SHOWN_COUNTS = (
    "num_archives",
    "num_images",
    "num_captions",
    "vocab_size",
    "num_skipped",
    "feature_dim",
    "num_views",
    "grid_places",
    "grid_dim",
    "num_epochs",
    "best_epoch",
)


@dataclass(frozen=True)
class StageStatus:
    """One line of `showtell status`.

    Attributes:
        stage: name of the command.
        path: output folder of the stage.
        state: `done`, `missing`, `running`, `stopped: <how to resume>`, `stale: <reason>`,
            `damaged: <file>` or `unreadable: <file>: <reason>`.
        manifest: the manifest of the stage; None if the stage has not finished.
    """

    stage: str
    path: Path
    state: str
    manifest: Manifest | None


def dataset_stages(dataset: Path) -> Iterator[StageStatus]:
    """Yield the status of download, prepare and each features folder of `data/<dataset>`."""
    raw, captions = dataset / "raw", dataset / "captions"
    if holds_files(raw):
        yield stage_status("download", raw)
    yield stage_status("prepare", captions, lambda: _changed_sources(captions))
    folders = sorted(filter(holds_files, dataset.glob("features/*")))
    for features in folders:
        find_changed = partial(_changed_images, dataset, features)
        yield stage_status("features", features, find_changed, check_content=False)
    if not folders:
        yield StageStatus("features", dataset / "features", "missing", None)


def _changed_sources(captions: Path) -> list[str]:
    """Return the names of source files that have changed since prepare."""
    manifest = Manifest.read(captions)
    inputs = manifest.inputs if manifest else {}
    sources = {Path(name): sha256 for name, sha256 in inputs.items() if Path(name).is_file()}
    return [path.name for path, sha256 in sources.items() if hash_if_present(path) != sha256]


def _changed_images(dataset: Path, features: Path) -> list[str]:
    """Return ["images.parquet"] if it has changed since the features were extracted, else []."""
    manifest = Manifest.read(features)
    if manifest is None:
        return []
    is_changed = manifest.inputs.get(IMAGES_INPUT) != hash_if_present(dataset / IMAGES_INPUT)
    return [IMAGES_PARQUET] if is_changed else []


def holds_files(folder: Path) -> bool:
    """Return whether a folder contains files, other than hidden ones such as a lock."""
    return any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*"))


def stage_status(
    stage: str,
    path: Path,
    find_changed: Callable[[], list[str]] = list,
    *,
    check_content: bool = True,
) -> StageStatus:
    """Return the status of the stage that writes to `path`.

    Args:
        stage: name of the command.
        path: output folder of the stage.
        find_changed: returns the names of the inputs that have changed since the stage ran, which
            makes it stale.
        check_content: whether to verify the checksums of the outputs, not only their sizes.
            `verify` reads those that are too large for this.
    """
    try:
        return _find_status(stage, path, find_changed, check_content)
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        return StageStatus(stage, path, f"unreadable: {name}: {error.strerror}", None)


def _find_status(
    stage: str, path: Path, find_changed: Callable[[], list[str]], check_content: bool
) -> StageStatus:
    try:
        manifest = Manifest.load(path)
    except MissingArtifactError:
        return StageStatus(stage, path, "missing", None)
    except DamagedFileError:
        return StageStatus(stage, path, f"damaged: {MANIFEST_NAME}", None)
    for name, problem in manifest.find_problems(path, check_content=check_content)[:1]:
        state = f"stale: {name} is missing" if problem == MISSING else f"damaged: {name}"
        return StageStatus(stage, path, state, manifest)
    changed = find_changed()
    state = f"stale: {', '.join(changed)} changed" if changed else "done"
    return StageStatus(stage, path, state, manifest)


def describe_stage(status: StageStatus) -> tuple[str, str, str]:
    """Return the counts, time and size of a finished stage as text, otherwise empty strings."""
    if status.manifest is None:
        return "", "", ""
    counts = [
        f"{status.manifest.counts[name]:,} {name.removeprefix('num_').replace('_', ' ')}"
        for name in SHOWN_COUNTS
        if status.manifest.counts.get(name)
    ]
    size = format_bytes(sum(status.manifest.outputs.values()))
    return ", ".join(counts), format_seconds(status.manifest.seconds), size


def stage_json(status: StageStatus) -> dict[str, Any]:
    """Return the status as JSON values: counts, seconds and size are null for unfinished stages."""
    manifest = status.manifest
    return {
        "stage": status.stage,
        "path": str(status.path),
        "state": status.state,
        "counts": manifest and manifest.counts,
        "seconds": manifest and manifest.seconds,
        "size_bytes": manifest and sum(manifest.outputs.values()),
    }


@cache
def hash_if_present(path: Path) -> str:
    """Return the SHA-256 of a file, or "" if it does not exist."""
    return hash_file(path) if path.is_file() else ""
