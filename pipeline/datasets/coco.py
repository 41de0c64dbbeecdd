"""Reader of COCO's published annotations."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

from ..stage.errors import DatasetError, MissingArtifactError
from .listing import Listing, explain_source
from .text_files import parse_json, reporting_layout_errors


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
                f"{source} holds neither {self._member('train')} nor {self.archive.name}. "
                + explain_source(f"coco{year}")
            )

    def _member(self, split: str) -> str:
        """Return the path of a split's annotations, in the folder and in the zip archive."""
        return f"annotations/captions_{split}{self.year}.json"

    def read(self) -> Listing:
        """Read both splits. Image ids are COCO's."""
        listing = Listing(splits={})
        for split in ("train", "val"):
            path = self.source / self._member(split)
            if self.inputs == [self.archive]:
                path, content = self.archive, _read_zip_member(self.archive, self._member(split))
            else:
                content = path.read_bytes() if path in self.inputs else None
            if content is not None:
                annotations = parse_json(content, path)
                with reporting_layout_errors(path):
                    self._add(listing, split, annotations)
        return listing

    def _add(self, listing: Listing, split: str, annotations: Any) -> None:
        """Add the images and captions of one split to the listing."""
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


def _read_zip_member(path: Path, member: str) -> bytes | None:
    """Return the content of a member, or None if the archive or the member does not exist."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (FileNotFoundError, KeyError):
        return None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(
            f"{path} is a damaged zip archive ({error}). Delete it and download it again."
        ) from None
