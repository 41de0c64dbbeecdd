"""Images from any source: files and folders, bytes, Pillow images, arrays and tensors."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..features.reading.broken_images import UnreadableImageError
from ..features.reading.decode import decode_image, to_upright_rgb
from ..features.reading.limits import MAX_PIXELS
from ..features.reading.transform import Transform
from ..pipeline.images.local import read_image_file
from ..pipeline.stage.console import print_warning
from ..pipeline.stage.errors import DatasetError
from .config import IMAGE_SUFFIXES

if TYPE_CHECKING:  # torch is not imported here, so that ONNX models run without it
    from torch import Tensor

# A path, the bytes of an image file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W).
ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | Tensor"
ImageInputs: TypeAlias = "ImageInput | Sequence[ImageInput]"

# Folders that operating systems create for thumbnails, metadata and deleted files.
GENERATED_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"}
# Photographs in formats that showtell cannot read.
UNREAD_SUFFIXES = {
    *(".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
}
CHANNELS = (1, 3, 4)


def is_image(images: ImageInputs) -> TypeGuard[ImageInput]:
    """Return whether this is one image, and not several."""
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image):
        return True
    return getattr(images, "ndim", 0) in (2, 3)  # an array or a tensor; 4 is a batch


def read_image(
    image: ImageInput, transform: Transform, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return an image from any source as upright RGB.

    Args:
        image: see `ImageInput`. A tensor is (C, H, W), an array (H, W, C) or (H, W), both uint8
            with C = 1, 3 or 4.
        transform: the transform that follows; large JPEGs are decoded at the size that it needs.
        max_pixels: files with more pixels are refused.

    Raises:
        DatasetError: the file is missing or unreadable, or the array has another shape or dtype.
    """
    name = str(image) if isinstance(image, str | os.PathLike) else describe(image)
    try:
        if isinstance(image, Image.Image):
            return to_upright_rgb(image.copy())
        if isinstance(image, str | os.PathLike):
            return decode_image(read_image_file(Path(image)), transform, max_pixels)
        if isinstance(image, bytes | bytearray | memoryview):
            return decode_image(bytes(image), transform, max_pixels)
        return to_upright_rgb(from_array(image))
    except OSError as error:
        raise DatasetError(f"{name} cannot be read: {error.strerror or error}.") from None
    except UnreadableImageError as error:
        raise DatasetError(f"{name} is not a readable image: {error}.") from None


def describe(image: object) -> str:
    """Return how to name an image without a path in an error."""
    if isinstance(image, Image.Image):
        return f"The image ({image.mode}, {image.width}×{image.height})"
    if isinstance(image, bytes | bytearray | memoryview):
        return f"The image of {len(image):,} bytes"
    return f"The {type(image).__name__}"


def from_array(values: Any) -> Image.Image:
    """Return a NumPy array (H, W, C) or (H, W), or a tensor (C, H, W), as a Pillow image.

    Raises:
        DatasetError: the shape or the dtype is another one.
    """
    is_tensor = type(values).__module__ == "torch"
    array = np.asarray(values.detach().cpu() if is_tensor else values)
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    has_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS)
    if not has_shape or array.dtype != np.uint8 or not array.size:
        shape = "(channels, height, width)" if is_tensor else "(height, width, channels)"
        got = tuple(values.shape) if hasattr(values, "shape") else type(values).__name__
        raise DatasetError(
            f"An image must be a path, bytes, a Pillow image or uint8 of shape {shape} with 1, 3 "
            f"or 4 channels, got {getattr(values, 'dtype', 'no')} values of shape {got}."
        )
    array = array[..., 0] if array.shape[2:] == (1,) else array
    return Image.fromarray(np.ascontiguousarray(array))


def find_images(paths: Iterable[Path], *, recursive: bool = True) -> Iterator[Path]:
    """Yield the image files; a folder stands for all images below it, sorted by path.

    Links to folders are followed. Hidden files and folders are skipped, and so are generated
    folders, such as those of thumbnails.

    Args:
        paths: image files or folders.
        recursive: whether to search the subfolders of a folder.

    Raises:
        DatasetError: a folder contains no images.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(walk_images(path, recursive=recursive))
            if not found:
                where = "" if recursive else " outside its subfolders"
                raise DatasetError(
                    f"{path} contains no images{where} ({', '.join(sorted(IMAGE_SUFFIXES))})."
                )
            yield from found
        else:
            yield path


def walk_images(root: Path, *, recursive: bool = True) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders, in any order, each folder once.

    Linked folders come last, so that an image found twice gets the path without links.
    """
    waiting, visited, unread = [root], set[Path](), Counter[str]()
    while waiting:
        for name, subfolders, files in os.walk(waiting.pop(0), onerror=warn_of_folder):
            folder = Path(name)
            if folder.resolve() in visited:
                subfolders.clear()
                continue
            visited.add(folder.resolve())
            subfolders[:] = sorted(filter(is_shown, subfolders)) if recursive else []
            waiting += [folder / name for name in subfolders if (folder / name).is_symlink()]
            paths = (folder / name for name in files if is_image_name(name))
            yield from (path for path in paths if path.is_file())
            suffixes = (Path(name).suffix.lower() for name in files if not name.startswith("."))
            unread.update(suffix for suffix in suffixes if suffix in UNREAD_SUFFIXES)
    for suffix, count in unread.items():
        print_warning(
            f"{root}: {count:,} {suffix} file{'s' * (count != 1)} left out, because showtell "
            "cannot read the format. Convert to .jpg first."
        )


def warn_of_folder(error: OSError) -> None:
    """Warn that a folder cannot be read; the search continues."""
    print_warning(f"{error.filename} cannot be read: {error.strerror}. Its images are skipped.")


def is_shown(folder_name: str) -> bool:
    """Return whether a folder is neither hidden nor in `GENERATED_FOLDERS`."""
    return not folder_name.startswith(".") and folder_name not in GENERATED_FOLDERS


def is_image_name(name: str) -> bool:
    """Return whether a file name has an image suffix, and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
