"""The files that `--table` names when they are read as a stream: many, large, or not local.

A single local table of file names of at most `MAX_TABLE_BYTES` is read by `tables.py` instead.
"""

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..config import PrepareConfig
from ..images.parquet import find_image_column
from ..stage.artifacts import FORMAT_ERRORS, describe
from ..stage.console import ProgressLine, print_warning
from ..stage.errors import (
    ConfigError,
    DatasetError,
    ShowTellError,
    StoppedError,
    StorageError,
)
from ..stage.files import hash_file, hash_json
from ..stage.urls import expand, is_url, open_url, stamps
from .parquet_samples import read_parquet_samples
from .samples import URL_COLUMNS, LeftOut, Sample, SampleReader
from .tables import ROW_READERS, SPLIT_NAMES
from .text_samples import read_csv_samples, read_jsonl_samples
from .webdataset import read_tar

READERS: dict[str, SampleReader] = {
    ".csv": read_csv_samples,
    ".tsv": read_csv_samples,
    ".jsonl": read_jsonl_samples,
    ".parquet": read_parquet_samples,
    ".tar": read_tar,
}
HASHED = (".csv", ".tsv", ".jsonl")  # the others are large: size and time of change must do
MAX_TABLE_BYTES = 256 << 20  # of a single table that is read into memory
# In the name of a file or folder: train-00000-of-00042.parquet, cc3m-validation-0001.tar, val/.
SPLIT_IN_NAME = re.compile(r"(?:^|[-_.])(train|val|valid|validation|dev|test)(?=[-_.\d]|$)")
WILDCARD = re.compile(r"[*?\[{]")


@dataclass(frozen=True)
class BadFile:
    """A file that could not be read to its end.

    Attributes:
        location: of the file.
        reason: why not.
        num_samples: number of samples that were read before, and are used.
        may_pass: whether another attempt may succeed, as after a failure of the network or disk.
    """

    location: str
    reason: str
    num_samples: int
    may_pass: bool


@dataclass
class TableFiles:
    """Tables and archives that are read one after the other.

    Attributes:
        pattern: the value of `--table`.
        source: absolute folder, or URL, to which file names are relative.
        locations: of the files, sorted.
        left_out: counts the samples that are left out.
        bad: the files that could not be read to their end.
    """

    pattern: str
    source: str
    locations: list[str]
    left_out: LeftOut = field(default_factory=LeftOut)
    bad: list[BadFile] = field(default_factory=list)

    def read(self) -> Iterator[Sample]:
        """Yield the samples of all files, in order. Bad files are noted, and cost a warning.

        Raises:
            DatasetError: all files are bad.
            ConfigError: a library is missing.
        """
        with ProgressLine("prepare", total=len(self.locations), unit="files") as progress:
            for location in self.locations:
                yield from self._read_file(location)
                progress.advance(1)
        if len(self.bad) == len(self.locations):
            first, *others = self.bad
            text = f"{first.location}: {first.reason}."
            if others:
                text = f"none of the {len(self.bad):,} files can be read; the first is {text}"
            raise DatasetError(text)

    def _read_file(self, location: str) -> Iterator[Sample]:
        count = 0
        name = self.name_of(location)
        split = self.splits.get(location)
        try:
            # The names of images in a file lead to it.
            if not self._is_in_source(location) and _holds_images(location):
                raise ConfigError(
                    f"{location} is not in --source {self.source}. Leave out --source, or give "
                    "the folder that holds the archives."
                )
            for sample in READERS[suffix_of(location)](location, name, self.left_out):
                sample.split = sample.split or split
                yield sample
                count += 1
        except (ConfigError, StoppedError):
            raise
        except (ShowTellError, pa.ArrowException, *FORMAT_ERRORS) as error:
            reason = describe(error).removeprefix(location).strip(" :")
            # An OSError without errno comes from a library: the file itself is damaged.
            may_pass = isinstance(error, StorageError) or getattr(error, "errno", None) is not None
            self.bad.append(BadFile(location, reason, count, may_pass))
            if len(self.locations) > 1:
                used = f"Used the {count:,} samples before that" if count else "Left it out"
                print_warning(f"{location}: {reason}. {used}.")

    def name_of(self, location: str) -> str:
        """Return the name of a file relative to the source; of one elsewhere, the last part."""
        if self._is_in_source(location):
            return location[len(self.source.rstrip("/")) + 1 :]
        return location.rpartition("/")[2]

    def _is_in_source(self, location: str) -> bool:
        return location.startswith(f"{self.source.rstrip('/')}/")

    @cached_property
    def splits(self) -> dict[str, str]:
        """Location → split that its name tells; empty if no name tells "train"."""
        found = {}
        for location in self.locations:
            for part in reversed(self.name_of(location).split("/")):
                if match := SPLIT_IN_NAME.search(part.lower()):
                    found[location] = SPLIT_NAMES[match[1]]
                    break
        return found if "train" in found.values() else {}

    def find_stamps(self) -> dict[str, str | None]:
        """Return location → hash of a local text file, or stamp of any other; None if missing."""
        found: dict[str, str | None] = {
            path: hash_file(Path(path)) for path in self.locations if _is_hashed(path)
        }
        others = [location for location in self.locations if location not in found]
        return found | dict(zip(others, stamps(others), strict=True))

    def parquet_stamps(self, found: dict[str, str | None]) -> dict[str, str]:
        """Return name → stamp of each Parquet file: its images have no names, only row numbers."""
        return {
            self.name_of(location): stamp
            for location, stamp in found.items()
            if stamp and suffix_of(location) == ".parquet"
        }

    def to_inputs(self, found: dict[str, str | None]) -> dict[str, str]:
        """Return the files as inputs of a manifest, given their stamps from before the reading."""
        # The next run reads a file again if the failure may have passed.
        found = found | {bad.location: "" for bad in self.bad if bad.may_pass}
        if len(found) == 1 and _is_hashed(self.locations[0]):
            return {self.locations[0]: str(found[self.locations[0]])}
        return {f"files of {self.pattern}": hash_json(sorted(found.items()))}


