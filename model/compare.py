"""`showtell compare`: whether two evaluations of the same images differ by more than chance."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pipeline.layout import CAPTIONS_PARQUET
from ..pipeline.stage.console import print_note, print_table
from ..pipeline.stage.errors import MismatchError, MissingArtifactError
from ..pipeline.stage.manifest import Manifest
from ..pipeline.status import holds_files
from .config import CompareConfig
from .metrics.bootstrap import draw_scores, interval, p_value
from .metrics.image_scores import SCORES_NAME, ImageScores
from .runs.status import eval_status

MEANING = (
    "p below 0.05: so large a difference is unlikely to come from the choice of images alone; "
    "another seed of the training is not accounted for."
)


@dataclass(frozen=True)
class Difference:
    """One score of two evaluations, as fractions.

    Attributes:
        name: of the score.
        score_a: of the first.
        score_b: of the second.
        low: end of the 95 % interval of score_b - score_a.
        high: the other end.
        p_value: two-sided, of "there is no difference".
    """

    name: str
    score_a: float
    score_b: float
    low: float
    high: float
    p_value: float


def compare(config: CompareConfig) -> list[Difference]:
    """Compare two evaluations by a paired bootstrap over their images, and print a table.

    Raises:
        MissingArtifactError: an evaluation that is not there, not finished, or out of date.
        MismatchError: they are not of the same images and references.
    """
    folders = [find_evaluation(config.data, name) for name in (config.eval_a, config.eval_b)]
    manifests = [require_evaluation(folder) for folder in folders]
    _require_same_references(folders, manifests)
    a, b = (ImageScores.read(folder / SCORES_NAME) for folder in folders)
    _require_same_images(folders, a, b)
    differences = find_differences(a, b, config.draws, config.seed)
    _show(folders, len(a), differences, config.draws)
    return differences


def find_differences(a: ImageScores, b: ImageScores, num_draws: int, seed: int) -> list[Difference]:
    """Compare the scores that two evaluations of the same images both have."""
    a, b = (images.select(np.argsort(images.image_ids)) for images in (a, b))
    scores_a, scores_b = a.of_all(), b.of_all()
    draws_a, draws_b = (draw_scores(images, num_draws, seed) for images in (a, b))
    differences = []
    for name in (name for name in scores_a if name in scores_b):
        drawn = draws_b[name] - draws_a[name]
        low, high = interval(drawn)
        scores = scores_a[name], scores_b[name]
        differences.append(Difference(name, *scores, low, high, p_value(drawn)))
    return differences


def find_evaluation(data: Path, name: str) -> Path:
    """The folder of an evaluation: a path, or `RUN/val-beam3` or `RUN`, under `data`.

    `A+B` is the ensemble of the runs A and B, in any order.

    Raises:
        MissingArtifactError: there is none, or the run has several.
    """
    if Manifest.read(Path(name)) is not None and Path(name).parent.name == "eval":
        return Path(name)
    run, _, evaluation = name.rstrip("/").partition("/")
    run = "+".join(sorted(run.split("+")))
    folder = data / ("ensembles" if "+" in run else "runs") / run / "eval"
    there = sorted(path.name for path in folder.glob("*") if holds_files(path))
    if evaluation in there or (not evaluation and len(there) == 1):
        return folder / (evaluation or there[0])
    if there:
        raise MissingArtifactError(
            f"{name!r} names none of the evaluations in {folder}: {', '.join(there)}. Give one, "
            f"such as {run}/{there[0]}."
        )
    raise MissingArtifactError(
        f"{name!r} names no evaluation: {folder} holds none. Give the folder of one, or run "
        f"'{eval_command(run)}' first."
    )


def eval_command(name: str) -> str:
    """What evaluates a run, or the runs of an ensemble joined by +."""
    return f"showtell eval --run {name.replace('+', ' --run ')}"


def require_evaluation(folder: Path) -> Manifest:
    """The manifest of an evaluation that is finished and up to date.

    Raises:
        MissingArtifactError: it is not.
    """
    run_dir = folder.absolute().parents[1]
    status = eval_status(run_dir.parents[1], folder.absolute())
    again = f"Run '{eval_command(run_dir.name)}' with its options again."
    if status.manifest is None or status.state != "done":
        state = "not finished" if status.manifest is None else status.state
        raise MissingArtifactError(f"{folder} is {state}. {again}")
    if SCORES_NAME not in status.manifest.outputs:
        raise MissingArtifactError(
            f"{folder} has no {SCORES_NAME}: it was written by an older showtell. {again}"
        )
    return status.manifest


def _require_same_references(folders: list[Path], manifests: list[Manifest]) -> None:
    """Refuse evaluations of other datasets, other splits or other preparations."""
    a, b = manifests
    for what, of_a, of_b in (
        ("datasets", a.details.get("dataset"), b.details.get("dataset")),
        ("splits", a.config.get("split"), b.config.get("split")),
        ("captions", _hash_of_captions(a), _hash_of_captions(b)),
    ):
        if of_a != of_b:
            raise MismatchError(
                f"{folders[0]} and {folders[1]} are evaluations of different {what} ({of_a} and "
                f"{of_b}): their scores cannot be compared. Evaluate both runs on the same images."
            )


def _hash_of_captions(manifest: Manifest) -> str:
    return manifest.inputs.get(CAPTIONS_PARQUET, "")[:12]


def _require_same_images(folders: list[Path], a: ImageScores, b: ImageScores) -> None:
    ids_a, ids_b = (set(scores.image_ids.tolist()) for scores in (a, b))
    if only := ids_a ^ ids_b:
        raise MismatchError(
            f"{folders[0]} scores {len(ids_a):,} images and {folders[1]} {len(ids_b):,}, and image "
            f"{min(only)} is in one only: their scores cannot be compared. Extract the features of "
            "both runs from the same images, then run 'showtell eval' again."
        )


def _show(
    folders: list[Path], num_images: int, differences: list[Difference], num_draws: int
) -> None:
    rows = [
        (
            found.name,
            f"{100 * found.score_a:.1f}",
            f"{100 * found.score_b:.1f}",
            f"{100 * (found.score_b - found.score_a):+.1f}",
            f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
            f"{found.p_value:.4f}",
        )
        for found in differences
    ]
    for letter, folder in zip("AB", folders, strict=True):
        print_note(f"{letter}: {folder}")
    title = f"compare: {num_images:,} images, {num_draws:,} draws"
    print_table(title, rows, ("score", "A", "B", "B - A", "95 %", "p"))
    print_note(MEANING)
