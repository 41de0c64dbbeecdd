"""The scores of each image, kept by `showtell eval` so that any subset can be scored again.

`scores.npz` is NumPy's own format without pickle, one row per image, N rows:

    image_ids                (N,) int64
    bleu_matches             (N, 4) int64    n-grams of 1 to 4 words found in the references
    bleu_totals              (N, 4) int64    n-grams in the caption
    bleu_lengths             (N,) int64      words in the caption
    bleu_reference_lengths   (N,) int64      words in the reference of the closest length
    meteor_counts            (N, 23) float64 see `meteor/counts.py`; absent without METEOR
    ROUGE_L, CIDEr, …        (N,) float64    scores that are averaged over images
"""

import io
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ...pipeline.stage.artifacts import read_output, reading
from ...pipeline.stage.files import atomic_path
from ...pipeline.stage.ragged import Ints
from .bleu import BLEU_NAMES, BleuCounts
from .meteor.counts import meteor_of_counts
from .metric import Floats

SCORES_NAME = "scores.npz"
BLEU_FIELDS = tuple(field.name for field in fields(BleuCounts))


@dataclass(frozen=True)
class ImageScores:
    """The scores of each of N captions.

    BLEU and METEOR of a set are computed from summed counts; they are not means over images.
    A subset keeps CIDEr's document frequencies: those of all images that were scored together.

    Attributes:
        image_ids: (N,) int64.
        bleu: BLEU's counts of each caption.
        meteor: (N, 23) float64, METEOR's counts of each caption; None in languages it lacks.
        means: name → (N,) float64, the scores that are averaged over images.
    """

    image_ids: Ints
    bleu: BleuCounts
    meteor: Floats | None
    means: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.image_ids)

    def with_means(self, means: dict[str, Floats]) -> "ImageScores":
        """Return a copy with additional scores that are averaged over images."""
        return replace(self, means=self.means | means)

    def select(self, rows: Ints) -> "ImageScores":
        """Return the scores of the captions at `rows`."""
        bleu = BleuCounts(*(counts[rows] for counts in vars(self.bleu).values()))
        means = {name: values[rows] for name, values in self.means.items()}
        meteor = None if self.meteor is None else self.meteor[rows]
        return ImageScores(self.image_ids[rows], bleu, meteor, means)

    def of_draws(self, weights: Floats) -> dict[str, Floats]:
        """Score several weighted sets of the images at once.

        Args:
            weights: (D, N) float64, how often each of D sets contains each image.

        Returns:
            pycocoevalcap's name of the metric → (D,) float64, not multiplied by 100.
        """
        bleu = BleuCounts(*(weights @ counts for counts in vars(self.bleu).values()))
        scores = dict(zip(BLEU_NAMES, bleu.of_each().T, strict=True))
        if self.meteor is not None:
            scores["METEOR"] = meteor_of_counts(weights @ self.meteor)
        sizes = weights.sum(axis=1)
        return scores | {name: weights @ values / sizes for name, values in self.means.items()}

    def of_all(self) -> dict[str, float]:
        """Return the scores of all images together."""
        scores = self.of_draws(np.ones((1, len(self))))
        return {name: float(values[0]) for name, values in scores.items()}

    def of_each(self) -> dict[str, Floats]:
        """Return the scores of each image alone: name → (N,) float64."""
        scores = dict(zip(BLEU_NAMES, self.bleu.of_each().T, strict=True))
        if self.meteor is not None:
            scores["METEOR"] = meteor_of_counts(self.meteor)
        return scores | self.means

    def write(self, path: Path) -> None:
        """Write `scores.npz` atomically."""
        counts = {f"bleu_{name}": getattr(self.bleu, name) for name in BLEU_FIELDS}
        arrays = {"image_ids": self.image_ids, **counts, **self.means}
        if self.meteor is not None:
            arrays["meteor_counts"] = self.meteor
        with atomic_path(path) as partial:
            np.savez_compressed(partial, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, path: Path) -> "ImageScores":
        """Read `scores.npz`.

        Raises:
            MissingArtifactError: the file does not exist.
            DamagedFileError: the file is damaged.
        """
        content = read_output(path)
        with (
            # SyntaxError: NumPy parses headers as Python. RuntimeError: a member looks encrypted.
            reading(path, zipfile.BadZipFile, SyntaxError, RuntimeError),
            np.load(io.BytesIO(content), allow_pickle=False) as file,
        ):
            arrays = dict(file)
            image_ids = arrays.pop("image_ids")
            bleu = BleuCounts(*(arrays.pop(f"bleu_{name}") for name in BLEU_FIELDS))
            if any(
                len(array) != len(image_ids) for array in (*vars(bleu).values(), *arrays.values())
            ):
                raise ValueError("its arrays have different lengths")
            return cls(image_ids, bleu, arrays.pop("meteor_counts", None), arrays)
