"""Datasets as a list of `ImageRecord`: picks the recipe, which `checks.py` then checks.

Recipes: `coco.py` (COCO 2014 and 2017, Karpathy splits), `flickr.py` (Flickr8k, Flickr30k) and
`tables.py` (a folder and a table of your own, and the embedded scenes).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..config import PrepareConfig
from ..stage.errors import DatasetError, MissingArtifactError
from .checks import SPLITS, Dataset, ImageRecord, ListingCheck
from .coco import CocoRecipe, KarpathyRecipe
from .flickr import FlickrRecipe, find_image_folder
from .listing import Recipe, how_to_get
from .tables import TABLE_NAMES, TableRecipe

__all__ = [
    "RECIPES",
    "SPLITS",
    "Dataset",
    "ImageRecord",
    "find_recipe",
    "load_dataset",
    "source_dir",
]

RECIPES: dict[str, Callable[[Path], Recipe]] = {
    "coco2014": partial(CocoRecipe, year=2014),
    "coco2017": partial(CocoRecipe, year=2017),
    "flickr8k": partial(FlickrRecipe, dataset="flickr8k"),
    "flickr30k": partial(FlickrRecipe, dataset="flickr30k"),
}
KNOWN = (*RECIPES, "scenes")


def load_dataset(config: PrepareConfig) -> Dataset:
    """Read and check a dataset.

    Raises:
        DatasetError: the dataset is unknown, or its files contradict each other.
        MissingArtifactError: the source or one of its files is not there.
    """
    return ListingCheck(find_recipe(config).read(), source_dir(config), config).to_dataset()


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
    if config.table is not None:
        recipe: Recipe = TableRecipe(config.table)
    elif config.karpathy is not None:
        recipe = KarpathyRecipe(config.karpathy, partial(find_image_folder, source))
    else:
        if config.dataset in KNOWN or config.source is not None:
            _require_folder(source, config)
        make_recipe = RECIPES.get(config.dataset)
        recipe = make_recipe(source) if make_recipe else TableRecipe(_find_table(source, config))
    _require_folder(source, config)
    return recipe


def _require_folder(source: Path, config: PrepareConfig) -> None:
    if not source.is_dir():
        raise MissingArtifactError(f"{source} is no folder. {how_to_get(config.dataset)}")


def _find_table(source: Path, config: PrepareConfig) -> Path:
    """The one table in the folder of a dataset that no recipe knows."""
    found = [source / name for name in TABLE_NAMES if (source / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DatasetError(f"{source} holds {names}; say which one counts with --table FILE.")
    if not found and config.dataset == "scenes":
        raise MissingArtifactError(f"{source} holds no captions.csv. {how_to_get('scenes')}")
    if not found and any(source.glob("annotations/captions_*.json")):
        raise DatasetError(
            f"dataset {config.dataset!r} is none of {', '.join(KNOWN)}, but {source} is laid out "
            f"as COCO. Give --dataset coco2017 (or coco2014) --source {source}."
        )
    if not found:
        raise DatasetError(
            f"dataset {config.dataset!r} is none of {', '.join(KNOWN)}, and {source} holds none of "
            f"{', '.join(TABLE_NAMES)}. For images of your own give --table FILE or --source DIR, "
            "for a Karpathy split --karpathy FILE."
        )
    return found[0]
