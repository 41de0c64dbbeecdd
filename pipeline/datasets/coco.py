"""COCO's own annotations, and the Karpathy-split JSON files that others were made into."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..stage.errors import DatasetError, MissingArtifactError
from ..stage.files import require_file
from .listing import Listing, how_to_get, parse_json

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class CocoRecipe:
    """`annotations/captions_{train,val}{year}.json` beside `train{year}/`, `val{year}/` or zips.

    The annotations may also still lie in `annotations_trainval{year}.zip`. One of the two JSON
    files may be absent.
    """

    def __init__(self, source: Path, year: int) -> None:
        self.source, self.year = source, year
        self.archive = source / f"annotations_trainval{year}.zip"
        files = {split: source / self._member(split) for split in ("train", "val")}
        self.inputs = [path for path in files.values() if path.is_file()]
        if not self.inputs and self.archive.is_file():
            self.inputs = [self.archive]
        if not self.inputs:
            raise MissingArtifactError(
                f"{source} holds neither {self._member('train')} nor {self.archive.name}. "
                + how_to_get(f"coco{year}")
            )

    def _member(self, split: str) -> str:
        return f"annotations/captions_{split}{self.year}.json"

    def read(self) -> Listing:
        """Read both splits; image ids are COCO's."""
        listing = Listing(splits={})
        for split in ("train", "val"):
            path = self.source / self._member(split)
            if self.inputs == [self.archive]:
                path, content = self.archive, _read_zip(self.archive, self._member(split))
            else:
                content = path.read_bytes() if path in self.inputs else None
            if content is not None:
                annotations = parse_json(content, path)
                with _published_layout(path):
                    self._add(listing, split, annotations)
        return listing

    def _add(self, listing: Listing, split: str, annotations: Any) -> None:
        assert listing.splits is not None
        captions_of: dict[int, list[str]] = {}
        for image in annotations["images"]:
            image_id, name = image["id"], f"{split}{self.year}/{image['file_name']}"
            if image_id in captions_of or name in listing.captions:
                raise DatasetError(
                    f"captions_{split}{self.year}.json lists image {image_id} ({name}) twice."
                )
            captions_of[image_id] = listing.captions[name] = []
            listing.image_ids[name] = int(image_id)
            listing.splits[name] = split
        unknown = []
        for annotation in annotations["annotations"]:
            image_id, caption = annotation["image_id"], annotation["caption"]
            if image_id in captions_of:
                captions_of[image_id].append(caption)
            else:
                unknown.append(image_id)
        if unknown:
            raise DatasetError(
                f"captions_{split}{self.year}.json has {len(unknown):,} captions for images that "
                f"it does not list (image_id {', '.join(map(str, unknown[:3]))})."
            )


class KarpathyRecipe:
    """One JSON with `images`: filepath (optional), filename, split, sentences[].raw, imgid, cocoid.

    `restval` joins train. Images without a filepath lie in the folder that `locate` finds.
    """

    def __init__(self, path: Path, locate: Callable[[list[str]], str]) -> None:
        self.path = require_file(path, "--karpathy", "a Karpathy-split JSON file")
        self.locate = locate
        self.inputs = [path]

    def read(self) -> Listing:
        """Read the images; the id of each is its cocoid where it has one, else its imgid."""
        content = parse_json(self.path.read_bytes(), self.path)
        listing = Listing(splits={})
        with _published_layout(self.path):
            self._add(listing, content["images"])
        if not listing.captions:
            raise DatasetError(f"{self.path} lists no images.")
        return listing

    def _add(self, listing: Listing, images: list[dict[str, Any]]) -> None:
        assert listing.splits is not None
        bare = [image["filename"] for image in images if not image.get("filepath")]
        folder = self.locate(bare) if bare else ""
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


@contextmanager
def _published_layout(path: Path) -> Iterator[None]:
    """Tell in one line of JSON that is not laid out as the block expects."""
    try:
        yield
    except KeyError as error:
        raise DatasetError(f"{path} is not laid out as published: no key {error}.") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise DatasetError(f"{path} is not laid out as published ({error}).") from None


def _read_zip(path: Path, member: str) -> bytes | None:
    """The content of a member; None where there is no such member or no such zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (FileNotFoundError, KeyError):
        return None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(
            f"{path} is a damaged zip ({error}). Delete and fetch it again."
        ) from None
