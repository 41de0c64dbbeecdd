"""Reader of WebDataset tars: files with the same key, such as `0001.jpg` and `0001.txt`, in a row.

The caption is in `KEY.txt`, or in `KEY.json` under `caption` (or `captions`, `text`). The archive
is read once from start to end, and images are not kept.
"""

import json
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Self

from ..stage.errors import DatasetError
from ..stage.urls import open_url
from .samples import (
    BAD_CAPTION,
    BAD_NAME,
    CAPTION_COLUMNS,
    LONG_CAPTION,
    NO_CAPTION,
    NO_IMAGE,
    BadSampleError,
    LeftOut,
    Sample,
    clean_captions,
    clean_name,
    find_title,
)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
CAPTION_SUFFIXES = ("txt", "json")
MAX_CAPTION_BYTES = 1 << 20  # of a .txt or .json file
BUFFER_BYTES = 1 << 20


class _Member(tarfile.TarInfo):
    """A member of a tar. Damage is an error; `tarfile` would take it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if str(error) == "end of file header":  # the regular end, a block of zeros
                raise
            raise DatasetError(
                f"it is damaged or incomplete after {archive.offset:,} bytes ({error})"
            ) from None


def read_tar(location: str, name: str, left_out: LeftOut) -> Iterator[Sample]:
    """Yield the samples of a tar; see `SampleReader`.

    Raises:
        DatasetError: it is damaged or incomplete; raised after the last good sample.
    """
    key, files = "", dict[str, tarfile.TarInfo | bytes]()
    with open_url(location) as content:
        for member, body in _read_members(content):
            member_key, suffix = _split_name(member.name)
            if member_key != key:
                if files:
                    yield from _make_sample(key, files, name, left_out)
                key, files = member_key, {}
            if suffix in IMAGE_SUFFIXES and "image" not in files:
                files["image"] = member
            elif suffix in CAPTION_SUFFIXES:
                files[suffix] = body
    if files:
        yield from _make_sample(key, files, name, left_out)


def _read_members(content: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield the regular files of a tar, with the content of those that may hold a caption."""
    try:
        with tarfile.open(
            fileobj=content, mode="r|", bufsize=BUFFER_BYTES, tarinfo=_Member
        ) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all
                if not member.isreg():
                    continue
                body = b""
                if _split_name(member.name)[1] in CAPTION_SUFFIXES:
                    file = archive.extractfile(member)
                    body = file.read(MAX_CAPTION_BYTES + 1) if file else b""
                    if len(body) < min(member.size, MAX_CAPTION_BYTES):
                        raise DatasetError(f"it is incomplete after {member.offset:,} bytes")
                yield member, body
    except tarfile.TarError as error:
        raise DatasetError(f"it is not a complete, uncompressed tar archive ({error})") from None


def _split_name(name: str) -> tuple[str, str]:
    """Return the key and the suffix of a member, divided at the first dot of its file name."""
    folder, slash, file_name = name.rpartition("/")
    key, _, suffix = file_name.partition(".")
    return f"{folder}{slash}{key}", suffix.lower()


def _make_sample(
    key: str, files: dict[str, tarfile.TarInfo | bytes], archive: str, left_out: LeftOut
) -> Iterator[Sample]:
    image = files.get("image")
    try:
        if not isinstance(image, tarfile.TarInfo):
            raise BadSampleError(NO_IMAGE)
        if clean_name(image.name) != image.name.removeprefix("./"):
            raise BadSampleError(BAD_NAME)
        captions = _read_captions(files)
    except BadSampleError as error:
        left_out.add(f"{archive}/{key}", str(error))
        return
    name = f"{archive}/{image.name.removeprefix('./')}"
    yield Sample(name, captions, None, image.offset_data, image.size)


def _read_captions(files: dict[str, Any]) -> list[str]:
    if not (files.get("txt") or files.get("json")):
        raise BadSampleError(NO_CAPTION)
    suffix = "txt" if files.get("txt") else "json"
    if len(files[suffix]) > MAX_CAPTION_BYTES:
        raise BadSampleError(LONG_CAPTION)
    try:
        text = files[suffix].decode()
        if suffix == "txt":
            return clean_captions(text)
        value = json.loads(text)
    except BadSampleError:
        raise
    except (ValueError, RecursionError):
        raise BadSampleError(BAD_CAPTION) from None
    key = find_title(list(value), CAPTION_COLUMNS) if isinstance(value, dict) else None
    return clean_captions(None if key is None else value[key])
