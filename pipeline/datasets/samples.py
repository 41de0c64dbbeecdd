"""Images with their captions, as the readers of tables and archives yield them one by one.

A sample that cannot be used is left out and counted, because among millions some are bad.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..stage.urls import is_url
from .tables import SPLIT_NAMES
from .text_files import MAX_CAPTION_LETTERS, NOT_IN_CAPTIONS, NOT_IN_NAMES, parse_name

# Titles of columns, and keys of JSON objects, in the order of preference.
URL_COLUMNS = ("url", "image_url", "URL")
CAPTION_COLUMNS = ("caption", "captions", "text", "TEXT", "sentences")
URL_SCHEMES = ("https://", "http://", "s3://", "gs://")  # file:// would lead outside the source
MAX_URL_BYTES = 4096
MAX_EXAMPLES = 10  # of each reason

NO_CAPTION = "without a caption"
NO_IMAGE = "without an image"
BAD_CAPTION = "with a caption that is not text"
LONG_CAPTION = f"with a caption of more than {MAX_CAPTION_LETTERS:,} characters"
BAD_NAME = "with a file name or URL that cannot be used"
BAD_SPLIT = "with a split other than train, val and test"
BAD_ROW = "in a row that cannot be read"
OPEN_QUOTE = "in lines joined by an unclosed quote"


@dataclass(slots=True)
class Sample:
    """One image with its captions.

    Attributes:
        name: of the image; see `file_name` in captions.py.
        captions: at least one, without surrounding white space.
        split: "train", "val" or "test"; None if nothing says so.
        offset: first byte of the image in its tar archive; None for other images.
        num_bytes: length of the image in its tar archive, likewise.
    """

    name: str
    captions: list[str]
    split: str | None = None
    offset: int | None = None
    num_bytes: int | None = None


class BadSampleError(ValueError):
    """A sample cannot be used; the message is the reason, such as `NO_CAPTION`."""


@dataclass
class LeftOut:
    """Counts what is left out.

    Attributes:
        counts: reason → number of images.
        examples: (name, reason) of the first few for each reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str, count: int = 1) -> None:
        """Count images that are left out."""
        if self.counts[reason] < MAX_EXAMPLES:
            self.examples.append((name, reason))
        self.counts[reason] += count


# Reads a table or an archive. Arguments: its location, its name relative to the source, and what
# counts the samples that are left out.
SampleReader = Callable[[str, str, LeftOut], Iterator[Sample]]


def clean_captions(value: object) -> list[str]:
    """Return the captions in a cell: one, or a list.

    Raises:
        BadSampleError: there is none, or one is not usable text.
    """
    texts = value if isinstance(value, list) else [value]
    captions = []
    for text in texts:
        if text is None:
            continue
        if not isinstance(text, str):
            raise BadSampleError(BAD_CAPTION)
        text = text.strip()
        if len(text) > MAX_CAPTION_LETTERS:
            raise BadSampleError(LONG_CAPTION)
        if NOT_IN_CAPTIONS.search(text):
            raise BadSampleError(BAD_CAPTION)
        if text:
            captions.append(text)
    if not captions:
        raise BadSampleError(NO_CAPTION)
    return captions


def clean_name(value: object) -> str:
    """Return a file name relative to the source folder, or a URL.

    Raises:
        BadSampleError: it is neither.
    """
    if value is None or value == "":
        raise BadSampleError(NO_IMAGE)
    if isinstance(value, str) and is_url(value := value.strip()):
        is_known = value.startswith(URL_SCHEMES)
        if not is_known or NOT_IN_NAMES.search(value) or len(value) > MAX_URL_BYTES:
            raise BadSampleError(BAD_NAME)
        return value
    try:
        name = posixpath.normpath(parse_name(value, "file_name"))
    except ValueError:
        raise BadSampleError(BAD_NAME) from None
    if name.startswith("/") or name.split("/", 1)[0] in ("..", "."):
        raise BadSampleError(BAD_NAME)
    return name


def clean_split(value: object) -> str | None:
    """Return "train", "val" or "test"; None for an empty cell.

    Raises:
        BadSampleError: it is another text.
    """
    if value is None or value == "":
        return None
    known = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if known is None:
        raise BadSampleError(BAD_SPLIT)
    return known


def find_title(header: list[str], titles: tuple[str, ...]) -> str | None:
    """Return the first of some titles that a header has."""
    return next((title for title in titles if title in header), None)
