"""Image files of a dataset, read from folders or directly from zip archives.

`train2014/x.jpg` is the file `root/train2014/x.jpg` or, if there is none, a member of the archive
`root/train2014.zip`. So COCO's archives need no unpacking.
"""

import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from ..stage.errors import DatasetError

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of the name and the extra field
NOT_IMAGES = "__MACOSX/"


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
        except zipfile.BadZipFile as error:
            raise DatasetError(
                f"{path} is not a readable zip archive ({error}). It is damaged or incomplete: "
                "delete it and download it again."
            ) from None
        self.members = {i.filename: i for i in infos if not i.filename.startswith(NOT_IMAGES)}
        folders = {name.partition("/")[0] if "/" in name else "" for name in self.members}
        self.prefixes = (f"{path.stem}/", f"{folders.pop()}/" if len(folders) == 1 else "")

    def find(self, name: str) -> zipfile.ZipInfo | None:
        """Find a member by its name, with or without the top folder of the archive."""
        for prefix in ("", *self.prefixes):
            if info := self.members.get(prefix + name):
                return info
        return None

    def read(self, info: zipfile.ZipInfo) -> bytes:
        """Read one member and verify its checksum.

        Raises:
            OSError: the member is damaged, encrypted, or uses an unsupported compression.
        """
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(LOCAL_HEADER.size)
            if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
                raise OSError(f"{self.path}: member {info.filename} is not at its recorded offset")
            _, name_length, extra_length = LOCAL_HEADER.unpack(header)
            file.seek(name_length + extra_length, os.SEEK_CUR)
            content = self._decompress(info, file.read(info.compress_size))
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise OSError(f"{self.path}: member {info.filename} is damaged (wrong checksum)")
        return content

    def _decompress(self, info: zipfile.ZipInfo, compressed: bytes) -> bytes:
        is_encrypted = info.flag_bits & 1
        if info.compress_type == zipfile.ZIP_STORED and not is_encrypted:
            return compressed
        if info.compress_type == zipfile.ZIP_DEFLATED and not is_encrypted:
            try:
                return zlib.decompress(compressed, wbits=-15, bufsize=info.file_size)
            except zlib.error as error:
                raise OSError(f"{self.path}: member {info.filename} is damaged ({error})") from None
        raise OSError(
            f"{self.path}: member {info.filename} is encrypted, or its compression is not deflate"
        )


class ImageFiles:
    """Reads images by file name from one root folder. Can be pickled and shared by threads.

    Args:
        root: folder with the dataset's published layout.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._zips: dict[str, ZipImages | None] = {}  # keyed by the folder the archive replaces
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["ImageFiles"], tuple[Path]]:
        return ImageFiles, (self.root,)

    def read(self, file_name: str) -> bytes:
        """Read the content of one image file.

        Args:
            file_name: relative to the root, "/"-separated.

        Raises:
            FileNotFoundError: there is no such file or zip member.
            OSError: it cannot be read.
            DatasetError: the zip archive is damaged.
        """
        try:
            return (self.root / file_name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            found = self._find_zipped(file_name)
        if found is None:
            path = self.root / file_name
            raise FileNotFoundError(
                f"{path} was not found, neither as a file nor inside a zip archive"
            )
        archive, info = found
        return archive.read(info)

    def fingerprints(self, file_names: Sequence[str]) -> list[str | None]:
        """Return a fingerprint for each file, which changes when the file does.

        Returns:
            "size:mtime_ns" for a file, "size:crc" for a zip member, None if there is neither.
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
                self._zips[folder] = ZipImages(path) if path.is_file() else None
            return self._zips[folder]


def _fingerprint_folder(folder: Path) -> dict[str, str]:
    """Return file name → "size:mtime_ns"; empty if the folder does not exist."""
    fingerprints = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    status = entry.stat()
                    fingerprints[entry.name] = f"{status.st_size}:{status.st_mtime_ns}"
    except (FileNotFoundError, NotADirectoryError):
        pass
    return fingerprints
