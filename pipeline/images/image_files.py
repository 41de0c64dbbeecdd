"""Image files of a dataset, read from folders or directly from zip archives.

`train2014/x.jpg` is the file `root/train2014/x.jpg` or, if there is none, a member of the archive
`root/train2014.zip`. So COCO's archives need no unpacking.
"""

import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from .local import fingerprint_folder, fold, is_file, read_image_file
from .zip import ZipImages


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
                folders[folder] = fingerprint_folder(self.root / folder)
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
        return [path for path in near if path.isprintable() and is_file(self.root / path)]

    def _find_similar(self, folder: str, parts: list[str]) -> Iterator[str]:
        first, *rest = parts
        entries = self._list_folder(folder)
        for name in entries.get(first, ()):
            path = f"{folder}/{name}".lstrip("/")
            if rest:
                yield from self._find_similar(path, rest)
            elif is_file(self.root / path):
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
                self._zips[folder] = ZipImages(path) if is_file(path) else None
            return self._zips[folder]
