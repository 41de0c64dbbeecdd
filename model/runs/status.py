"""The status command: whether each stage, run and evaluation is done, stale or missing."""

from collections.abc import Iterator
from pathlib import Path

from ...pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET, VOCAB_JSON
from ...pipeline.stage.console import print_json, print_result, print_table
from ...pipeline.stage.files import is_locked
from ...pipeline.stage.manifest import MANIFEST_NAME, Manifest
from ...pipeline.stage.options import RESERVED
from ...pipeline.status import (
    StageStatus,
    dataset_stages,
    describe_stage,
    hash_if_present,
    holds_files,
    stage_json,
    stage_status,
)
from .layout import BEST_NAME, CONFIG_NAME, LAST_NAME


def show_status(data: Path) -> None:
    """Print one line per stage of each dataset, run and evaluation under `data`."""
    statuses = list(find_stages(data))
    print_json([stage_json(status) for status in statuses])
    if not statuses:
        print_result(f"{data} is empty. Start with 'showtell prepare' or 'make demo'.")
        return
    header = ("stage", "folder", "state", "counts", "time", "size")
    rows = [(s.stage, str(s.path.relative_to(data)), s.state, *describe_stage(s)) for s in statuses]
    print_table(f"status of {data}", rows, header)


def find_stages(data: Path) -> Iterator[StageStatus]:
    """Yield the status of every stage under `data`, in the order of the pipeline."""
    for dataset in sorted(path for path in data.glob("*") if path.is_dir()):
        if dataset.name not in RESERVED and holds_files(dataset):
            yield from dataset_stages(dataset)
            for words in filter(holds_files, sorted(dataset.glob("neighbours/*"))):
                yield neighbours_status(dataset, words)
    for run in filter(holds_run, sorted(data.glob("runs/*"))):
        yield run_status(data, run)
        for evaluation in filter(holds_files, sorted(run.glob("eval/*"))):
            yield eval_status(data, evaluation)
    for evaluation in filter(holds_files, sorted(data.glob("ensembles/*/eval/*"))):
        yield eval_status(data, evaluation)


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds a run, or what is left of one."""
    names = (CONFIG_NAME, LAST_NAME, BEST_NAME, MANIFEST_NAME)
    return any((folder / name).exists() for name in names)


def run_status(data: Path, run: Path) -> StageStatus:
    """Return the status of the training of a run."""
    if is_locked(run):
        return StageStatus("train", run, "running", None)
    if (run / LAST_NAME).exists() and not (run / MANIFEST_NAME).exists():
        return StageStatus("train", run, "stopped: continue with --resume", None)

    def find_changed() -> list[str]:
        manifest = Manifest.read(run)
        return _changed_captions(data, manifest, manifest)

    return stage_status("train", run, find_changed)


def neighbours_status(dataset: Path, folder: Path) -> StageStatus:
    """Return the status of the words of a dataset; they are stale if the captions have changed."""

    def find_changed() -> list[str]:
        manifest = Manifest.read(folder)
        now = hash_if_present(dataset / "captions" / CAPTIONS_PARQUET)
        is_changed = manifest is not None and manifest.inputs.get(CAPTIONS_PARQUET) != now
        return [CAPTIONS_PARQUET] if is_changed else []

    return stage_status("neighbours", folder, find_changed)


def eval_status(data: Path, evaluation: Path) -> StageStatus:
    """Return the status of an evaluation; it is stale if captions or weights have changed."""
    return stage_status("eval", evaluation, lambda: _changed_inputs(data, evaluation))


def _changed_inputs(data: Path, evaluation: Path) -> list[str]:
    """Return the names of the inputs that have changed since an evaluation ran."""
    manifest, changed = Manifest.read(evaluation), list[str]()
    for name, sha256 in manifest.inputs.items() if manifest else ():
        run, _, file = name.rpartition("/")  # RUN/best.safetensors for the members of an ensemble
        if file == BEST_NAME:
            run_dir = data / "runs" / run if run else evaluation.parents[1]
            if not changed:
                changed += _changed_captions(data, manifest, Manifest.read(run_dir))
            if hash_if_present(run_dir / file) != sha256:
                changed.append(name)
    return changed


def _changed_captions(data: Path, manifest: Manifest | None, run: Manifest | None) -> list[str]:
    """Return the files of the run's dataset that have changed since the manifest was written."""
    if manifest is None or run is None:
        return []
    captions = data / run.config["dataset"] / "captions"
    names = (IMAGES_PARQUET, CAPTIONS_PARQUET, VOCAB_JSON)
    return [name for name in names if manifest.inputs.get(name) != hash_if_present(captions / name)]
