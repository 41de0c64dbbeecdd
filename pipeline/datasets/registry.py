"""Finds the reader of a dataset by its name and options, and returns its checked images.

A new dataset is a `DatasetReader` in a file of its own and a line in `READERS`. A file format that
an option names, like `--karpathy`, is a branch of `find_reader`; a new suffix for `--table` is a
line in `ROW_READERS` of tables.py.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..config import PrepareConfig
from ..stage.errors import DatasetError, MissingArtifactError
from .checks import ListingChecker
from .coco import CocoReader
from .flickr import FlickrReader, find_image_folder
from .karpathy import KarpathyReader
from .listing import DatasetReader, explain_source
from .records import Dataset
from .tables import TABLE_NAMES, TableReader

READERS: dict[str, Callable[..., DatasetReader]] = {
    "coco2014": partial(CocoReader, year=2014),
    "coco2017": partial(CocoReader, year=2017),
    "flickr8k": partial(FlickrReader, dataset="flickr8k"),
    "flickr30k": partial(FlickrReader, dataset="flickr30k"),
}
# A source of any other name holds a table; `scenes` is one that showtell draws.
KNOWN_NAMES = (*READERS, "scenes")


def load_dataset(config: PrepareConfig) -> Dataset:
    """Read and check a dataset.

    Raises:
        DatasetError: the dataset is unknown, or its files contradict each other.
        MissingArtifactError: the source folder or one of its files does not exist.
    """
    listing = find_reader(config).read()
    return ListingChecker(listing, source_dir(config), config).to_dataset()


def source_dir(config: PrepareConfig) -> Path:
    """Return the folder to which file names are relative."""
    if config.source is not None:
        return Path(config.source)
    return Path(config.table).parent if config.table is not None else config.dataset_dir / "raw"


def find_reader(config: PrepareConfig) -> DatasetReader:
    """Choose the reader by the options, and locate its files without reading them.

    Raises:
        DatasetError: the dataset is unknown.
        MissingArtifactError: the source folder or one of its files does not exist.
    """
    source = source_dir(config)
    if config.table is not None:
        reader: DatasetReader = TableReader(Path(config.table))
    elif config.karpathy is not None:
        reader = KarpathyReader(config.karpathy, partial(find_image_folder, source))
    else:
        if config.dataset in KNOWN_NAMES or config.source is not None:
            _require_folder(source, config)
        if config.dataset in READERS:
            try:
                reader = READERS[config.dataset](source)
            except MissingArtifactError as error:
                advice = explain_source(config.dataset, config.data)
                raise MissingArtifactError(f"{error} {advice}") from None
        else:
            reader = TableReader(_find_table(source, config))
    _require_folder(source, config)
    return reader


def _require_folder(source: Path, config: PrepareConfig) -> None:
    if not source.is_dir():
        raise MissingArtifactError(
            f"the folder {source} does not exist. {explain_source(config.dataset, config.data)}"
        )


def _find_table(source: Path, config: PrepareConfig) -> Path:
    """Return the only table in the folder of a dataset that has no reader of its own."""
    found = [source / name for name in TABLE_NAMES if (source / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DatasetError(f"{source} holds {names}; choose one with --table FILE.")
    if not found and config.dataset == "scenes":
        advice = explain_source("scenes", config.data)
        raise MissingArtifactError(f"{source} holds no captions.csv. {advice}")
    known = ", ".join(KNOWN_NAMES)
    if not found and any(source.glob("annotations/captions_*.json")):
        raise DatasetError(
            f"dataset {config.dataset!r} is not one of {known}, but {source} has the layout of "
            f"COCO. Give --dataset coco2017 (or coco2014) --source {source}."
        )
    if not found:
        raise DatasetError(
            f"dataset {config.dataset!r} is not one of {known}, and {source} holds none of "
            f"{', '.join(TABLE_NAMES)}. For your own images give --table FILE or --source DIR, "
            "for a Karpathy split --karpathy FILE."
        )
    return found[0]
