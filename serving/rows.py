"""The rows of a table of captions, and how JSON Lines and CSV store them.

One row per caption; the captions of an image are adjacent, best first:

file_name     path of the image: relative to the folder of the table if the image is inside it,
              otherwise absolute; see also `valid_text`
caption       words joined by spaces
rank          1 for the best caption of the image
num_captions  number of rows of the image
log_prob      of the whole caption and its end, in nats
score         what captions are ranked by
word_probs    probability of each word given those before it; in CSV joined by spaces
model         name of the run or bundle, "@", and the start of the SHA-256 of its weights
decoding      the decoding options that differ from their defaults, as in the names of evaluations
stamp         "size:mtime_ns" of the image file: whether it has changed since
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..pipeline.stage.artifacts import FORMAT_ERRORS, describe

Row = dict[str, Any]

COLUMNS = (
    *("file_name", "caption", "rank", "num_captions", "log_prob", "score", "word_probs"),
    *("model", "decoding", "stamp"),
)
TEXTS, NUMBERS = ("file_name", "caption", "model", "decoding", "stamp"), ("rank", "num_captions")
# Spreadsheets run a cell that starts like this as a formula.
FORMULA_STARTS = ("=", "+", "-", "@")
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class BadRowError(ValueError):
    """A line of a table is not a row; the message is the reason."""


@dataclass(frozen=True)
class TextFormat:
    """A text file of rows, one a line, that grows at its end.

    Attributes:
        header: the first line, or nothing.
        row_start: how every other line begins.
        encode: returns the line of a row.
        decode: returns the row of a line. Raises a ValueError if it is not a row.
    """

    header: bytes
    row_start: bytes
    encode: Callable[[Row], bytes]
    decode: Callable[[str], Row]

    def read(self, file: BinaryIO) -> Iterator[tuple[Row, int]]:
        """Yield the rows of a file, and the offset at which each ends.

        An unfinished line at the end, left by a process that was killed, is left out.

        Raises:
            BadRowError: a line is not a row, or the header is another one.
        """
        end = 0
        for number, line in enumerate(file, start=1):
            expected = self.header if number == 1 and self.header else self.row_start
            is_whole = line.endswith(b"\n")
            if not is_whole and expected.startswith(line.rstrip(b"\0")[: len(expected)]):
                return  # after a power cut, the line may end in zeros
            end += len(line)
            try:
                if not is_whole:
                    raise ValueError("it has no end")
                if number == 1 and self.header:
                    require_header(line, self.header)
                elif line.strip():
                    row = self.decode(line.decode())
                    check_row(row)
                    yield row, end
            except (csv.Error, *FORMAT_ERRORS) as error:
                raise BadRowError(f"line {number}: {describe(error)}") from None


def require_header(line: bytes, header: bytes) -> None:
    """Check the first line of a file.

    Raises:
        ValueError: it is another one.
    """
    if line.rstrip() != header.rstrip():
        raise ValueError(f"it is not {header.decode().strip()}")


def encode_json(row: Row) -> bytes:
    """Return a row as a JSON object."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def encode_csv(row: Row) -> bytes:
    """Return a row as a line of a CSV file. No spreadsheet takes a text in it for a formula."""
    values = row | {"word_probs": " ".join(map(str, row["word_probs"]))}
    for name in ("caption", "model"):
        if row[name].startswith(FORMULA_STARTS):
            values[name] = f"'{row[name]}"
    if row["file_name"].startswith(FORMULA_STARTS):
        values["file_name"] = f"./{row['file_name']}"  # the same file
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values[name] for name in COLUMNS)
    return text.getvalue().encode()


def decode_csv(line: str) -> Row:
    """Return the row that `encode_csv` wrote.

    Raises:
        ValueError: it is not a row.
    """
    (values,) = csv.reader([line], strict=True)
    row: Row = dict(zip(COLUMNS, values, strict=True))
    for name in ("caption", "model"):
        if row[name][:1] == "'" and row[name][1:].startswith(FORMULA_STARTS):
            row[name] = row[name][1:]
    row["file_name"] = row["file_name"].removeprefix("./")
    row |= {name: int(row[name]) for name in NUMBERS}
    row |= {name: float(row[name]) for name in ("log_prob", "score")}
    row["word_probs"] = list(map(float, row["word_probs"].split()))
    return row


def check_row(row: Any) -> None:
    """Check that a value is a row.

    Raises:
        ValueError: it is not.
    """
    missing = [name for name in COLUMNS if not isinstance(row, dict) or name not in row]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    for names, kind in ((TEXTS, str), (NUMBERS, int)):
        for name in names:
            if not isinstance(row[name], kind):
                raise ValueError(f"its {name} is {row[name]!r}")


JSON_LINES = TextFormat(b"", b'{"file_name": "', encode_json, json.loads)
CSV = TextFormat((",".join(COLUMNS) + "\n").encode(), b"", encode_csv, decode_csv)


def stamp_of(path: str) -> str:
    """Return "size:mtime_ns" of an image file; empty if it does not exist."""
    try:
        status = os.stat(path)  # noqa: PTH116 (a third of the time, for 100,000 images)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def valid_text(text: str) -> str:
    r"""Return a file name as printable Unicode on one line.

    Bytes that are not UTF-8, control characters and line breaks become escapes like `\xe9`.
    """
    valid = os.fsencode(text).decode(errors="backslashreplace")
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), valid)
