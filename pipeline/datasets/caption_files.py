"""Reads captions by image, from files of the usual formats and from Python values.

format            content
.json             COCO results       [{"image_id": 7, "caption": "…"}, …]
                  COCO annotations   {"images": […], "annotations": [{"image_id": 7, …}, …]}
                  Karpathy's splits  {"images": [{"cocoid": 7, "sentences": […], …}, …], …}
                  captions by id     {"7": "…", …} or {"7": ["…", …], …}
                  captions alone     ["…", …] or [["…", …], …]
.jsonl            one object a line, as in COCO results; "caption" may be a list
.csv, .tsv        one row per caption, with a header
.parquet          one row per caption, or per image if the captions are lists
any other name    plain text: one caption a line, or several separated by tabs; also
                  Flickr8k.token.txt ("dog.jpg#0<TAB>A dog …") and captions.txt (a CSV file)

An id is an integer, or any text, such as a file name. 7 and "7" are the same id.
"""

import operator
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..stage.errors import DatasetError, MismatchError, MissingArtifactError
from .flickr import split_token_line
from .tables import read_parquet_columns
from .text_files import (
    MAX_PATH_BYTES,
    NOT_IN_NAMES,
    Position,
    find_column,
    parse_caption,
    parse_json,
    parse_name,
    read_caption_columns,
    read_utf8,
    reporting_errors,
    require_type,
)

ID_NAMES = ("image_id", "file_name", "filename", "image_name", "image", "id")
CAPTION_NAMES = ("caption", "captions", "references", "comment")
TOKEN_LINE = re.compile(r"[^\t]+#\d+\t")

# An id and the captions of an entry, not checked yet.
Entry = tuple[Any, Any]


@dataclass
class Captions:
    """Captions by image.

    Attributes:
        source: name of the file, for errors.
        texts: id → captions in the order of the source; the list may be empty.
        file_names: file name → id, for sources that list both.
        has_ids: whether the source names its images. Otherwise they are numbered from 1, by lines.
    """

    source: str
    texts: dict[str, list[str]] = field(default_factory=dict)
    file_names: dict[str, str] = field(default_factory=dict)
    has_ids: bool = True


def read_captions(source: Any, name: str) -> Captions:
    """Read captions from a file, or from a Python value.

    Args:
        source: path of a file; or a mapping of ids or a sequence of images, with a caption or a
            sequence of captions for each.
        name: of the source in errors, if it is a Python value.

    Raises:
        MissingArtifactError: the file does not exist.
        DatasetError: the content has another layout, or a value has the wrong type.
        StorageError: the file cannot be read.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.exists():
            raise MissingArtifactError(
                f"{path} does not exist. Give the path of a file with captions."
            )
        captions = Captions(str(path))
        with reporting_errors(path) as position:
            read_entries = READERS.get(path.suffix.lower(), _read_text)
            _add_all(captions, read_entries(captions, path, position), position)
    else:
        captions = Captions(name)
        with reporting_errors(Path(name)) as position:
            _add_all(captions, _read_value(captions, source, position), position)
    if not captions.texts:
        raise DatasetError(f"{captions.source} has no captions.")
    return captions


def merge_captions(parts: Sequence[Captions]) -> Captions:
    """Return the captions of all parts: those of an image in the order of the parts.

    Raises:
        MismatchError: some parts have ids and others have none, or their numbers of lines differ.
    """
    first, *others = parts
    merged = Captions(first.source, dict(first.texts), dict(first.file_names), first.has_ids)
    for part in others:
        require_same_kind(first, part)
        if not first.has_ids and len(part.texts) != len(first.texts):
            raise MismatchError(
                f"{first.source} has {len(first.texts):,} lines and {part.source} has "
                f"{len(part.texts):,}. Line i of every file must belong to the same image."
            )
        for key, texts in part.texts.items():
            merged.texts[key] = merged.texts.get(key, []) + texts
        merged.file_names |= part.file_names
    if others:
        merged.source = f"{first.source} and {len(others)} more"
    return merged


def require_same_kind(a: Captions, b: Captions) -> None:
    """Check that both sources have ids, or that both have none.

    Raises:
        MismatchError: only one of them has.
    """
    if a.has_ids != b.has_ids:
        named, numbered = (a, b) if a.has_ids else (b, a)
        raise MismatchError(
            f"{named.source} names its images, but {numbered.source} has captions without ids. Add "
            f"the ids to {numbered.source}, or give two files without ids, with line i of both for "
            "the same image."
        )


def _add_all(captions: Captions, entries: Iterable[Entry], position: Position) -> None:
    """Add entries to the captions, and check their values."""
    for entry_id, value in entries:
        key = _parse_id(entry_id)
        label = f"the caption of image {key}" if captions.has_ids else "the caption"
        texts = captions.texts.setdefault(key, [])
        for item in value if _is_list(value) else [value]:
            # pycocoevalcap's tokenizer takes {id: [{"caption": "…"}, …]}.
            text = item["caption"] if isinstance(item, dict) else item
            if parse_caption(text, label) is None:
                raise ValueError(f"{label} is null, expected text")
            texts.append(text)
    position.text, position.index = "", None


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _parse_id(value: object) -> str:
    """Return an id as text: 7, 7.0 and "7" are the same id.

    Raises:
        ValueError: it is neither an integer nor text, or is empty, too long or not printable.
    """
    if isinstance(value, str) and value.strip():
        if NOT_IN_NAMES.search(value.strip()) or len(value) > MAX_PATH_BYTES:
            raise ValueError(
                f"the id is {reprlib.repr(value)}, expected at most {MAX_PATH_BYTES} printable "
                "characters"
            )
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if hasattr(value, "__index__") and not isinstance(value, bool):
        return str(operator.index(value))  # also numpy's integers
    raise ValueError(f"the id is {reprlib.repr(value)}, expected an integer or text")


def _read_value(captions: Captions, value: Any, position: Position) -> Iterator[Entry]:
    """Yield the entries of a JSON document, or of a Python value of the same layout."""
    if isinstance(value, Mapping) and isinstance(value.get("annotations"), list):
        yield from _read_annotations(captions, dict(value), position)
    elif isinstance(value, Mapping) and isinstance(value.get("images"), list):
        yield from _read_karpathy(captions, dict(value), position)
    elif isinstance(value, Mapping):
        yield from value.items()
    else:
        if not _is_list(value):
            raise ValueError(f"it is {reprlib.repr(value)}, expected a list or a dict of captions")
        items: Sequence[Any] = value
        captions.has_ids = bool(items) and isinstance(items[0], Mapping)
        for number, item in enumerate(items, 1):
            position.text = f"entry {number}"
            if captions.has_ids:
                row = require_type(item, Mapping, "it", "an object")
                yield _find_value(row, ID_NAMES), _find_value(row, CAPTION_NAMES)
            else:
                yield number, item


def _find_value(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the value of the first of `names` that an object has.

    Raises:
        ValueError: it has none of them.
    """
    for name in names:
        if name in row:
            return row[name]
    raise ValueError(
        f"it has neither {', '.join(names[:-1])} nor {names[-1]}; its keys are "
        f"{', '.join(map(reprlib.repr, list(row)[:8])) or 'none'}"
    )


