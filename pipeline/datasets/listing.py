"""The interface of dataset readers: a `DatasetReader` returns a `Listing`.

A listing is not checked yet; `checks.py` turns it into `ImageRecord`s for every reader.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..stage.command_line import command_line


@dataclass(frozen=True)
class RandomSplit:
    """Sizes of a random split, for sources that define no splits.

    Attributes:
        fraction: fraction of the images that goes to val, and again to test; the rest is train.
        max_images: upper limit for val and for test.
        warning: remark for the user when this split is used; empty for none.
    """

    fraction: float = 0.1
    max_images: int | None = None
    warning: str = ""

    def num_held_out(self, num_images: int) -> int:
        """Return the number of images for val, which is also the number for test."""
        wanted = int(num_images * self.fraction)
        return wanted if self.max_images is None else min(wanted, self.max_images)


@dataclass
class Listing:
    """The images, captions and splits of a source, not checked yet.

    Attributes:
        captions: file name (relative to the source folder, "/"-separated) → captions in the order
            of the source, None for a missing one; an empty list for an image without captions.
        image_ids: file name → image id.
        splits: file name → "train", "val" or "test". Images that are not in it belong to no
            split. None if the source defines no splits.
        random_split: sizes of the random split that is drawn when `splits` is None.
    """

    captions: dict[str, list[str | None]] = field(default_factory=dict)
    image_ids: dict[str, int] = field(default_factory=dict)
    splits: dict[str, str] | None = None
    random_split: RandomSplit = RandomSplit()


class DatasetReader(Protocol):
    """Reads one published layout. Creating a reader locates the files; `read` reads them.

    Attributes:
        inputs: the files that determine the listing; `prepare` runs again when one changes.
    """

    inputs: list[Path]

    def read(self) -> Listing:
        """Read the inputs.

        Raises:
            DatasetError: a file does not have the published layout.
        """
        ...


DOWNLOADED = ("coco2014", "coco2017", "scenes")  # datasets of `showtell download`


def explain_source(dataset: str, data: Path) -> str:
    """Return a sentence on how to provide the missing files of a dataset in the data folder."""
    if dataset in DOWNLOADED:
        command = command_line(data, "download", "--dataset", dataset)
        return f"Run '{command}', or give --source DIR."
    return "Give the folder that holds it with --source DIR."
