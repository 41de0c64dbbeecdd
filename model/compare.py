"""The compare command: test whether two evaluations of the same images differ significantly."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pipeline.layout import CAPTIONS_PARQUET
from ..pipeline.stage.artifacts import repair_command, require_stage
from ..pipeline.stage.command_line import command_line
from ..pipeline.stage.console import print_json, print_note, print_result, print_table
from ..pipeline.stage.errors import MismatchError, MissingArtifactError
from ..pipeline.stage.manifest import MANIFEST_NAME, Manifest
from ..pipeline.status import holds_files
from .metrics.bootstrap import draw_scores, interval, p_value
from .metrics.image_scores import SCORES_NAME, ImageScores
from .runs.layout import run_folder
from .runs.status import eval_status
from .scoring.config import CompareConfig

EXPLANATION = (
    "If p is below 0.05, the choice of images alone is unlikely to cause so large a difference. "
    "The difference that another training seed would make is not included."
)


@dataclass(frozen=True)
class Difference:
    """The difference of one score between two evaluations A and B, as fractions.

    Attributes:
        name: name of the score.
        score_a: score of A.
        score_b: score of B.
        low: lower end of the 95 % confidence interval of score_b - score_a.
        high: upper end.
        p_value: two-sided, of the hypothesis "there is no difference".
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
        MissingArtifactError: an evaluation is missing, unfinished or out of date.
        MismatchError: the evaluations do not have the same images and references.
    """
    folders = [find_evaluation(config.data, name) for name in (config.eval_a, config.eval_b)]
    manifests = [require_evaluation(folder) for folder in folders]
    _require_same_references(folders, manifests)
    a, b = (ImageScores.read(folder / SCORES_NAME) for folder in folders)
    _require_same_images(folders, a, b)
    differences = find_differences(a, b, config.draws, config.seed)
    show_differences(folders, len(a), differences, config.draws)
    print_json(
        {
            "eval_a": folders[0],
            "eval_b": folders[1],
            "num_images": len(a),
            "num_draws": config.draws,
            "scores": differences,
        }
    )
    return differences


def find_differences(a: ImageScores, b: ImageScores, num_draws: int, seed: int) -> list[Difference]:
    """Compare the scores that two evaluations of the same images have in common."""
    a, b = (images.select(np.argsort(images.image_ids)) for images in (a, b))
    scores_a, scores_b = a.of_all(), b.of_all()
    draws_a, draws_b = (draw_scores(images, num_draws, seed) for images in (a, b))
    differences = []
    for name in scores_a:
        if name in scores_b:
            drawn = draws_b[name] - draws_a[name]
            scores = scores_a[name], scores_b[name]
            differences.append(Difference(name, *scores, *interval(drawn), p_value(drawn)))
    return differences


def find_evaluation(data: Path, name: str) -> Path:
    """Find the folder of an evaluation.

    Args:
        data: root of all files.
        name: the folder itself, or RUN/EVALUATION such as `flickr8k-gru/val-beam3`, or RUN if it
            has only one evaluation. RUN may be an ensemble such as `A+B`, in any order.

    Raises:
        MissingArtifactError: there is none, or the run has several.
    """
    if Manifest.read(Path(name)) is not None and Path(name).parent.name == "eval":
        return Path(name)
    run, _, evaluation = name.rstrip("/").partition("/")
    run_dir = run_folder(data, run.split("+"))
    found = sorted(path.name for path in (run_dir / "eval").glob("*") if holds_files(path))
    if evaluation in found or (not evaluation and len(found) == 1):
        return run_dir / "eval" / (evaluation or found[0])
    if found:
        raise MissingArtifactError(
            f"{name!r} is not the name of one evaluation. {run_dir / 'eval'} has "
            f"{', '.join(found)}; choose one, such as {run_dir.name}/{found[0]}."
        )
    raise MissingArtifactError(
        f"{name!r} is not the name of an evaluation: {run_dir / 'eval'} has none. Name the folder "
        f"of an evaluation, or run '{eval_command(data, run_dir.name)}' first."
    )


def eval_command(data: Path, name: str) -> str:
    """Return the command that evaluates a run, or an ensemble given as names joined by +."""
    runs = [word for run in name.split("+") for word in ("--run", run)]
    return command_line(data, "eval", *runs)


def require_evaluation(folder: Path) -> Manifest:
    """Read the manifest of an evaluation that must be finished and up to date.

    Raises:
        MissingArtifactError: the evaluation is unfinished or out of date.
        DamagedFileError: a file of the evaluation is damaged.
    """
    if (folder / MANIFEST_NAME).exists():
        require_stage(folder)
    status = eval_status(folder.absolute().parents[3], folder.absolute())
    fix = f"Run '{repair_command(folder / MANIFEST_NAME)}'"
    if status.manifest is None:
        raise MissingArtifactError(f"{folder} is not finished. {fix} with its options again.")
    if status.state != "done":
        raise MissingArtifactError(f"{folder} is {status.state}. {fix}.")
    if SCORES_NAME not in status.manifest.outputs:
        raise MissingArtifactError(
            f"{folder} has no {SCORES_NAME} because an older version of showtell wrote it. {fix}."
        )
    return status.manifest


def _require_same_references(folders: list[Path], manifests: list[Manifest]) -> None:
    """Check that two evaluations have the same dataset, split and captions."""
    a, b = manifests
    for noun, of_a, of_b in (
        ("datasets", a.details.get("dataset"), b.details.get("dataset")),
        ("splits", a.config.get("split"), b.config.get("split")),
        ("captions", _hash_of_captions(a), _hash_of_captions(b)),
    ):
        if of_a != of_b:
            raise MismatchError(
                f"{folders[0]} and {folders[1]} cannot be compared because they evaluate different "
                f"{noun} ({of_a} and {of_b}). Evaluate both runs on the same images."
            )


def _hash_of_captions(manifest: Manifest) -> str:
    """Return the sha256 of the captions that an evaluation was scored against, shortened."""
    return manifest.inputs.get(CAPTIONS_PARQUET, "")[:12]


def _require_same_images(folders: list[Path], a: ImageScores, b: ImageScores) -> None:
    """Check that two evaluations have the same images."""
    ids_a, ids_b = (set(scores.image_ids.tolist()) for scores in (a, b))
    if ids_in_one := ids_a ^ ids_b:
        raise MismatchError(
            f"{folders[0]} ({len(ids_a):,} images) and {folders[1]} ({len(ids_b):,} images) cannot "
            f"be compared because image {min(ids_in_one)} is in only one of them. Extract the "
            "features of both runs from the same images, then run 'showtell eval' again."
        )


def show_differences(
    paths: list[Path], num_images: int, differences: list[Difference], num_draws: int
) -> None:
    """Print the differences of A and B as a table."""
    rows = [
        (
            difference.name,
            f"{100 * difference.score_a:.1f}",
            f"{100 * difference.score_b:.1f}",
            f"{100 * (difference.score_b - difference.score_a):+.1f}",
            f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}",
            f"{difference.p_value:.4f}",
        )
        for difference in differences
    ]
    for letter, path in zip("AB", paths, strict=True):
        print_result(f"{letter}: {path}")
    title = f"compare: {num_images:,} images, {num_draws:,} draws"
    print_table(title, rows, ("score", "A", "B", "B - A", "95 %", "p"))
    print_note(EXPLANATION)