def find_table_files(config: PrepareConfig) -> TableFiles | None:
    """Return the files of `--table` if they are read as a stream, otherwise None.

    Raises:
        MissingArtifactError: no file matches the pattern.
        DatasetError: a file has an unknown suffix.
    """
    if config.table is None:
        return None
    locations = [_absolute(location) for location in expand(str(config.table))]
    is_pattern = locations != [_absolute(config.table)]
    is_remote = is_url(config.table) or is_url(config.source or "")
    if not is_pattern and not is_remote and _fits_in_memory(Path(config.table)):
        return None
    for location in locations:
        if suffix_of(location) not in READERS:
            raise DatasetError(
                f"{location} has an unknown format: expected a name that ends in "
                f"{', '.join(READERS)}. Archives are read without unpacking, so compressed ones "
                "cannot be used."
            )
    source = _absolute(config.source or _folder_of(str(config.table)))
    return TableFiles(str(config.table), source, locations)


def suffix_of(location: str) -> str:
    """Return the suffix of a file, in small letters: `.tar`. The query of a URL is ignored."""
    path = location.partition("?")[0] if is_url(location) else location
    name = path.rpartition("/")[2].lower()
    return f".{name.rpartition('.')[2]}"


def _holds_images(location: str) -> bool:
    """Return whether a file is an archive, or a Parquet file with the bytes of images."""
    if suffix_of(location) != ".parquet":
        return suffix_of(location) == ".tar"
    with open_url(location) as content:
        return find_image_column(pq.read_schema(content)) is not None


def _absolute(location: str) -> str:
    # Links are kept: in the cache of Hugging Face, a link has the suffix, and its target has none.
    return location if is_url(location) else os.path.abspath(location)  # noqa: PTH100


def _folder_of(pattern: str) -> str:
    """Return the folder that holds all files of a pattern."""
    found = WILDCARD.search(pattern)
    fixed = pattern[: found.start()] if found and not Path(pattern).exists() else pattern
    folder, slash, _ = fixed.rpartition("/")
    return folder or slash or "."


def _is_hashed(location: str) -> bool:
    return not is_url(location) and suffix_of(location) in HASHED and Path(location).is_file()


def _fits_in_memory(path: Path) -> bool:
    """Return whether a local file is a table that `tables.py` reads, or none that can be read."""
    if not path.is_file():
        return suffix_of(str(path)) not in (".tar", ".tsv")
    if suffix_of(str(path)) not in ROW_READERS:
        return False
    return path.stat().st_size <= MAX_TABLE_BYTES and not _holds_urls_or_images(path)


def _holds_urls_or_images(path: Path) -> bool:
    """Return whether a table names its images otherwise than by `file_name`."""
    header: list[str] = []
    try:
        if suffix_of(str(path)) == ".parquet":
            with path.open("rb") as content:
                schema = pq.read_schema(content)
            header = schema.names
            if "file_name" not in header and find_image_column(schema) is not None:
                return True
        else:
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                line = file.readline(1 << 16)
            header = re.findall(r'"(\w+)"\s*:', line) if suffix_of(str(path)) == ".jsonl" else []
            header = header or [title.strip() for title in next(csv.reader([line]), [])]
    except (csv.Error, pa.ArrowException, *FORMAT_ERRORS):
        return False  # the reader of the table reports it
    return "file_name" not in header and any(title in header for title in URL_COLUMNS)