def _read_annotations(
    captions: Captions, value: dict[str, Any], position: Position
) -> Iterator[Entry]:
    """Yield the entries of COCO's annotations; an image without any has an empty list."""
    for image in position.each(value, "images") if "images" in value else ():
        yield image["id"], []
        if "file_name" in image:
            captions.file_names[parse_name(image["file_name"], "file_name")] = _parse_id(
                image["id"]
            )
    for annotation in position.each(value, "annotations"):
        yield annotation["image_id"], annotation["caption"]


def _read_karpathy(
    captions: Captions, value: dict[str, Any], position: Position
) -> Iterator[Entry]:
    """Yield the entries of a file of Karpathy's splits; the ids are COCO's, or file names."""
    for image in position.each(value, "images"):
        key = image.get("cocoid", image["filename"])
        captions.file_names[parse_name(image["filename"], "filename")] = _parse_id(key)
        yield key, [sentence["raw"] for sentence in image["sentences"]]


def _read_json(captions: Captions, path: Path, position: Position) -> Iterator[Entry]:
    value = parse_json(read_utf8(path), path, unique_keys=True)
    yield from _read_value(captions, value, position)


def _read_jsonl(captions: Captions, path: Path, position: Position) -> Iterator[Entry]:
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if line.strip():
            position.text = f"line {number}"
            value = parse_json(line, path, first_line=number, unique_keys=True)
            row = require_type(value, dict, "the row", "an object")
            yield _find_value(row, ID_NAMES), _find_value(row, CAPTION_NAMES)


def _read_csv(captions: Captions, path: Path, position: Position) -> Iterator[Entry]:
    for line, key, text, _ in read_caption_columns(path, ID_NAMES, CAPTION_NAMES):
        position.text = f"line {line}"
        yield key, text


def _read_parquet(captions: Captions, path: Path, position: Position) -> Iterator[Entry]:
    def choose(header: list[str]) -> list[str]:
        return [header[find_column(header, names, path)] for names in (ID_NAMES, CAPTION_NAMES)]

    yield from read_parquet_columns(path, position, choose)


def _read_text(captions: Captions, path: Path, position: Position) -> Iterator[Entry]:
    text = read_utf8(path)
    lines = text.removesuffix("\n").split("\n")
    titles = {title.strip() for title in re.split("[,;\t]", lines[0])}
    if titles & {*ID_NAMES} and titles & {*CAPTION_NAMES}:
        yield from _read_csv(captions, path, position)
        return
    captions.has_ids = TOKEN_LINE.match(lines[0]) is not None
    for number, line in enumerate(lines if text else [], 1):
        position.text = f"line {number}"
        if captions.has_ids:
            yield split_token_line(line.rstrip("\r"))
        else:
            yield number, line.rstrip("\r").split("\t")


READERS: dict[str, Callable[[Captions, Path, Position], Iterator[Entry]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
