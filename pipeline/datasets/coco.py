"""Reader of COCO's published annotations."""

from pathlib import Path
from typing import Any

from ..images.zip import ZipImages
from ..stage.errors import DatasetError, MissingArtifactError
from .listing import Listing
from .text_files import (
    decode_utf8,
    parse_caption,
    parse_id,
    parse_json,
    parse_name,
    reporting_errors,
)

LAYOUT = (
    'Expected {"images": [{"id": 1, "file_name": "x.jpg"}, …], '
    '"annotations": [{"image_id": 1, "caption": "…"}, …]}.'
)


class CocoReader:
    """Reads `annotations/captions_{train,val}{year}.json`; one of the two may be missing.

    The annotations may still be inside `annotations_trainval{year}.zip`. The images are in
    `train{year}/` and `val{year}/`, or in zip archives of these names.
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
                f"{source} holds neither {self._member('train')} nor {self.archive.name}."
            )

    def _member(self, split: str) -> str:
        """Return the path of a split's annotations, in the folder and in the zip archive."""
        return f"annotations/captions_{split}{self.year}.json"

    def read(self) -> Listing:
        """Read both splits. Image ids are COCO's."""
        listing = Listing(splits={})
        for split in ("train", "val"):
            path = self.source / self._member(split)
            content = None
            if self.inputs == [self.archive]:
                path, content = self.archive, _read_member(self.archive, self._member(split))
            elif path in self.inputs:
                with reporting_errors(path):
                    content = path.read_bytes()
            if content is not None:
                self._add(listing, split, parse_json(decode_utf8(content, path), path), path)
        return listing

    def _add(self, listing: Listing, split: str, annotations: Any, path: Path) -> None:
        """Add the images and captions of one split to the listing."""
        assert listing.splits is not None
        captions_of: dict[int, list[str | None]] = {}
        unknown = []
        with reporting_errors(path, expected=LAYOUT) as position:
            for image in position.each(annotations, "images"):
                image_id = parse_id(image["id"], "id")
                name = f"{split}{self.year}/{parse_name(image['file_name'], 'file_name')}"
                if image_id in captions_of or name in listing.captions:
                    raise DatasetError(
                        f"{path}, {position}: image {image_id} ({name}) is listed twice. "
                        "Remove one of its entries."
                    )
                captions_of[image_id] = listing.captions[name] = []
                listing.image_ids[name] = image_id
                listing.splits[name] = split
            for annotation in position.each(annotations, "annotations"):
                image_id = parse_id(annotation["image_id"], "image_id")
                caption = parse_caption(annotation["caption"], "caption")
                if image_id in captions_of:
                    captions_of[image_id].append(caption)
                else:
                    unknown.append(image_id)
        if unknown:
            raise DatasetError(
                f"{path} has {len(unknown):,} captions for images that it does not list "
                f"(image_id {', '.join(map(str, unknown[:3]))}). Add these images, or remove the "
                "captions."
            )


def _read_member(path: Path, member: str) -> bytes | None:
    """Return the content of a zip member, or None if the archive does not contain it."""
    archive = ZipImages(path)
    info = archive.find(member)
    with reporting_errors(path, expected="Delete the archive and download it again."):
        return None if info is None else archive.read(info)
