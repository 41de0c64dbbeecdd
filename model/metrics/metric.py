"""The interface of an optional metric of `showtell eval`: one score for each caption.

A metric is a subclass of `Metric` in a file of its own, and a line in `registry.py`. Its mean over
the images then stands in `metrics.json` with a confidence interval, and `showtell compare` tests
differences in it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...pipeline.images.image_files import ImageFiles

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NamedImages:
    """The files of images.

    Attributes:
        files: reads an image by its name.
        names: image_id → name, for at least the images to score.
    """

    files: ImageFiles
    names: Mapping[int, str]


@dataclass(frozen=True)
class CaptionSet:
    """The captions that a metric scores. All mappings have the same N images in the same order.

    Attributes:
        hypotheses: image_id → generated caption.
        tokenized_hypotheses: image_id → generated caption, as words joined by single spaces.
        tokenized_references: image_id → reference captions, as words joined by single spaces.
        captions_dir: output folder of `showtell prepare`; its manifest names the images' folder.
            None if the captions belong to no prepared dataset.
        images: the images, if they are not those of `captions_dir`.
        references: image_id → reference captions, as people wrote them.
    """

    hypotheses: dict[int, str]
    tokenized_hypotheses: dict[int, str]
    tokenized_references: dict[int, list[str]]
    captions_dir: Path | None = None
    images: NamedImages | None = None
    references: Mapping[int, Sequence[str]] = field(default_factory=dict)


class Metric(ABC):
    """A score of each caption; the score of a split is the mean.

    Attributes:
        name: key in `metrics.json`; it must begin with a capital letter.
    """

    name: ClassVar[str]

    def inputs(self) -> dict[str, str]:
        """Return what the scores depend on, for the manifest: name → fingerprint.

        If a fingerprint changes, `showtell eval` scores again. Override this method if the scores
        depend on files, such as weights, or return another value after changing the formula.

        Raises:
            ShowTellError: the metric cannot be computed here, e.g. a file is missing.
        """
        return {self.name: "1"}

    @abstractmethod
    def score(self, captions: CaptionSet) -> Floats:
        """Return the score of each caption, (N,) float64.

        Raises:
            ScorerError: the metric failed. The other scores are kept, a warning is printed, and
                the next `showtell eval` tries again.
            ShowTellError: any other error ends the evaluation.
        """
