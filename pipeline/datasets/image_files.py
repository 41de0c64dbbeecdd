"""Image files of a dataset, read from folders or directly from zip archives.

`train2014/x.jpg` is the file `root/train2014/x.jpg` or, if there is none, a member of the archive
`root/train2014.zip`. So COCO's archives need no unpacking.
"""

import errno
import os
import stat
import struct
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from ..stage.artifacts import FORMAT_ERRORS, describe
from ..stage.errors import DatasetError, StorageError
from ..stage.files import read_error

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of the name and the extra field
NOT_IMAGES = "__MACOSX/"
MAX_FILE_BYTES = 256 << 20  # of an image or annotation file; larger ones are not read
UTF8_FLAG = 0x800
MISSING_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def fold(name: str) -> str:
    """Return a normalized file name, to compare names that may be spelled differently.

    Ignores case, Unicode normalization, and the kind of slash.
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


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
        _require_size(name, max(info.file_size, info.compress_size))
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


def _require_size(name: str, size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        raise OSError(
            f"{name} has {size_bytes:,} bytes, expected at most {MAX_FILE_BYTES:,} for an image"
        )


def read_image_file(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        OSError: it does not exist, cannot be read, is not a regular file (a pipe or a device may
            never end), or has more than `MAX_FILE_BYTES`.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    _require_size(str(path), status.st_size)
    return path.read_bytes()


class ImageFiles:
    """Reads images by file name from one root folder. Can be pickled and shared by threads.

    Args:
        root: folder with the dataset's published layout.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._zips: dict[str, ZipImages | None] = {}  # keyed by the folder the archive replaces
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, list[str]]] = {}

    def __reduce__(self) -> tuple[type["ImageFiles"], tuple[Path]]:
        return ImageFiles, (self.root,)

    def read(self, file_name: str) -> bytes:
        """Read the content of one image file.

        Args:
            file_name: relative to the root, "/"-separated.

        Raises:
            FileNotFoundError: there is no such file or zip member.
            OSError: it cannot be read, or has more than `MAX_FILE_BYTES`.
            DatasetError: the zip archive is damaged.
        """
        path = self.root / file_name
        try:
            return read_image_file(path)
        except (FileNotFoundError, NotADirectoryError):
            found = self._find_zipped(file_name)
        if found is None:
            raise FileNotFoundError(
                f"{path} was not found, neither as a file nor inside a zip archive"
            )
        archive, info = found
        return archive.read(info)

    def fingerprints(self, file_names: Sequence[str]) -> list[str | None]:
        """Return a fingerprint for each file, which changes when the file does.

        Returns:
            "size:mtime_ns" for a file, "size:crc" for a zip member, None if there is neither.

        Raises:
            StorageError: a folder cannot be read.
            DatasetError: a zip archive is damaged.
        """
        folders: dict[str, dict[str, str]] = {}
        fingerprints = []
        for file_name in file_names:
            folder, _, name = file_name.rpartition("/")
            if folder not in folders:
                folders[folder] = _fingerprint_folder(self.root / folder)
            fingerprint = folders[folder].get(name)
            if fingerprint is None and (found := self._find_zipped(file_name)):
                fingerprint = f"{found[1].file_size}:{found[1].CRC:08x}"
            fingerprints.append(fingerprint)
        return fingerprints

    def find_similar(self, file_name: str) -> list[str]:
        """Return the files whose names differ from `file_name` only in what `fold` ignores."""
        return sorted(set(self._find_similar("", fold(file_name).split("/"))))

    def find_near(self, file_name: str) -> list[str]:
        """Return files with the same name but another suffix, or in another folder.

        Searches the root, its subfolders, and the folder of `file_name`.
        """
        folder, _, name = file_name.rpartition("/")
        subfolders = [name for names in self._list_folder("").values() for name in names]
        stem = fold(name).rpartition(".")[0] or fold(name)
        near = [
            f"{place}/{entry}".lstrip("/")
            for place in dict.fromkeys((folder, "", *sorted(subfolders)))
            for folded, entries in self._list_folder(place).items()
            if folded.startswith(stem) and folded.rpartition(".")[0] == stem
            for entry in entries
        ]
        return [path for path in near if path.isprintable() and _is_file(self.root / path)]

    def _find_similar(self, folder: str, parts: list[str]) -> Iterator[str]:
        first, *rest = parts
        entries = self._list_folder(folder)
        for name in entries.get(first, ()):
            path = f"{folder}/{name}".lstrip("/")
            if rest:
                yield from self._find_similar(path, rest)
            elif _is_file(self.root / path):
                yield path
        for name in entries.get(f"{first}.zip", ()) if rest else ():
            path = f"{folder}/{name}".lstrip("/").removesuffix(".zip")
            if archive := self._open_zip(path):
                yield from (f"{path}/{member}" for member in archive.find_similar("/".join(rest)))

    def _list_folder(self, folder: str) -> dict[str, list[str]]:
        """Return folded name → names of the entries of a folder; empty if it is not a folder."""
        if folder not in self._entries:
            entries: dict[str, list[str]] = {}
            with suppress(OSError), os.scandir(self.root / folder) as found:
                for name in sorted(entry.name for entry in found):
                    entries.setdefault(fold(name), []).append(name)
            self._entries[folder] = entries
        return self._entries[folder]

    def _find_zipped(self, file_name: str) -> tuple[ZipImages, zipfile.ZipInfo] | None:
        """Find `a/b/x.jpg` in `a/b.zip`, then in `a.zip`."""
        folder = file_name
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            archive = self._open_zip(folder)
            if archive and (info := archive.find(file_name[len(folder) + 1 :])):
                return archive, info
        return None

    def _open_zip(self, folder: str) -> ZipImages | None:
        with self._lock:
            if folder not in self._zips:
                path = self.root / f"{folder}.zip"
                self._zips[folder] = ZipImages(path) if _is_file(path) else None
            return self._zips[folder]


def _is_file(path: Path) -> bool:
    """Return whether `path` is a file; False if its name is too long to be one."""
    try:
        return path.is_file()
    except OSError:
        return False


def _fingerprint_folder(folder: Path) -> dict[str, str]:
    """Return file name → "size:mtime_ns"; empty if the folder does not exist."""
    fingerprints = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    status = entry.stat()
                    fingerprints[entry.name] = f"{status.st_size}:{status.st_mtime_ns}"
    except OSError as error:
        if error.errno not in MISSING_ERRORS:
            raise StorageError(f"{folder} cannot be read: {error.strerror}.") from None
    return fingerprints
