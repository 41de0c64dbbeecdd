"""Turns a reader's `Listing` into a `Dataset`, with the same checks for every reader.

The checks run in this order: captions are text, file names stay inside the source folder, images
exist, image ids are unique, splits exist. Contradictions raise; incomplete images are left out.
"""

import random
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from ..config import PrepareConfig
from ..images.image_files import ImageFiles
from ..stage.errors import DatasetError
from .listing import DOWNLOADED, Listing, RandomSplit, explain_source
from .records import SPLITS, Dataset, ImageRecord, Split

VAL_FRACTION = 0.1  # of train, when the source has no val split


class ListingChecker:
    """Checks one listing; each method covers one kind of problem.

    Args:
        listing: is modified: captions are stripped, unusable images removed, splits completed.
        source: folder to which file names are relative.
        config: provides the seed for random splits.
    """

    def __init__(self, listing: Listing, source: Path, config: PrepareConfig) -> None:
        self.listing, self.source, self.config = listing, source, config
        self.left_out: list[tuple[str, str]] = []
        self.warnings: list[str] = []

    def to_dataset(self) -> Dataset:
        """Run all checks and return the records.

        Raises:
            DatasetError: from the first check that fails.
        """
        self._strip_captions()
        self._require_names_inside_source()
        self._require_images()
        self._require_unique_ids()
        if self.listing.splits is None:
            self._draw_splits(self.listing.random_split)
        self._leave_out("in no split", lambda name: name not in self._splits)
        self._require_train()
        self._hold_out_val()
        return Dataset(self._make_records(), tuple(self.left_out), tuple(self.warnings))

    @property
    def _splits(self) -> dict[str, str]:
        assert self.listing.splits is not None
        return self.listing.splits

    def _leave_out(self, reason: str, condition: Callable[[str], bool]) -> None:
        """Remove the images for which `condition` holds, and record the reason."""
        captions = self.listing.captions
        names = [name for name in captions if condition(name)]
        for name in names:
            del captions[name]
            self.left_out.append((name, reason))
        if names:
            self.warnings.append(f"{_count_images(names)} {reason}, left out ({_first(names)}).")

    def _strip_captions(self) -> None:
        """Strip white space, drop empty captions, and leave out images that have none left."""
        num_empty = 0
        for name, captions in self.listing.captions.items():
            _require_text(name, captions)
            kept: list[str | None] = [
                text for caption in captions if caption and (text := caption.strip())
            ]
            num_empty += len(captions) - len(kept)
            self.listing.captions[name] = kept
        if num_empty:
            self.warnings.append(f"{num_empty:,} empty captions left out.")
        num_listed = len(self.listing.captions)
        self._leave_out("without captions", lambda name: not self.listing.captions[name])
        if not self.listing.captions:
            raise DatasetError(
                f"none of the {num_listed:,} images of {self.source} has a caption. "
                "Check that the captions belong to these images."
            )

    def _require_names_inside_source(self) -> None:
        for name in self.listing.captions:
            if name.startswith("/") or ".." in name.split("/") or "\0" in name:
                raise DatasetError(
                    f"file name {name!r} is outside the source folder {self.source}. File names "
                    "must be relative to it; give the folder that holds all images with "
                    "--source DIR."
                )

    def _require_images(self) -> None:
        """Require a file for each name; accept another spelling if there is only one match."""
        names, files = list(self.listing.captions), ImageFiles(self.source)
        fingerprints = files.fingerprints(names)
        missing = [n for n, found in zip(names, fingerprints, strict=True) if found is None]
        similar = {name: files.find_similar(name) for name in missing}
        uses = Counter(chain(set(names) - set(missing), *similar.values()))
        actual = {n: found[0] for n, found in similar.items() if [uses[f] for f in found] == [1]}
        missing = [name for name in missing if name not in actual]
        if missing:
            near = similar[missing[0]] or files.find_near(missing[0])
            hint = f" Similar to {missing[0]}: {_first(near)}." if near else ""
            # If nearly all were found, the folder is the right one.
            advice = (
                "Add these files, or remove their captions."
                if 10 * len(missing) <= len(names) and self.config.dataset not in DOWNLOADED
                else explain_source(self.config.dataset, self.config.data)
            )
            raise DatasetError(
                f"{len(missing):,} of {len(names):,} images with captions were not found "
                f"({_first(missing)}), neither in {self.source} nor in a zip archive named after "
                f"their folder.{hint} {advice}"
            )
        if actual:
            self._rename(actual)

    def _rename(self, actual: dict[str, str]) -> None:
        """Replace listed names by the names of the files."""
        for field in ("captions", "image_ids", "splits"):
            values = getattr(self.listing, field)
            if values is not None:
                renamed = {actual.get(name, name): value for name, value in values.items()}
                setattr(self.listing, field, renamed)
        name, found = next(iter(actual.items()))
        self.warnings.append(
            f"{_count_images(list(actual))} found under a name that differs in case, slashes or "
            f"Unicode normalization ({name} is {found})."
        )

    def _require_unique_ids(self) -> None:
        name_of: dict[int, str] = {}
        for name in self.listing.captions:
            image_id = self.listing.image_ids[name]
            if name_of.setdefault(image_id, name) != name:
                raise DatasetError(
                    f"image id {image_id} belongs to both {name_of[image_id]} and {name}. "
                    "Every image needs an id of its own."
                )

    def _draw_splits(self, random_split: RandomSplit) -> None:
        names = _shuffle(self.listing.captions, self.config.seed)
        if len(names) < 2:
            raise DatasetError(
                f"{self.source} has {len(names)} image with captions, expected at least 2: one for "
                "training and one for validation."
            )
        num_test = random_split.num_held_out(len(names))
        num_val = max(1, num_test)
        self.listing.splits = dict.fromkeys(names, "train")
        self._splits.update(dict.fromkeys(names[:num_val], "val"))
        self._splits.update(dict.fromkeys(names[num_val : num_val + num_test], "test"))
        if random_split.warning:
            self.warnings.append(random_split.warning)

    def _require_train(self) -> None:
        found = sorted({self._splits[name] for name in self.listing.captions})
        if "train" not in found:
            raise DatasetError(
                f"{self.source} has no train split, only {', '.join(found) or 'no split at all'}. "
                "Training and the vocabulary need it; add the file or the rows that define it."
            )

    def _hold_out_val(self) -> None:
        """Move some train images to val if the source has no val split; training needs one."""
        train = [name for name in self.listing.captions if self._splits[name] == "train"]
        has_val = any(self._splits[name] == "val" for name in self.listing.captions)
        if has_val or len(train) < 2:
            return
        num_val = max(1, int(len(train) * VAL_FRACTION))
        self._splits.update(dict.fromkeys(_shuffle(train, self.config.seed)[:num_val], "val"))
        self.warnings.append(
            f"{self.source} has no val split: {num_val:,} of its {len(train):,} train images are "
            "held out as val, chosen at random with --seed."
        )

    def _make_records(self) -> list[ImageRecord]:
        names: dict[Split, list[str]] = {split: [] for split in SPLITS}
        for name in self.listing.captions:
            names[self._splits[name]].append(name)  # type: ignore[index]
        ids, captions = self.listing.image_ids, self.listing.captions
        return [
            ImageRecord(ids[name], name, split, tuple(filter(None, captions[name])))
            for split in SPLITS
            for name in sorted(names[split], key=ids.__getitem__)
        ]


def _require_text(name: str, captions: list[str | None]) -> None:
    """Check that captions are text that UTF-8 can encode; not every reader checks this."""
    try:
        "".join([name, *(caption for caption in captions if caption is not None)]).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise DatasetError(
            f"image {name!a} has a caption that is not text ({error}): {reprlib.repr(captions)}."
        ) from None


def _shuffle(names: Iterable[str], seed: int) -> list[str]:
    """Return the names in an order that depends only on the names and the seed."""
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _count_images(names: list[str]) -> str:
    return f"{len(names):,} image{'s' if len(names) > 1 else ''}"


def _first(names: list[str]) -> str:
    """List the first three names, with an ellipsis if there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
