"""The results of an evaluation, read from its folder, and those it is compared with."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...model.compare import Difference, find_differences, find_evaluation, require_evaluation
from ...model.evaluate import NBEST_NAME, read_captions, read_metrics
from ...model.metrics.bootstrap import NUM_DRAWS, SEED
from ...model.metrics.image_scores import SCORES_NAME, ImageScores
from ...model.runs.find import choose_run, find_run
from ...model.runs.layout import run_folder
from ...pipeline.layout import CAPTIONS_PARQUET
from ...pipeline.stage.artifacts import read_output, reading
from ...pipeline.stage.console import print_aside
from ...pipeline.stage.errors import MismatchError, ShowTellError
from ...pipeline.stage.manifest import MANIFEST_NAME, Manifest
from ..config import MAX_AGAINST


@dataclass(frozen=True)
class RankedCaption:
    """One of several captions of an image.

    Attributes:
        text: the caption.
        log_prob: summed over its tokens, in nats.
        score: the ranking criterion.
    """

    text: str
    log_prob: float
    score: float


@dataclass(frozen=True)
class Results:
    """A finished evaluation.

    Attributes:
        folder: of the evaluation.
        manifest: its manifest.
        metrics: content of `metrics.json`.
        captions: image_id → caption.
        scores: the scores of each image.
    """

    folder: Path
    manifest: Manifest
    metrics: dict[str, Any]
    captions: dict[int, str]
    scores: ImageScores

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Read the files of an evaluation.

        Raises:
            MissingArtifactError: the evaluation is unfinished or out of date.
            DamagedFileError: a file is damaged.
        """
        if len(folder.parents) < 4:  # relative to a folder inside the data folder
            folder = folder.absolute()
        manifest = require_evaluation(folder)
        scores = ImageScores.read(folder / SCORES_NAME)
        return cls(folder, manifest, read_metrics(folder), read_captions(folder), scores)

    @property
    def run_dir(self) -> Path:
        """Folder of the run, or of the ensemble."""
        return self.folder.parents[1]

    @property
    def data(self) -> Path:
        """Root of all files."""
        return self.folder.parents[3]

    @property
    def name(self) -> str:
        """RUN/EVALUATION, such as `gru/test-beam5`."""
        return f"{self.run_dir.name}/{self.folder.name}"

    @property
    def members(self) -> list[str]:
        """Names of the runs that decoded together."""
        return self.run_dir.name.split("+")

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.manifest.details.get("dataset", ""))

    @property
    def split(self) -> str:
        """Name of the split."""
        return str(self.manifest.config["split"])

    @property
    def score_names(self) -> list[str]:
        """Names of the scores, in the order of `metrics.json`."""
        return [name for name in self.metrics if name[0].isupper()]

    @property
    def cider(self) -> dict[int, float]:
        """image_id → CIDEr."""
        ids, values = self.scores.image_ids.tolist(), self.scores.means["CIDEr"].tolist()
        return dict(zip(ids, values, strict=True))

    def read_nbest(self) -> dict[int, list[RankedCaption]]:
        """Read `nbest.json`: image_id → captions, best first; empty if it was not written."""
        path = self.folder / NBEST_NAME
        if NBEST_NAME not in self.manifest.outputs:
            return {}
        content = read_output(path)
        with reading(path):
            return {
                int(entry["image_id"]): [
                    RankedCaption(str(c["caption"]), float(c["log_prob"]), float(c["score"]))
                    for c in entry["captions"]
                ]
                for entry in json.loads(content)
            }

    def compare(self, other: "Results") -> list[Difference]:
        """Compare the scores with those of another evaluation; empty if the images differ."""
        a, b = self.scores, other.scores
        if not np.array_equal(np.sort(a.image_ids), np.sort(b.image_ids)):
            return []
        return find_differences(a, b, NUM_DRAWS, SEED)


def choose_evaluation(data: Path, name: str | None) -> Path:
    """Find the folder of an evaluation; print which one was chosen if there are several.

    Args:
        data: root of all files.
        name: as for `find_evaluation`, or a run with several evaluations, whose newest is
            returned; None takes the newest run.

    Raises:
        MissingArtifactError: there is no such run, or it has not been evaluated.
    """
    name = (choose_run(data, None).name if name is None else name).rstrip("/")
    folder = Path(name)
    if (folder / "eval").is_dir():
        run_dir = folder.absolute()
    elif "/" in name:
        return find_evaluation(data, name)
    elif "+" in name:
        run_dir = run_folder(data, name.split("+"))
    else:
        run_dir = find_run(data, name)
    found = list(_newest_first(run_dir.glob(f"eval/*/{MANIFEST_NAME}")))
    if not found:
        return find_evaluation(data, name)
    if len(found) > 1:
        print_aside(
            f"Using the newest evaluation, {run_dir.name}/{found[0].name}; another is "
            f"{run_dir.name}/{found[1].name}."
        )
    return found[0]


def read_others(results: Results, names: list[str] | None) -> list[Results]:
    """Read the evaluations to compare with.

    Args:
        results: the evaluation of the report.
        names: evaluations as for `choose_evaluation`; None takes the newest of the same images.

    Raises:
        MissingArtifactError: a named evaluation is missing, unfinished or out of date.
        MismatchError: a named evaluation is of another dataset or split.
    """
    if names is None:
        return _find_others(results)
    others = []
    for name in names:
        other = Results.read(choose_evaluation(results.data, name))
        if not _is_comparable(results, other.manifest):
            raise MismatchError(
                f"{other.folder} evaluates {other.split} of {other.dataset}, but {results.folder} "
                f"evaluates {results.split} of {results.dataset}. Compare evaluations of the same "
                "images and captions."
            )
        others.append(other)
    return others


def _find_others(results: Results) -> list[Results]:
    """Read the newest evaluations of the same images that are finished and up to date."""
    others: list[Results] = []
    paths = (results.data / kind for kind in ("runs", "ensembles"))
    for folder in _newest_first(
        p for path in paths for p in path.glob(f"*/eval/*/{MANIFEST_NAME}")
    ):
        manifest = Manifest.read(folder)
        is_same = folder.absolute() == results.folder.absolute()
        if manifest is None or is_same or not _is_comparable(results, manifest):
            continue
        with suppress(ShowTellError, OSError):  # unfinished, out of date or damaged
            others.append(Results.read(folder))
        if len(others) == MAX_AGAINST:
            break
    return others


def _is_comparable(results: Results, other: Manifest) -> bool:
    """Return whether another evaluation has the same split and captions."""
    ours = results.manifest
    return (
        ours.details.get("dataset") == other.details.get("dataset")
        and ours.config.get("split") == other.config.get("split")
        and ours.inputs.get(CAPTIONS_PARQUET) == other.inputs.get(CAPTIONS_PARQUET)
    )


def _newest_first(manifests: Iterator[Path]) -> Iterator[Path]:
    """Yield the folders of manifests, the newest first."""
    newest = sorted(manifests, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
    return (path.parent for path in newest)
