"""Images in zip archives, read without unpacking."""

import os
import struct
import zipfile
import zlib
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from ..stage.artifacts import FORMAT_ERRORS, describe
from ..stage.errors import DatasetError
from ..stage.files import read_error
from .local import fold, require_size

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of the name and the extra field
NOT_IMAGES = "__MACOSX/"
UTF8_FLAG = 0x800


class ZipImages:
    """Members of one zip archive. Any number of threads can read at the same time.

    The central directory is parsed once. Each read opens the file anew, because threads that share
    a `zipfile.ZipFile` wait for each other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, struct.error, *FORMAT_ERRORS) as error:
            if unreadable := read_error(path, error):
                raise unreadable from None
            raise DatasetError(
                f"{path} is not a readable zip archive ({describe(error)}). It is damaged or "
                "incomplete: delete it and download it again."
            ) from None
        names = map(_member_name, infos)
        self.members = {
            name: info
            for name, info in zip(names, infos, strict=True)
            if not name.startswith(NOT_IMAGES)
        }
        folders = {name.partition("/")[0] if "/" in name else "" for name in self.members}
        self.prefixes = (f"{path.stem}/", f"{folders.pop()}/" if len(folders) == 1 else "")

    def find(self, name: str) -> zipfile.ZipInfo | None:
        """Find a member by its name, with or without the top folder of the archive."""
        for prefix in ("", *self.prefixes):
            if info := self.members.get(prefix + name):
                return info
        return None

    def find_similar(self, name: str) -> list[str]:
        """Return the members that `find` would return if spelling did not matter (see `fold`)."""
        found = [self._folded.get(fold(prefix) + fold(name), []) for prefix in ("", *self.prefixes)]
        return list(dict.fromkeys(member for members in found for member in members))

    @cached_property
    def _folded(self) -> dict[str, list[str]]:
        folded: dict[str, list[str]] = {}
        for name in self.members:
            folded.setdefault(fold(name), []).append(name)
        return folded

    def read(self, info: zipfile.ZipInfo) -> bytes:
        """Read one member and verify its checksum.

        Raises:
            OSError: the member is damaged, encrypted, larger than `MAX_FILE_BYTES`, or uses an
                unsupported compression.
        """
        name = f"{self.path}: member {info.filename}"
        require_size(name, max(info.file_size, info.compress_size))
        with self.path.open("rb") as file:
            header = b""
            if info.header_offset >= 0:
                file.seek(info.header_offset)
                header = file.read(LOCAL_HEADER.size)
            if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
                raise OSError(f"{name} is not at its recorded offset")
            _, name_length, extra_length = LOCAL_HEADER.unpack(header)
            encoding = "utf-8" if info.flag_bits & UTF8_FLAG else "cp437"
            if file.read(name_length).decode(encoding, "replace") != info.orig_filename:
                raise OSError(f"{name} has another name at its recorded offset")
            file.seek(extra_length, os.SEEK_CUR)
            content = _decompress(name, info, file.read(info.compress_size))
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise OSError(f"{name} is damaged (wrong checksum)")
        return content


def _member_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a zip member, "/"-separated.

    Some archives store UTF-8 names without the UTF-8 flag, or use backslashes.
    """
    name = info.filename
    if not info.flag_bits & UTF8_FLAG:
        with suppress(ValueError):  # otherwise it is in cp437, the default
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _decompress(name: str, info: zipfile.ZipInfo, compressed: bytes) -> bytes:
    """Decompress a member, stopping one byte after its recorded size."""
    is_encrypted = info.flag_bits & 1
    if info.compress_type == zipfile.ZIP_STORED and not is_encrypted:
        return compressed
    if info.compress_type == zipfile.ZIP_DEFLATED and not is_encrypted:
        try:
            return zlib.decompressobj(wbits=-15).decompress(compressed, info.file_size + 1)
        except zlib.error as error:
            raise OSError(f"{name} is damaged ({error})") from None
    raise OSError(f"{name} is encrypted, or its compression is not deflate")
