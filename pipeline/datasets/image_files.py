"""Image files of a dataset, read from its folders or straight out of its zip archives.

`train2014/x.jpg` is `root/train2014/x.jpg` or, where that does not exist, a member of
`root/train2014.zip`. The images of COCO so need no unpacking of 123,000 files.
"""

import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from ..stage.errors import DatasetError

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, length of name and of extra field
NOT_IMAGES = "__MACOSX/"


class ZipImages:
    """The members of one zip archive, found by name and read by any number of threads.

    The directory of the archive is parsed once; each read opens the file for itself, so that no
    thread waits for another (a shared `zipfile.ZipFile` makes them take turns).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
        except zipfile.BadZipFile as error:
            raise DatasetError(
                f"{path} is no readable zip archive ({error}). It is damaged or was cut short: "
                "delete it and fetch it again."
            ) from None
        self.members = {i.filename: i for i in infos if not i.filename.startswith(NOT_IMAGES)}
        tops = {name.partition("/")[0] if "/" in name else "" for name in self.members}
        self.tops = (f"{path.stem}/", f"{tops.pop()}/" if len(tops) == 1 else "")

    def find(self, name: str) -> zipfile.ZipInfo | None:
        """Look up a name relative to the archive, whose members may share a top folder."""
        for top in ("", *self.tops):
            if info := self.members.get(top + name):
                return info
        return None

    def read(self, info: zipfile.ZipInfo) -> bytes:
        """Read and check one member.

        Raises:
            OSError: it is damaged, encrypted or packed in an uncommon way.
        """
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(LOCAL_HEADER.size)
            if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
                raise OSError(f"{self.path}: no member at the place of {info.filename}")
            _, name_length, extra_length = LOCAL_HEADER.unpack(header)
            file.seek(name_length + extra_length, os.SEEK_CUR)
            content = self._unpack(info, file.read(info.compress_size))
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise OSError(f"{self.path}: member {info.filename} is damaged (wrong checksum)")
        return content

    def _unpack(self, info: zipfile.ZipInfo, packed: bytes) -> bytes:
        encrypted = info.flag_bits & 1
        if info.compress_type == zipfile.ZIP_STORED and not encrypted:
            return packed
        if info.compress_type == zipfile.ZIP_DEFLATED and not encrypted:
            try:
                return zlib.decompress(packed, wbits=-15, bufsize=info.file_size)
            except zlib.error as error:
                raise OSError(f"{self.path}: member {info.filename} is damaged ({error})") from None
        raise OSError(f"{self.path}: member {info.filename} is encrypted or not packed by deflate")


class ImageFiles:
    """Image bytes by file name, from folders or zips under one root; safe to share and to pickle.

    Args:
        root: folder in the dataset's published layout.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._zips: dict[str, ZipImages | None] = {}  # by the folder that the zip stands for
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["ImageFiles"], tuple[Path]]:
        return ImageFiles, (self.root,)

    def read(self, file_name: str) -> bytes:
        """Read one image, whole.

        Args:
            file_name: relative to the root, "/"-separated.

        Raises:
            FileNotFoundError: it is neither in a folder nor in a zip.
            OSError: it cannot be read.
            DatasetError: its zip is no zip.
        """
        try:
            return (self.root / file_name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            found = self._find_zipped(file_name)
        if found is None:
            raise FileNotFoundError(f"{self.root / file_name} does not exist, in a zip neither")
        archive, info = found
        return archive.read(info)

    def stamps(self, file_names: Sequence[str]) -> list[str | None]:
        """Tell for each name whether the file is there and whether it is still the same.

        Returns:
            "size:mtime_ns" for a file, "size:crc" for a member of a zip, None where there is none.
        """
        folders: dict[str, dict[str, str]] = {}
        stamps = []
        for file_name in file_names:
            folder, _, name = file_name.rpartition("/")
            if folder not in folders:
                folders[folder] = _scan(self.root / folder)
            stamp = folders[folder].get(name)
            if stamp is None and (found := self._find_zipped(file_name)):
                stamp = f"{found[1].file_size}:{found[1].CRC:08x}"
            stamps.append(stamp)
        return stamps

    def _find_zipped(self, file_name: str) -> tuple[ZipImages, zipfile.ZipInfo] | None:
        """Look into `a/b.zip`, then `a.zip`, for `a/b/x.jpg`."""
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


def _scan(folder: Path) -> dict[str, str]:
    """File name → "size:mtime_ns" of the files in a folder; empty where there is no folder."""
    stamps = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    status = entry.stat()
                    stamps[entry.name] = f"{status.st_size}:{status.st_mtime_ns}"
    except (FileNotFoundError, NotADirectoryError):
        pass
    return stamps
