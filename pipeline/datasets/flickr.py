"""Flickr8k and Flickr30k: captions as Kaggle or the authors publish them, and the split lists."""

import re
from pathlib import Path

from ..stage.errors import DatasetError, MissingArtifactError
from .image_files import ImageFiles
from .listing import DrawnSplit, Listing, decode_utf8, find_column, how_to_get, read_csv

IMAGE_FOLDERS = (
    "Images",
    "images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "Flickr8k_Dataset/Flicker8k_Dataset",
    "flickr30k-images",
    "flickr30k_images",
    "flickr30k_images/flickr30k_images",
    "",
)
TEXT_FOLDERS = ("", "Flickr8k_text", "flickr30k_images")
CAPTION_FILES = (
    "captions.txt",
    "results.csv",
    "Flickr8k.token.txt",
    "results_20130124.token",
    "[!.]*.token.txt",
    "[!.]*.token",
)
SPLIT_LISTS = {
    "train": ("Flickr_8k.trainImages.txt", "train.txt"),
    "val": ("Flickr_8k.devImages.txt", "val.txt"),
    "test": ("Flickr_8k.testImages.txt", "test.txt"),
}
INCOMPARABLE = (
    "no official split list found: the splits are drawn by --seed, so scores are not comparable "
    "with published ones."
)
DRAWN = {
    "flickr8k": DrawnSplit(share=1 / 8, most=1000, warning=INCOMPARABLE),
    "flickr30k": DrawnSplit(share=1 / 31, most=1000, warning=INCOMPARABLE),
}
# Flickr8k.token.txt captions this name, which no archive holds and no split lists.
PHANTOM_IMAGE = "2258277193_586949ec62.jpg.1"
# results.csv lacks the second separator in one row: "2199200615.jpg| 4   A dog runs …".
PIPE_ROW = re.compile(r"(?P<name>[^|]+)\| *\d+ *(?:\||(?<= ))(?P<caption>.*)")


class FlickrRecipe:
    """A caption file, the images in a folder, a zip or the source itself, and split lists.

    A split list may be absent: then there is no such split. Without any, splits are drawn.
    """

    def __init__(self, source: Path, dataset: str) -> None:
        self.source, self.dataset = source, dataset
        found = _find(source, CAPTION_FILES)
        if found is None:
            raise MissingArtifactError(
                f"{source} holds no captions: expected one of {', '.join(CAPTION_FILES[:4])}. "
                + how_to_get(dataset)
            )
        self.captions_file = found
        lists = {split: _find(source, names) for split, names in SPLIT_LISTS.items()}
        self.lists = {split: path for split, path in lists.items() if path is not None}
        self.inputs = [found, *self.lists.values()]

    def read(self) -> Listing:
        """Read captions and lists; the id of an image is the photo number that begins its name."""
        captions = _read_captions(self.captions_file)
        captions.pop(PHANTOM_IMAGE, None)
        folder = find_image_folder(self.source, list(captions))
        full = {name: f"{folder}/{name}" if folder else name for name in captions}
        ids = number_images(list(captions))
        listing = Listing(
            captions={full[name]: texts for name, texts in captions.items()},
            image_ids={full[name]: image_id for name, image_id in ids.items()},
            drawn=DRAWN[self.dataset],
        )
        if self.lists:
            splits = self._read_lists()
            listing.splits = {full.get(name, name): split for name, split in splits.items()}
            for name in listing.splits:
                listing.captions.setdefault(name, [])  # listed without captions
        return listing

    def _read_lists(self) -> dict[str, str]:
        splits: dict[str, str] = {}
        for split, path in self.lists.items():
            for line in decode_utf8(path.read_bytes(), path).split("\n"):
                if not (name := line.strip()):
                    continue
                name = name if name.endswith(".jpg") else f"{name}.jpg"
                if splits.setdefault(name, split) != split:
                    raise DatasetError(
                        f"{path}: image {name} is in two splits, {splits[name]!r} and {split!r}."
                    )
        return splits


def _find(source: Path, patterns: tuple[str, ...]) -> Path | None:
    """The first file that matches the first matching pattern; never the lemmatised captions."""
    for pattern in patterns:
        for folder in TEXT_FOLDERS:
            for path in sorted((source / folder).glob(pattern)):
                if path.is_file() and ".lemma." not in path.name:
                    return path
    return None


def find_image_folder(source: Path, names: list[str]) -> str:
    """The one of the published folders, or zips, that holds most of the images.

    Args:
        source: root of the dataset.
        names: file names without a folder.

    Returns:
        The folder relative to `source`, "" for the source itself.
    """
    files = ImageFiles(source)
    present: dict[str, int] = {}
    for folder in IMAGE_FOLDERS:
        paths = [f"{folder}/{name}" if folder else name for name in names]
        present[folder] = sum(stamp is not None for stamp in files.stamps(paths))
        if present[folder] == len(names):
            break
    return max(present, key=lambda folder: present[folder])


def number_images(names: list[str]) -> dict[str, int]:
    """Name → the number that begins it, where each has its own, else its place from 1."""
    matches = [re.match(r"\d{1,18}(?!\d)", name) for name in names]
    numbers = {int(match[0]) for match in matches if match}
    if len(numbers) < len(names):
        return {name: place for place, name in enumerate(names, 1)}
    return {name: int(match[0]) for name, match in zip(names, matches, strict=True) if match}


def _read_captions(path: Path) -> dict[str, list[str]]:
    """Read any of the published formats, told apart by their first line."""
    text = decode_utf8(path.read_bytes(), path)
    first = text.split("\n", 1)[0]
    captions: dict[str, list[str]] = {}
    if "\t" in first:
        rows = [_split_token_line(line, path, at) for at, line in _lines(text)]
    elif "|" in first:
        rows = [_split_pipe_line(line, path, at) for at, line in _lines(text)[1:]]
    else:
        rows = _read_comma_rows(path)
    for name, caption in rows:
        captions.setdefault(name, []).append(caption)
    if not captions:
        raise DatasetError(f"{path} holds no captions.")
    return captions


def _lines(text: str) -> list[tuple[int, str]]:
    lines = ((at, line.rstrip("\r")) for at, line in enumerate(text.split("\n"), 1))
    return [(at, line) for at, line in lines if line.strip()]


def _split_token_line(line: str, path: Path, at: int) -> tuple[str, str]:
    label, tab, caption = line.partition("\t")
    name, mark, number = label.rpartition("#")
    if not (tab and mark and name and number.strip().isdigit()):
        raise DatasetError(f"{path}, line {at}: expected 'name.jpg#0<TAB>caption', got {line!r}.")
    return name, caption


def _split_pipe_line(line: str, path: Path, at: int) -> tuple[str, str]:
    match = PIPE_ROW.fullmatch(line)
    if match is None:
        raise DatasetError(f"{path}, line {at}: expected 'name.jpg| 0| caption', got {line!r}.")
    return match["name"].strip(), match["caption"]


def _read_comma_rows(path: Path) -> list[tuple[str, str]]:
    rows = read_csv(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    name_at = find_column(header, ("image", "image_name"), path)
    caption_at = find_column(header, ("caption", "comment"), path)
    return [(row[name_at].strip(), row[caption_at]) for _, row in rows]
