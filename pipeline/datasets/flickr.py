"""Reader of Flickr8k and Flickr30k: caption files of Kaggle and of the authors, and split lists."""

import re
import reprlib
from collections.abc import Iterator
from pathlib import Path

from ..images.image_files import ImageFiles
from ..stage.errors import DatasetError, MissingArtifactError
from .listing import Listing, RandomSplit
from .text_files import (
    Position,
    parse_caption,
    parse_name,
    read_caption_columns,
    read_utf8,
    reporting_errors,
)

IMAGE_FOLDERS = (
    "Images",
    "images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "Flickr8k_Dataset/Flicker8k_Dataset",
    "flickr30k-images",
    "flickr30k_images",
    "flickr30k_images/flickr30k_images",
    "Flickr_Data/Images",
    "Flickr_Data/Flickr_Data/Images",
    "",
)
TEXT_FOLDERS = (
    "",
    "Flickr8k_text",
    "flickr30k_images",
    "Flickr_TextData",
    "Flickr_Data/Flickr_TextData",
    "Flickr_Data/Flickr_Data/Flickr_TextData",
)
CAPTION_FILES = (
    "captions.txt",
    "captions.csv",
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
NO_OFFICIAL_SPLIT = (
    "no official split list was found. The splits are chosen at random with --seed, so scores are "
    "not comparable with published ones."
)
# As large as the official splits: 1,000 of 8,000 and 1,000 of 31,000 images.
RANDOM_SPLITS = {
    "flickr8k": RandomSplit(fraction=1 / 8, max_images=1000, warning=NO_OFFICIAL_SPLIT),
    "flickr30k": RandomSplit(fraction=1 / 31, max_images=1000, warning=NO_OFFICIAL_SPLIT),
}
# Flickr8k.token.txt has captions for this image, but no archive contains it and no split lists it.
MISSING_IMAGE = "2258277193_586949ec62.jpg.1"
# One row of results.csv lacks the second separator: "2199200615.jpg| 4   A dog runs …".
PIPE_ROW = re.compile(r"(?P<name>[^|]+)\| *\d+ *(?:\||(?<= ))(?P<caption>.*)")


class FlickrReader:
    """Reads a caption file and split lists; images are in a folder, a zip archive or the source.

    A split without a list is empty. If there are no lists at all, the splits are random.
    """

    def __init__(self, source: Path, dataset: str) -> None:
        self.source, self.dataset = source, dataset
        captions_file = _find_file(source, CAPTION_FILES)
        if captions_file is None:
            raise MissingArtifactError(
                f"{source} holds no captions: expected one of {', '.join(CAPTION_FILES[:5])}."
            )
        self.captions_file = captions_file
        lists = {split: _find_file(source, names) for split, names in SPLIT_LISTS.items()}
        self.lists = {split: path for split, path in lists.items() if path is not None}
        self.inputs = [captions_file, *self.lists.values()]

    def read(self) -> Listing:
        """Read captions and split lists. An image id is the number at the start of the name."""
        captions = _read_captions(self.captions_file)
        captions.pop(MISSING_IMAGE, None)
        folder = find_image_folder(self.source, list(captions))
        paths = {name: f"{folder}/{name}" if folder else name for name in captions}
        ids = number_images(list(captions))
        listing = Listing(
            captions={paths[name]: texts for name, texts in captions.items()},
            image_ids={paths[name]: image_id for name, image_id in ids.items()},
            random_split=RANDOM_SPLITS[self.dataset],
        )
        if self.lists:
            splits = self._read_split_lists()
            listing.splits = {paths.get(name, name): split for name, split in splits.items()}
            for name in listing.splits:
                listing.captions.setdefault(name, [])  # listed, but without captions
        return listing

    def _read_split_lists(self) -> dict[str, str]:
        """Return file name → split."""
        splits: dict[str, str] = {}
        for split, path in self.lists.items():
            with reporting_errors(path) as position:
                for number, line in _lines(read_utf8(path)):
                    position.text = f"line {number}"
                    name = parse_name(line, "the name")
                    name = name if name.lower().endswith(".jpg") else f"{name}.jpg"
                    if splits.setdefault(name, split) != split:
                        raise ValueError(
                            f"image {name} is in two splits, {splits[name]!r} and {split!r}"
                        )
        return splits


def _find_file(source: Path, patterns: tuple[str, ...]) -> Path | None:
    """Return the first file that matches the earliest pattern; skip the lemmatised captions."""
    for pattern in patterns:
        for folder in TEXT_FOLDERS:
            for path in sorted((source / folder).glob(pattern)):
                if path.is_file() and ".lemma." not in path.name:
                    return path
    return None


def find_image_folder(source: Path, names: list[str]) -> str:
    """Return the published folder, or zip archive, that holds most of the images.

    Args:
        source: root folder of the dataset.
        names: file names without a folder.

    Returns:
        The folder relative to `source`, "" for `source` itself.
    """
    files = ImageFiles(source)
    num_found: dict[str, int] = {}
    for folder, paths in _image_paths(names).items():
        num_found[folder] = sum(found is not None for found in files.fingerprints(paths))
        if num_found[folder] == len(names):
            break
    if not any(num_found.values()):
        for folder, paths in _image_paths(names).items():
            num_found[folder] = sum(map(bool, map(files.find_similar, paths)))
    return max(num_found, key=lambda folder: num_found[folder])


def _image_paths(names: list[str]) -> dict[str, list[str]]:
    """Return folder → the paths that the images would have in it."""
    return {
        folder: [f"{folder}/{name}" if folder else name for name in names]
        for folder in IMAGE_FOLDERS
    }


def number_images(names: list[str]) -> dict[str, int]:
    """Return name → the number it starts with; its position from 1 if these are not unique."""
    matches = [re.match(r"\d{1,18}(?!\d)", name) for name in names]
    numbers = {int(match[0]) for match in matches if match}
    if len(numbers) < len(names):
        return {name: position for position, name in enumerate(names, 1)}
    return {name: int(match[0]) for name, match in zip(names, matches, strict=True) if match}


def _read_captions(path: Path) -> dict[str, list[str | None]]:
    """Read one of the published formats; the first line tells which."""
    captions: dict[str, list[str | None]] = {}
    with reporting_errors(path) as position:
        for name, caption in _read_rows(path, position):
            name = parse_name(name, "the name")
            captions.setdefault(name, []).append(parse_caption(caption, "the caption"))
    if not captions:
        raise DatasetError(f"{path} holds no captions. Expected one per line.")
    return captions


def _read_rows(path: Path, position: Position) -> Iterator[tuple[str, str]]:
    text = read_utf8(path)
    first_line = text.split("\n", 1)[0]
    if "\t" not in first_line and "|" not in first_line:
        columns = read_caption_columns(path, ("image", "image_name"), ("caption", "comment"))
        for line, name, caption, _ in columns:
            position.text = f"line {line}"
            yield name, caption
        return
    has_header = "\t" not in first_line
    for number, text_of_line in _lines(text)[has_header:]:
        position.text = f"line {number}"
        yield _split_pipe_line(text_of_line) if has_header else split_token_line(text_of_line)


def _lines(text: str) -> list[tuple[int, str]]:
    """Return the number, from 1, and the text of each line that is not blank."""
    lines = ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in lines if line.strip()]


def split_token_line(line: str) -> tuple[str, str]:
    """Return the file name and the caption of a line of `Flickr8k.token.txt`.

    Raises:
        ValueError: it is not such a line.
    """
    label, tab, caption = line.partition("\t")
    name, mark, index = label.rpartition("#")
    if not (tab and mark and name and index.strip().isdigit()):
        raise ValueError(f"expected 'name.jpg#0<TAB>caption', got {reprlib.repr(line)}")
    return name, caption


def _split_pipe_line(line: str) -> tuple[str, str]:
    match = PIPE_ROW.fullmatch(line)
    if match is None:
        raise ValueError(f"expected 'name.jpg| 0| caption', got {reprlib.repr(line)}")
    return match["name"], match["caption"]
