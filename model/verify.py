"""The command `showtell verify`: checks every file that the stages wrote, and lists damaged ones.

Each file is read by the function that the stages use, so both agree about what is damaged.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..features.verify import features_checks
from ..pipeline.stage.artifacts import is_bundle
from ..pipeline.stage.console import ProgressLine, format_bytes, print_json, print_result
from ..pipeline.stage.errors import MissingArtifactError, ShowTellError
from ..pipeline.stage.files import file_size, is_locked
from ..pipeline.stage.manifest import MANIFEST_NAME
from ..pipeline.stage.options import RESERVED
from ..pipeline.text.vocab import Vocab
from ..pipeline.verify import Check, Problem, Reader, dataset_checks, link_checks, stage_checks
from .evaluate import CAPTIONS_NAME, read_captions, read_metrics
from .metrics.image_scores import SCORES_NAME, ImageScores
from .neighbours import WORDS_NAME
from .runs.checkpoint import read_progress
from .runs.config import VerifyConfig
from .runs.layout import (
    BEST_NAME,
    CONFIG_NAME,
    CONSENSUS_NAME,
    LAST_NAME,
    METRICS_NAME,
    MODEL_NAME,
    VOCAB_NAME,
)
from .runs.repair import check_checkpoint, find_config, has_started
from .runs.run import RunConfig, read_decoder, read_vocab
from .runs.tensors import read_tensors

MEGABYTE = 10**6


def verify(config: VerifyConfig) -> bool:
    """Read and verify every file under the data folder, and print all problems.

    Nothing is written, so it works on a read-only folder. Folders that another process is writing
    to are skipped, and counted.

    Returns:
        True if no file is damaged or missing. Leftovers of interrupted stages do not count.

    Raises:
        MissingArtifactError: no stage wrote anything at one of the paths.
    """
    checks = select_checks(config)
    sizes = [file_size(check.path) or 0 for check in checks]
    problems: list[Problem] = []
    with ProgressLine("verify", total=sum(sizes) // MEGABYTE, unit="MB") as progress:
        for check, size in zip(checks, sizes, strict=True):
            if problem := check.find_problem():
                problems.append(problem)
            progress.advance(size // MEGABYTE)
    bad = [problem for problem in problems if problem.state in ("damaged", "missing")]
    num_skipped = sum(problem.state == "skipped" for problem in problems)
    num_unfinished = sum(problem.state == "unfinished" for problem in problems)
    num_files = len(checks) - num_skipped
    print_json({"num_files": num_files, "num_bytes": sum(sizes), "problems": problems})
    for problem in problems:
        print_result(f"{problem.state}: {problem.message}")
    print_result(
        f"verify: {len(bad):,} of {num_files:,} files ({format_bytes(sum(sizes))}) are damaged "
        "or missing."
        + (f" Left by stopped stages: {num_unfinished:,}." if num_unfinished else "")
        + (f" Folders skipped: {num_skipped:,}." if num_skipped else "")
    )
    if len(commands := list(dict.fromkeys(problem.command for problem in bad))) > 1:
        print_result("Repair them in this order:")
        for command in commands:
            print_result(f"  {command}")
    return not bad


def select_checks(config: VerifyConfig) -> list[Check]:
    """Return the checks of everything under the data folder, or under the paths given.

    Raises:
        MissingArtifactError: no stage wrote anything at one of the paths.
    """
    checks = {check.path: check for check in find_checks(config.data)}
    paths = [config.data] if config.paths is None else config.paths
    bundles = {folder for path in paths for folder in (path, path.parent) if is_bundle(folder)}
    checks |= {check.path: check for folder in sorted(bundles) for check in bundle_checks(folder)}
    selected = set[Path]()
    for path in paths:
        found = {checked for checked in checks if is_inside(checked, path)}
        if not found:
            raise MissingArtifactError(
                f"{path} contains no file that showtell wrote to the data folder {config.data}, "
                "and is not a bundle. Give a file or folder inside the data folder, or choose "
                "another one with --data."
            )
        selected |= found
    return [check for path, check in checks.items() if path in selected]


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is, or is inside, a folder: by its name, or by where links lead."""
    # Path.resolve() would follow links.
    by_name = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))  # noqa: PTH100
    return by_name or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def find_checks(data: Path) -> Iterator[Check]:
    """Yield the checks of every file under `data`, in the order of the pipeline.

    A link to a folder that does not exist comes first: its files cannot be listed.
    """
    yield from link_checks(
        data, "*", "*/*", "*/features/*", "*/neighbours/*", "runs/*/*", "runs/*/eval/*"
    )
    yield from link_checks(data, "ensembles/*/*", "ensembles/*/eval/*")
    for dataset in sorted(path for path in data.glob("*") if path.is_dir()):
        if dataset.name not in RESERVED:
            yield from dataset_checks(dataset)
            for features in sorted(dataset.glob("features/*")):
                yield from features_checks(features)
            for words in sorted(dataset.glob("neighbours/*")):
                yield from stage_checks(words, {WORDS_NAME: read_tensors})
    evaluations: dict[str, Reader] = {
        METRICS_NAME: lambda path: read_metrics(path.parent),
        CAPTIONS_NAME: lambda path: read_captions(path.parent),
        SCORES_NAME: ImageScores.read,
    }
    for run in sorted(data.glob("runs/*")):
        yield from run_checks(run)
        for evaluation in sorted(run.glob("eval/*")):
            yield from stage_checks(evaluation, evaluations)
    for evaluation in sorted(data.glob("ensembles/*/eval/*")):
        yield from stage_checks(evaluation, evaluations)


def bundle_checks(bundle: Path) -> Iterator[Check]:
    """Yield the checks of a folder that `showtell export` wrote."""
    readers: dict[str, Reader] = {
        CONFIG_NAME: lambda path: RunConfig.read(bundle),
        VOCAB_NAME: lambda path: read_vocab(bundle, RunConfig.read(bundle)),
        MODEL_NAME: lambda path: read_decoder(bundle, RunConfig.read(bundle)),
        CONSENSUS_NAME: read_tensors,
    }
    yield from stage_checks(bundle, readers)


def run_checks(run: Path) -> Iterator[Check]:
    """Yield the checks of `data/runs/<run>`: what `showtell train --resume` checks."""
    readers: dict[str, Reader] = {
        CONFIG_NAME: lambda path: RunConfig.read(run),
        VOCAB_NAME: Vocab.read,
        BEST_NAME: read_tensors,
    }
    # Not listed in the manifest, because a finished run does not need it.
    unlisted: dict[str, Reader] = {LAST_NAME: read_progress}
    if has_started(run) and not is_locked(run):  # both are written before the training starts
        for name in (CONFIG_NAME, VOCAB_NAME):
            if not (run / name).exists():
                yield Check(run / name, partial(readers[name], run / name))
    try:
        config = find_config(run)
    except ShowTellError:  # reported as a problem of config.json
        yield from stage_checks(run, readers, unlisted)
        return
    readers[VOCAB_NAME] = lambda path: read_vocab(run, config)
    readers[BEST_NAME] = lambda path: read_decoder(run, config)
    if file_size(run / MANIFEST_NAME) is None:
        unlisted[LAST_NAME] = lambda path: check_checkpoint(run, config)
    yield from stage_checks(run, readers, unlisted)
