"""A recipe's `Listing` → `ImageRecord`s: everything that can be wrong with a dataset, found here.

The same checks for every recipe, in this order: captions are text, file names stay in the source,
images exist, ids are unique, splits are there. What is merely incomplete is left out and counted.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import PrepareConfig
from ..stage.errors import DatasetError
from .image_files import ImageFiles
from .listing import DrawnSplit, Listing, how_to_get

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class ImageRecord:
    """One image with its captions.

    Attributes:
        image_id: unique in the dataset.
        file_name: relative to the source root, "/"-separated.
        split: "train", "val" or "test".
        captions: as written, without surrounding white space; at least one.
    """

    image_id: int
    file_name: str
    split: Split
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """What a source holds.

    Attributes:
        records: by split (train, val, test), then by image id.
        left_out: (file name, reason) of each listed image that is in no record.
        warnings: what the user should know about the splits and captions.
    """

    records: list[ImageRecord]
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


class ListingCheck:
    """A listing on its way to records: one method for each thing that can be wrong with it."""

    def __init__(self, listing: Listing, source: Path, config: PrepareConfig) -> None:
        self.listing, self.source, self.config = listing, source, config
        self.left_out: list[tuple[str, str]] = []
        self.warnings: list[str] = []

    def to_dataset(self) -> Dataset:
        """Run all checks.

        Raises:
            DatasetError: the first that fails.
        """
        self._strip_captions()
        self._require_names_inside()
        self._require_images()
        self._require_unique_ids()
        if self.listing.splits is None:
            self._draw_splits(self.listing.drawn)
        self._leave_out("in no split", lambda name: name not in self._splits)
        self._require_train()
        self._hold_out_val()
        return Dataset(self._make_records(), tuple(self.left_out), tuple(self.warnings))

    @property
    def _splits(self) -> dict[str, str]:
        assert self.listing.splits is not None
        return self.listing.splits

    def _leave_out(self, reason: str, condition: Callable[[str], bool]) -> None:
        captions = self.listing.captions
        names = [name for name in captions if condition(name)]
        for name in names:
            del captions[name]
            self.left_out.append((name, reason))
        if names:
            self.warnings.append(f"{_count(names)} {reason}, left out ({_first(names)}).")

    def _strip_captions(self) -> None:
        """Strip white space, drop what is then empty, and the images that have nothing left."""
        num_blank = 0
        for name, captions in self.listing.captions.items():
            _require_text(name, captions)
            kept = [text for caption in captions if caption and (text := caption.strip())]
            num_blank += len(captions) - len(kept)
            self.listing.captions[name] = kept
        if num_blank:
            self.warnings.append(f"{num_blank:,} empty captions left out.")
        num_listed = len(self.listing.captions)
        self._leave_out("without captions", lambda name: not self.listing.captions[name])
        if not self.listing.captions:
            raise DatasetError(
                f"none of the {num_listed:,} images of {self.source} has a caption. "
                "Check that the captions belong to these images."
            )

    def _require_names_inside(self) -> None:
        for name in self.listing.captions:
            if name.startswith("/") or ".." in name.split("/") or "\0" in name:
                raise DatasetError(
                    f"file name {name!r} leads out of the source {self.source}. File names must be "
                    "relative to it; give the folder that holds all images with --source DIR."
                )

    def _require_images(self) -> None:
        names = list(self.listing.captions)
        stamps = ImageFiles(self.source).stamps(names)
        missing = [name for name, stamp in zip(names, stamps, strict=True) if stamp is None]
        if missing:
            raise DatasetError(
                f"{len(missing):,} of {len(names):,} images with captions are not there "
                f"({_first(missing)}), neither under {self.source} nor in a zip of their folder's "
                f"name. {how_to_get(self.config.dataset)}"
            )

    def _require_unique_ids(self) -> None:
        seen: dict[int, str] = {}
        for name in self.listing.captions:
            image_id = self.listing.image_ids[name]
            if seen.setdefault(image_id, name) != name:
                raise DatasetError(
                    f"image id {image_id} belongs to both {seen[image_id]} and {name}. "
                    "Every image needs an id of its own."
                )

    def _draw_splits(self, drawn: DrawnSplit) -> None:
        names = _shuffled(self.listing.captions, self.config.seed)
        if len(names) < 2:
            raise DatasetError(
                f"{self.source} has {len(names)} image with captions, expected at least 2: one to "
                "train on and one to validate with."
            )
        num_test = drawn.num_images(len(names))
        num_val = max(1, num_test)
        self.listing.splits = dict.fromkeys(names, "train")
        self._splits.update(dict.fromkeys(names[:num_val], "val"))
        self._splits.update(dict.fromkeys(names[num_val : num_val + num_test], "test"))
        if drawn.warning:
            self.warnings.append(drawn.warning)

    def _require_train(self) -> None:
        found = sorted({self._splits[name] for name in self.listing.captions})
        if "train" not in found:
            raise DatasetError(
                f"{self.source} has no train split, only {', '.join(found) or 'images in none'}. "
                "Training and the vocabulary need one; add the file or rows that name it."
            )

    def _hold_out_val(self) -> None:
        """Make a val split out of train where the source has none; training needs it."""
        train = [name for name in self.listing.captions if self._splits[name] == "train"]
        has_val = any(self._splits[name] == "val" for name in self.listing.captions)
        if has_val or len(train) < 2:
            return
        held_out = _shuffled(train, self.config.seed)[: max(1, int(len(train) * HELD_OUT_SHARE))]
        self._splits.update(dict.fromkeys(held_out, "val"))
        self.warnings.append(
            f"{self.source} has no val split: {len(held_out):,} of its {len(train):,} train images "
            "are held out as val, drawn by --seed."
        )

    def _make_records(self) -> list[ImageRecord]:
        names: dict[Split, list[str]] = {split: [] for split in SPLITS}
        for name in self.listing.captions:
            names[self._splits[name]].append(name)  # type: ignore[index]
        ids, captions = self.listing.image_ids, self.listing.captions
        return [
            ImageRecord(ids[name], name, split, tuple(captions[name]))
            for split in SPLITS
            for name in sorted(names[split], key=ids.__getitem__)
        ]


def _require_text(name: str, captions: list[str]) -> None:
    """Refuse captions that are no text, or text that cannot be written (a lone surrogate)."""
    try:
        "".join([name, *(caption for caption in captions if caption is not None)]).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise DatasetError(
            f"image {name!r} has a caption that is no text ({error}): {captions!r}."
        ) from None


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order that depends on the names and the seed alone."""
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _count(names: list[str]) -> str:
    return f"{len(names):,} image{'s' if len(names) > 1 else ''}"


def _first(names: list[str]) -> str:
    """The first three names, and a sign that there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
