"""The result of reading a dataset: checked images with their captions and splits."""

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class ImageRecord:
    """One image with its captions.

    Attributes:
        image_id: unique in the dataset.
        file_name: relative to the source folder, "/"-separated.
        split: "train", "val" or "test".
        captions: at least one, as written but without surrounding white space.
    """

    image_id: int
    file_name: str
    split: Split
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """All usable images of a dataset.

    Attributes:
        records: sorted by split (train, val, test), then by image id.
        left_out: (file name, reason) for each image of the source that has no record.
        warnings: warnings for the user about captions and splits.
    """

    records: list[ImageRecord]
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
