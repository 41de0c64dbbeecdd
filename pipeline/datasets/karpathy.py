"""Reader of Karpathy-split JSON files (`dataset_coco.json`, `dataset_flickr8k.json`, …)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..stage.errors import DatasetError
from ..stage.files import require_file
from .listing import Listing
from .text_files import parse_json, reporting_layout_errors

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
        content = parse_json(self.path.read_bytes(), self.path)
        listing = Listing(splits={})
        with reporting_layout_errors(self.path):
            self._add(listing, content["images"])
        if not listing.captions:
            raise DatasetError(f"{self.path} lists no images.")
        return listing

    def _add(self, listing: Listing, images: list[dict[str, Any]]) -> None:
        assert listing.splits is not None
        without_path = [image["filename"] for image in images if not image.get("filepath")]
        folder = self.find_folder(without_path) if without_path else ""
        for image in images:
            parent, split = image.get("filepath") or folder, image["split"]
            name = f"{parent}/{image['filename']}" if parent else image["filename"]
            if name in listing.captions:
                raise DatasetError(f"{self.path} lists image {name} twice.")
            if split not in KARPATHY_SPLITS:
                raise DatasetError(
                    f"{self.path}: image {name} is in split {split!r}, expected one of "
                    f"{', '.join(KARPATHY_SPLITS)}."
                )
            listing.captions[name] = [sentence["raw"] for sentence in image["sentences"]]
            listing.image_ids[name] = int(image["cocoid"] if "cocoid" in image else image["imgid"])
            listing.splits[name] = KARPATHY_SPLITS[split]
