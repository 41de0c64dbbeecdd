"""What an evaluation keeps of each image, so that any choice of the images can be scored again.

scores.npz, one row an image, N rows; NumPy's own format, read without pickle:
    image_ids               (N,) int64
    bleu_matches            (N, 4) int64    and bleu_totals, (N, 4); bleu_lengths and
                                            bleu_reference_lengths, (N,): see `BleuCounts`
    meteor_counts           (N, 23) float64 see `meteor.py`
    ROUGE_L, CIDEr, …       (N,) float64    scores of which a set's is the mean
"""

import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ...pipeline.stage.errors import MissingArtifactError
from ...pipeline.stage.files import atomic_path
from ...pipeline.stage.ragged import Ints
from .caption_scorer import BLEU_NAMES, BleuCounts
from .meteor import meteor_of_counts
from .ngrams import Floats

SCORES_NAME = "scores.npz"
BLEU_FIELDS = tuple(field.name for field in fields(BleuCounts))


@dataclass(frozen=True)
class ImageScores:
    """The scores of N captions, still apart.

    BLEU and METEOR of a set are no means of its images' scores but functions of summed counts;
    CIDEr's document frequencies stay those of the images that were scored together.

    Attributes:
        image_ids: (N,) int64.
        bleu: counts of each caption.
        meteor: (N, 23) float64, counts of each caption.
        means: name → (N,) float64 of every other score.
    """

    image_ids: Ints
    bleu: BleuCounts
    meteor: Floats
    means: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.image_ids)

    def with_means(self, means: dict[str, Floats]) -> "ImageScores":
        """These scores and some more of which a set's is the mean."""
        return replace(self, means=self.means | means)

    def select(self, rows: Ints) -> "ImageScores":
        """The captions at `rows`."""
        bleu = BleuCounts(*(counts[rows] for counts in vars(self.bleu).values()))
        means = {name: values[rows] for name, values in self.means.items()}
        return ImageScores(self.image_ids[rows], bleu, self.meteor[rows], means)

    def of_draws(self, weights: Floats) -> dict[str, Floats]:
        """Score several choices of the images at once.

        Args:
            weights: (D, N) float64, how often each of D choices holds each image.

        Returns:
            Name, as pycocoevalcap has it → (D,) float64, as fractions.
        """
        bleu = BleuCounts(*(weights @ counts for counts in vars(self.bleu).values()))
        scores = dict(zip(BLEU_NAMES, bleu.of_each().T, strict=True))
        scores["METEOR"] = meteor_of_counts(weights @ self.meteor)
        sizes = weights.sum(axis=1)
        return scores | {name: weights @ values / sizes for name, values in self.means.items()}

    def of_all(self) -> dict[str, float]:
        """The scores of all images together."""
        scores = self.of_draws(np.ones((1, len(self))))
        return {name: float(values[0]) for name, values in scores.items()}

    def write(self, path: Path) -> None:
        """Write `scores.npz` atomically."""
        counts = {f"bleu_{name}": getattr(self.bleu, name) for name in BLEU_FIELDS}
        arrays = {"image_ids": self.image_ids, **counts, "meteor_counts": self.meteor, **self.means}
        with atomic_path(path) as partial:
            np.savez_compressed(partial, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, path: Path) -> "ImageScores":
        """Read `scores.npz`.

        Raises:
            MissingArtifactError: it is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            image_ids = arrays.pop("image_ids")
            bleu = BleuCounts(*(arrays.pop(f"bleu_{name}") for name in BLEU_FIELDS))
            return cls(image_ids, bleu, arrays.pop("meteor_counts"), arrays)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise MissingArtifactError(
                f"{path} is missing or cannot be read ({error}). Delete {path.parent} and run "
                "'showtell eval' again."
            ) from None
