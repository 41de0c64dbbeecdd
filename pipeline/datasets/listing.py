"""What every recipe hands over, a `Listing`, and how recipes read text, JSON and CSV.

Nothing is checked here against the images; `datasets.py` does that for all recipes alike.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..stage.errors import DatasetError


@dataclass(frozen=True)
class DrawnSplit:
    """How large val and test are where the source names no splits and they are drawn.

    Attributes:
        share: of the images, for each of the two; the rest is train.
        most: images, at most, for each of the two.
        warning: what the user should know about it; empty for nothing.
    """

    share: float = 0.1
    most: int | None = None
    warning: str = ""

    def num_images(self, num_all: int) -> int:
        """Images for val, and as many for test."""
        wanted = int(num_all * self.share)
        return wanted if self.most is None else min(wanted, self.most)


@dataclass
class Listing:
    """What a source says about its images, before any check.

    Attributes:
        captions: file name, relative to the source root and "/"-separated → captions in the
            source's order, empty for an image that is listed without any.
        image_ids: file name → image id.
        splits: file name → "train", "val" or "test"; an image that is not here is in no split.
            None where the source knows no splits, and `drawn` says how to draw them.
        drawn: see `splits`.
    """

    captions: dict[str, list[str]] = field(default_factory=dict)
    image_ids: dict[str, int] = field(default_factory=dict)
    splits: dict[str, str] | None = None
    drawn: DrawnSplit = DrawnSplit()


class Recipe(Protocol):
    """One published layout. Creating a recipe finds its files; `read` reads them.

    Attributes:
        inputs: the files whose content decides the listing.
    """

    inputs: list[Path]

    def read(self) -> Listing:
        """Read the inputs.

        Raises:
            DatasetError: they are not what the layout says.
        """
        ...


def how_to_get(dataset: str) -> str:
    """The command that mends a source which lacks files."""
    if dataset in ("coco2014", "coco2017", "scenes"):
        return f"Run 'showtell download --dataset {dataset}', or give --source DIR."
    return "Give the folder that holds it with --source DIR."


def decode_utf8(content: bytes, where: Path) -> str:
    """Decode the content of the file `where`; a byte order mark goes.

    Raises:
        DatasetError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{where}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8. "
            "Save the file as UTF-8."
        ) from None


def parse_json(content: bytes, where: Path) -> Any:
    """Parse the content of the JSON file `where`.

    Raises:
        DatasetError: it is not JSON.
    """
    try:
        return json.loads(decode_utf8(content, where))
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{where}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}). "
            "The file is damaged or cut short; fetch it again."
        ) from None


def read_csv(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Read a CSV file, header included.

    Yields:
        The number of the line on which the row ends, from 1, and its fields. Every row has as
        many fields as the header; blank lines are passed over.

    Raises:
        DatasetError: not UTF-8, broken quotes, or a row with more or fewer fields.
    """
    text = io.StringIO(decode_utf8(path.read_bytes(), path), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    width = 0
    try:
        for row in reader:
            width = width or len(row)
            if len(row) == width:
                yield reader.line_num, row
            elif row:
                raise DatasetError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, expected {width} as in "
                    'the header. Put a field that holds a comma in double quotes ("…").'
                )
    except csv.Error as error:
        raise DatasetError(
            f"{path}, line {reader.line_num}: not CSV ({error}). Mend the quotes of that row."
        ) from None


def find_column(header: list[str], names: tuple[str, ...], path: Path) -> int:
    """Index of the column that has one of `names`.

    Raises:
        DatasetError: there is none.
    """
    for name in names:
        if name in header:
            return header.index(name)
    raise DatasetError(
        f"{path} has no column {' or '.join(map(repr, names))}; its columns are "
        f"{', '.join(map(repr, header[:8])) or 'none'}. The first line must name the columns."
    )
