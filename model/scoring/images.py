"""Finds the images of `showtell score --images` by their file names."""

from pathlib import Path

from ...pipeline.images.image_files import ImageFiles
from ...pipeline.stage.errors import DatasetError, MissingArtifactError
from ..metrics.metric import NamedImages
from .pairs import Pairs


def find_images(folder: Path, pairs: Pairs) -> NamedImages:
    """Return the files of the images, numbered from 0 in the order of the pairs.

    A name with folders that `folder` does not have is also looked up without them.

    Raises:
        MissingArtifactError: the folder does not exist.
        DatasetError: the name of an image is unknown, or it has no file.
    """
    if not folder.is_dir():
        raise MissingArtifactError(f"--images {folder} is not a folder. Give the images' folder.")
    files, names = ImageFiles(folder), list[str]()
    for key, name in zip(pairs.ids, pairs.file_names, strict=True):
        if name is None:
            raise DatasetError(
                f"--images cannot find image {key}, because its file name is unknown. Name the "
                "images by file names, or use references that list them, as COCO's annotations do."
            )
        names.append(name)
    missing = [row for row, found in enumerate(files.fingerprints(names)) if found is None]
    for row in missing:
        names[row] = names[row].rpartition("/")[2]
    found = files.fingerprints([names[row] for row in missing])
    for row, fingerprint in zip(missing, found, strict=True):
        if fingerprint is None:
            raise DatasetError(
                f"--images {folder} has no file {names[row]} for image {pairs.ids[row]}."
            )
    return NamedImages(files, dict(enumerate(names)))
