"""Datasets as a list of `ImageRecord`: picks the recipe and checks what it lists.

Recipes: `coco.py` (COCO 2014 and 2017, Karpathy splits), `flickr.py` (Flickr8k, Flickr30k) and
`tables.py` (a folder and a table of your own, and the embedded scenes).
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from .coco import CocoRecipe, KarpathyRecipe
from .config import PrepareConfig
from .errors import DatasetError, MissingArtifactError
from .flickr import FlickrRecipe, find_image_folder
from .imagefiles import ImageFiles
from .listing import DrawnSplit, Listing, Recipe, how_to_get
from .tables import TABLE_NAMES, TableRecipe

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
RECIPES: dict[str, Callable[[Path], Recipe]] = {
    "coco2014": partial(CocoRecipe, year=2014),
    "coco2017": partial(CocoRecipe, year=2017),
    "flickr8k": partial(FlickrRecipe, dataset="flickr8k"),
    "flickr30k": partial(FlickrRecipe, dataset="flickr30k"),
}
KNOWN = (*RECIPES, "scenes")
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


def load_records(config: PrepareConfig) -> list[ImageRecord]:
    """Read and check a dataset.

    Returns:
        By split (train, val, test), then by image id.

    Raises:
        DatasetError: the dataset is unknown, or its files contradict each other.
        MissingArtifactError: the source or one of its files is not there.
    """
    return load_dataset(config).records


def load_dataset(config: PrepareConfig) -> Dataset:
    """Read and check a dataset; as `load_records`, with what was left out and why."""
    return _Checked(find_recipe(config).read(), source_dir(config), config).to_dataset()


def source_dir(config: PrepareConfig) -> Path:
    """The root to which file names are relative."""
    if config.source is not None:
        return config.source
    return config.table.parent if config.table is not None else config.dataset_dir / "raw"


def find_recipe(config: PrepareConfig) -> Recipe:
    """Choose the recipe by the options and find its files, without reading them.

    Raises:
        DatasetError: the dataset is unknown.
        MissingArtifactError: the source or one of its files is not there.
    """
    source = source_dir(config)
    if config.karpathy is None and config.table is None and config.dataset not in KNOWN:
        return TableRecipe(_find_table(source, config))
    if not source.is_dir():
        raise MissingArtifactError(f"{source} is no folder. {how_to_get(config.dataset)}")
    if config.table is not None:
        return TableRecipe(config.table)
    if config.karpathy is not None:
        return KarpathyRecipe(config.karpathy, partial(find_image_folder, source))
    if config.dataset in RECIPES:
        return RECIPES[config.dataset](source)
    return TableRecipe(_find_table(source, config))


def _find_table(source: Path, config: PrepareConfig) -> Path:
    """The one table in the folder of a dataset that no recipe knows."""
    if config.source is not None and not source.is_dir():
        raise MissingArtifactError(f"{source} is no folder. {how_to_get(config.dataset)}")
    found = [source / name for name in TABLE_NAMES if (source / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DatasetError(f"{source} holds {names}; say which one counts with --table FILE.")
    if not found and config.dataset == "scenes":
        raise MissingArtifactError(f"{source} holds no captions.csv. {how_to_get('scenes')}")
    if not found:
        raise DatasetError(
            f"dataset {config.dataset!r} is none of {', '.join(KNOWN)}, and {source} holds none of "
            f"{', '.join(TABLE_NAMES)}. For images of your own give --table FILE or --source DIR, "
            "for a Karpathy split --karpathy FILE."
        )
    return found[0]


class _Checked:
    """A listing on its way to records: one method for each thing that can be wrong with it."""

    def __init__(self, listing: Listing, source: Path, config: PrepareConfig) -> None:
        self.listing, self.source, self.config = listing, source, config
        self.left_out: list[tuple[str, str]] = []
        self.warnings: list[str] = []

    def to_dataset(self) -> Dataset:
        self.strip_captions()
        self.require_names_inside()
        self.require_images()
        self.require_unique_ids()
        if self.listing.splits is None:
            self.draw_splits(self.listing.drawn)
        self.leave_out("in no split", lambda name: name not in self.splits)
        self.require_train()
        self.hold_out_val()
        return Dataset(self.make_records(), tuple(self.left_out), tuple(self.warnings))

    @property
    def splits(self) -> dict[str, str]:
        assert self.listing.splits is not None
        return self.listing.splits

    def leave_out(self, reason: str, condition: Callable[[str], bool]) -> None:
        captions = self.listing.captions
        names = [name for name in captions if condition(name)]
        for name in names:
            del captions[name]
            self.left_out.append((name, reason))
        if names:
            self.warnings.append(f"{_count(names)} {reason}, left out ({_first(names)}).")

    def strip_captions(self) -> None:
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
        self.leave_out("without captions", lambda name: not self.listing.captions[name])
        if not self.listing.captions:
            raise DatasetError(
                f"none of the {num_listed:,} images of {self.source} has a caption. "
                "Check that the captions belong to these images."
            )

    def require_names_inside(self) -> None:
        for name in self.listing.captions:
            if name.startswith("/") or ".." in name.split("/") or "\0" in name:
                raise DatasetError(
                    f"file name {name!r} leads out of the source {self.source}. File names must be "
                    "relative to it; give the folder that holds all images with --source DIR."
                )

    def require_images(self) -> None:
        names = list(self.listing.captions)
        stamps = ImageFiles(self.source).stamps(names)
        missing = [name for name, stamp in zip(names, stamps, strict=True) if stamp is None]
        if missing:
            raise DatasetError(
                f"{len(missing):,} of {len(names):,} images with captions are not there "
                f"({_first(missing)}), neither under {self.source} nor in a zip of their folder's "
                f"name. {how_to_get(self.config.dataset)}"
            )

    def require_unique_ids(self) -> None:
        seen: dict[int, str] = {}
        for name in self.listing.captions:
            image_id = self.listing.image_ids[name]
            if seen.setdefault(image_id, name) != name:
                raise DatasetError(
                    f"image id {image_id} belongs to both {seen[image_id]} and {name}. "
                    "Every image needs an id of its own."
                )

    def draw_splits(self, drawn: DrawnSplit) -> None:
        names = _shuffled(self.listing.captions, self.config.seed)
        if len(names) < 2:
            raise DatasetError(
                f"{self.source} has {len(names)} image with captions, expected at least 2: one to "
                "train on and one to validate with."
            )
        num_test = drawn.num_images(len(names))
        num_val = max(1, num_test)
        self.listing.splits = dict.fromkeys(names, "train")
        self.splits.update(dict.fromkeys(names[:num_val], "val"))
        self.splits.update(dict.fromkeys(names[num_val : num_val + num_test], "test"))
        if drawn.warning:
            self.warnings.append(drawn.warning)

    def require_train(self) -> None:
        found = sorted({self.splits[name] for name in self.listing.captions})
        if "train" not in found:
            raise DatasetError(
                f"{self.source} has no train split, only {', '.join(found) or 'images in none'}. "
                "Training and the vocabulary need one; add the file or rows that name it."
            )

    def hold_out_val(self) -> None:
        """Make a val split out of train where the source has none; training needs it."""
        train = [name for name in self.listing.captions if self.splits[name] == "train"]
        has_val = any(self.splits[name] == "val" for name in self.listing.captions)
        if has_val or len(train) < 2:
            return
        held_out = _shuffled(train, self.config.seed)[: max(1, int(len(train) * HELD_OUT_SHARE))]
        self.splits.update(dict.fromkeys(held_out, "val"))
        self.warnings.append(
            f"{self.source} has no val split: {len(held_out):,} of its {len(train):,} train images "
            "are held out as val, drawn by --seed."
        )

    def make_records(self) -> list[ImageRecord]:
        names: dict[Split, list[str]] = {split: [] for split in SPLITS}
        for name in self.listing.captions:
            names[self.splits[name]].append(name)  # type: ignore[index]
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
