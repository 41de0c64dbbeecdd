"""Reader of Karpathy-split JSON files (`dataset_coco.json`, `dataset_flickr8k.json`, …)."""

import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..stage.errors import DatasetError
from ..stage.files import require_file
from .listing import Listing
from .text_files import (
    Position,
    parse_caption,
    parse_id,
    parse_json,
    parse_name,
    read_utf8,
    reporting_errors,
    require_type,
)

LAYOUT = (
    'Expected {"images": [{"filename": "x.jpg", "imgid": 1, "split": "train", '
    '"sentences": [{"raw": "…"}, …]}, …]}.'
)
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class KarpathyReader:
    """Reads a JSON file whose `images` hold filepath, filename, split, sentences, imgid and cocoid.

    The split `restval` is part of train.

    Args:
        path: the JSON file.
        find_folder: takes the file names that have no filepath, and returns their folder.
    """

    def __init__(self, path: Path, find_folder: Callable[[list[str]], str]) -> None:
        self.path = require_file(path, "--karpathy", "a Karpathy-split JSON file")
        self.find_folder = find_folder
        self.inputs = [path]

    def read(self) -> Listing:
        """Read all images. An image id is the cocoid, or the imgid if there is no cocoid."""
        content = parse_json(read_utf8(self.path), self.path)
        listing = Listing(splits={})
        with reporting_errors(self.path, expected=LAYOUT) as position:
            self._add(listing, content, position)
        if not listing.captions:
            raise DatasetError(f"{self.path} lists no images. {LAYOUT}")
        return listing

    def _add(self, listing: Listing, content: Any, position: Position) -> None:
        assert listing.splits is not None
        without_path = [
            parse_name(image["filename"], "filename")
            for image in position.each(content, "images")
            if not image.get("filepath")
        ]
        folder = self.find_folder(without_path) if without_path else ""
        for image in position.each(content, "images"):
            parent, split = image.get("filepath"), image["split"]
            parent = parse_name(parent, "filepath") if parent else folder
            name = parse_name(image["filename"], "filename")
            name = f"{parent}/{name}" if parent else name
            if name in listing.captions:
                raise ValueError(f"image {name} is listed twice")
            if not (isinstance(split, str) and split in KARPATHY_SPLITS):
                known = ", ".join(KARPATHY_SPLITS)
                raise ValueError(f"split is {reprlib.repr(split)}, expected one of {known}")
            sentences = require_type(image["sentences"], list, "sentences", "a list of objects")
            listing.captions[name] = [
                parse_caption(require_type(item, dict, "a sentence", "an object")["raw"], "raw")
                for item in sentences
            ]
            key = "cocoid" if "cocoid" in image else "imgid"
            listing.image_ids[name] = parse_id(image[key], key)
            listing.splits[name] = KARPATHY_SPLITS[split]
