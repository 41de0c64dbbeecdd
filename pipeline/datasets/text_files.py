"""Reads UTF-8 text, JSON and CSV; errors name the file and the line."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..stage.errors import DatasetError


def read_utf8(path: Path) -> str:
    """Read a UTF-8 text file, without its byte order mark.

    Raises:
        DatasetError: the file is not UTF-8.
    """
    return decode_utf8(path.read_bytes(), path)


def decode_utf8(content: bytes, path: Path) -> str:
    """Decode the content of a UTF-8 text file, and drop a byte order mark.

    Args:
        content: of the file.
        path: of the file, for the error message.

    Raises:
        DatasetError: the content is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8. "
            "Save the file as UTF-8."
        ) from None


def parse_json(content: bytes, path: Path) -> Any:
    """Parse the content of a JSON file.

    Args:
        content: of the file.
        path: of the file, for the error message.

    Raises:
        DatasetError: the content is not JSON.
    """
    try:
        return json.loads(decode_utf8(content, path))
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{path}, line {error.lineno}, column {error.colno}: invalid JSON ({error.msg}). "
            "The file is damaged or incomplete; download it again."
        ) from None


def read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read a CSV file, including its header. Blank lines are skipped.

    Yields:
        The number of the line where the row ends, counting from 1, and the fields of the row:
        always as many as the header has.

    Raises:
        DatasetError: the file is not UTF-8, a quote is not closed, or a row has too many or too
            few fields.
    """
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), strict=True)
    width = 0
    try:
        for row in reader:
            width = width or len(row)
            if len(row) == width:
                yield reader.line_num, row
            elif row:
                raise DatasetError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, expected {width} as in "
                    "the header. Put a field that contains a comma in double quotes."
                )
    except csv.Error as error:
        raise DatasetError(
            f"{path}, line {reader.line_num}: invalid CSV ({error}). Fix the quotes of this row."
        ) from None


def find_column(header: list[str], names: tuple[str, ...], path: Path) -> int:
    """Return the index of the column that has one of `names`.

    Raises:
        DatasetError: there is no such column.
    """
    for name in names:
        if name in header:
            return header.index(name)
    raise DatasetError(
        f"{path} has no column {' or '.join(map(repr, names))}; its columns are "
        f"{', '.join(map(repr, header[:8])) or 'none'}. The first line must name the columns."
    )


@contextmanager
def reporting_layout_errors(path: Path) -> Iterator[None]:
    """Turn the exceptions of reading JSON with another layout into one `DatasetError`."""
    try:
        yield
    except KeyError as error:
        raise DatasetError(
            f"{path} does not have the published layout: key {error} is missing."
        ) from None
    except (TypeError, AttributeError, ValueError) as error:
        raise DatasetError(f"{path} does not have the published layout ({error}).") from None
