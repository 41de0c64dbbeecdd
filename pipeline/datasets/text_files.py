"""Reads annotation files: UTF-8 text, JSON and CSV, and the values in them.

Any problem with a file becomes one `DatasetError` with its path, the position in it, and what was
expected. Functions that check a value raise a ValueError; `reporting_errors` adds the rest.
"""

import csv
import io
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..stage.artifacts import FORMAT_ERRORS, describe
from ..stage.errors import DatasetError, ShowTellError
from ..stage.files import read_error

# Characters that file names do not contain, and that would break an error into several lines.
NOT_IN_NAMES = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
NOT_IN_CAPTIONS = re.compile(r"[\0\ud800-\udfff]")
MAX_NAME_BYTES = 255  # of a file or folder, in all usual file systems
MAX_PATH_BYTES = 1024
CSV_ERRORS = (csv.Error,)
MAX_CAPTION_LETTERS = 10_000  # longer ones are mistakes, such as an unclosed quote
INT64_LIMIT = 2**63
EXACT_FLOAT_LIMIT = 2**53  # larger integers are rounded as floats, so two ids could become one
# Python raises a ValueError for such numbers, without their position.
LONG_NUMBER = re.compile(r"\d{4301}")


class Position:
    """The current position of a reader in a file, for error messages.

    Attributes:
        text: such as "line 7" or "images"; empty for the file as a whole.
        index: of the current object, if `text` names a list.
    """

    text = ""
    index: int | None = None

    def __str__(self) -> str:
        return self.text if self.index is None else f"{self.text}[{self.index}]"

    def each(self, parent: object, key: str) -> Iterator[dict[str, Any]]:
        """Yield the objects of the list `parent[key]`, and keep track of the position."""
        items = require_type(parent, dict, "the file", "an object")[key]
        items = require_type(items, list, key, "a list of objects")
        self.text = key
        for self.index, item in enumerate(items):
            yield item if isinstance(item, dict) else require_type(item, dict, "it", "an object")
        self.text, self.index = "", None


@contextmanager
def reporting_errors(
    path: Path, *library_errors: type[Exception], expected: str = ""
) -> Iterator[Position]:
    """Turn any exception while reading an annotation file into one clear error.

    Args:
        path: of the file.
        library_errors: exceptions of the library that parses it, besides `FORMAT_ERRORS`.
        expected: a sentence about the expected layout, appended to the message.

    Yields:
        The position, which the reader updates as it goes.

    Raises:
        StorageError: the operating system cannot read the file.
        DatasetError: the file is not what was expected.
    """
    position = Position()
    try:
        yield position
    except ShowTellError:
        raise
    except FORMAT_ERRORS + CSV_ERRORS + library_errors as error:
        if unreadable := read_error(path, error):
            raise unreadable from None
        reason = describe(error)
        if isinstance(error, KeyError):
            reason = f"key {reprlib.repr(error.args[0])} is missing"
        if isinstance(error, RecursionError):
            reason = "its values are nested too deeply"
        where = f"{path}, {position}" if position.text else str(path)
        raise DatasetError(f"{where}: {reason}. {expected}".rstrip()) from None


def read_utf8(path: Path) -> str:
    """Read a UTF-8 text file, without its byte order mark.

    Raises:
        StorageError: the file cannot be read.
        DatasetError: the file is not UTF-8.
    """
    with reporting_errors(path):
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


def parse_json(text: str, path: Path, *, first_line: int = 1, unique_keys: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: of the file, or of some of its lines.
        path: of the file, for the error message.
        first_line: number of the first line of `text` in the file.
        unique_keys: whether a key may occur only once in an object. Otherwise the last one counts.

    Raises:
        DatasetError: the text is not JSON, is nested too deeply, contains numbers of thousands of
            digits, or a key twice.
    """

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            [(key, count)] = Counter(key for key, _ in pairs).most_common(1)
            raise DatasetError(f"{path}: key {reprlib.repr(key)} occurs {count} times. Keep one.")
        return found

    with reporting_errors(path) as position:
        position.text = "" if first_line == 1 else f"line {first_line}"
        try:
            return json.loads(text, object_pairs_hook=to_dict if unique_keys else None)
        except json.JSONDecodeError as error:
            line, column, reason = error.lineno, error.colno, error.msg
        except ValueError:
            found = LONG_NUMBER.search(text)
            start = found.start() if found else 0
            line, column = text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)
            reason = "a number of more than 4,300 digits"
    raise DatasetError(
        f"{path}, line {line + first_line - 1}, column {column}: invalid JSON ({reason}). "
        "The file is damaged or incomplete; download or write it again."
    )


def read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read a CSV file, including its header. Blank lines are skipped.

    Fields are separated by commas; by semicolons or tabs if the header has these and no comma, as
    spreadsheet programs write them in some languages.

    Yields:
        The number of the line where the row starts, counting from 1, and the fields of the row:
        always as many as the header has.

    Raises:
        DatasetError: the file is not UTF-8, a quote is not closed, or a row has too many or too
            few fields.
    """
    text = read_utf8(path)
    separator = separator_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    width, line = 0, 1
    try:
        for row in reader:
            width = width or len(row)
            if len(row) == width:
                yield line, row
            elif row:
                raise DatasetError(
                    f"{path}, {_lines(line, reader.line_num)}: {len(row)} fields, expected {width} "
                    f"as in the header. Put a field that contains {separator!r} in double quotes."
                )
            line = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(
            f"{path}, {_lines(line, reader.line_num)}: invalid CSV ({error}). Fix the double "
            f"quotes of the row that starts in line {line}: a quote inside a quoted field is "
            'written "".'
        ) from None


def separator_of(text: str) -> str:
    """Return what separates the fields of a CSV file."""
    header = text.partition("\n")[0]
    return next((separator for separator in ",;\t" if separator in header), ",")


def read_caption_columns(
    path: Path, names: tuple[str, ...], captions: tuple[str, ...], splits: tuple[str, ...] = ()
) -> Iterator[tuple[int, str, str, str | None]]:
    """Read the columns of a CSV file that has one row per caption.

    Args:
        path: of the file.
        names: possible titles of the column of file names.
        captions: possible titles of the column of captions.
        splits: possible titles of the column of splits, which is optional.

    Yields:
        Number of the line, file name, caption and split of each row.

    Raises:
        DatasetError: the file is not such a table, or a stray quote makes a caption contain other
            rows.
    """
    rows = list(read_csv(path))
    if not rows:
        return
    header = [title.strip() for title in rows[0][1]]
    name_column, caption_column = (
        find_column(header, titles, path) for titles in (names, captions)
    )
    split_column = next((header.index(title) for title in splits if title in header), None)
    known: tuple[set[str], set[str]] | None = None
    separator = ","
    for line, row in rows[1:]:
        name, caption = row[name_column], row[caption_column]
        if len(caption.splitlines()) > 1:
            if known is None:
                known_names = {other[name_column].strip() for _, other in rows[1:]}
                known = known_names, set(map(_suffix, known_names)) - {""}
                separator = separator_of(read_utf8(path))
            for number, text in enumerate(caption.splitlines()[1:], line + 1):
                cells = text.split(separator)
                if len(cells) >= len(header) and _is_row(cells, name_column, *known):
                    raise DatasetError(
                        f"{path}, line {line}: the caption contains other rows of the table, such "
                        f"as {reprlib.repr(text)} (line {number}). Remove the stray double quote "
                        f'in line {line}, or write it as "".'
                    )
        yield line, name, caption, None if split_column is None else row[split_column]


def _lines(first: int, last: int) -> str:
    """Return "line 3" or "lines 3 to 7"."""
    return f"line {first}" if last <= first else f"lines {first} to {last}"


def _is_row(cells: list[str], name_column: int, names: set[str], suffixes: set[str]) -> bool:
    """Return whether a line of a caption is a row of the table, not text such as "a.jpg, page 2".

    Args:
        cells: of the line.
        name_column: index of the cell with the file name.
        names: the file names in the table.
        suffixes: those of the file names.
    """
    name = cells[name_column].strip()
    # Rows have no space behind their commas: a quote that follows a space swallows no rows.
    is_text = any(cell[:1].isspace() for cell in cells[name_column : name_column + 2])
    return name in names or (_suffix(name) in suffixes and not is_text)


def _suffix(name: str) -> str:
    """Return "jpg" for "a.JPG"; empty if there is none."""
    stem, _, suffix = name.strip().rpartition(".")
    return suffix.lower() if stem else ""


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
        f"{', '.join(map(reprlib.repr, header[:8])) or 'none'}. The first line must name the "
        "columns."
    )


def require_type(value: object, kind: type, name: str, expected: str) -> Any:
    """Return `value` if it has the given type.

    Raises:
        ValueError: it has another.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {reprlib.repr(value)}, expected {expected}")
    return value


def parse_id(value: object, key: str) -> int:
    """Return an image id: an integer, whether written as 7, 7.0 or "7".

    Raises:
        ValueError: it is not an integer, or does not fit into 64 bits.
    """
    number = None
    if type(value) is int:  # the usual case; not True or False
        number = value
    elif isinstance(value, str):
        number = int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", value) else None
    elif isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_FLOAT_LIMIT:
        number = int(value)
    if number is None or not -INT64_LIMIT <= number < INT64_LIMIT:
        raise ValueError(f"{key} is {reprlib.repr(value)}, expected an integer of at most 64 bits")
    return number


def parse_name(value: object, key: str) -> str:
    """Return a file name without surrounding white space.

    Raises:
        ValueError: it is not text, empty, too long, or has control characters.
    """
    name = value.strip() if isinstance(value, str) else ""
    if not name:
        raise ValueError(f"{key} is {reprlib.repr(value)}, expected the name of an image file")
    if found := NOT_IN_NAMES.search(name):
        raise ValueError(
            f"{key} is {reprlib.repr(value)}, expected a name without the character {found[0]!a}"
        )
    lengths = [len(part) for part in name.encode().split(b"/")]
    if max(lengths) > MAX_NAME_BYTES or sum(lengths) > MAX_PATH_BYTES:
        raise ValueError(
            f"{key} is {reprlib.repr(value)}, expected a name of at most {MAX_NAME_BYTES} bytes"
        )
    return name


def parse_caption(value: object, key: str) -> str | None:
    """Return a caption, or None for a missing one.

    Raises:
        ValueError: it is not text, is too long, or has characters that UTF-8 cannot encode, or NUL.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{key} is {reprlib.repr(value)}, expected text")
    if value.isascii() and "\0" not in value and len(value) <= MAX_CAPTION_LETTERS:
        return value
    if len(value) > MAX_CAPTION_LETTERS:
        raise ValueError(
            f"{key} has {len(value):,} characters, expected at most {MAX_CAPTION_LETTERS:,}"
        )
    if found := NOT_IN_CAPTIONS.search(value):
        raise ValueError(
            f"{key} is {reprlib.repr(value)}, expected text without the character {found[0]!a}"
        )
    return value
