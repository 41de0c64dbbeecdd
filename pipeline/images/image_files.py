"""Image files of a dataset, read where they are: in folders, in archives or behind URLs.

| name | image |
|---|---|
| `a/b.jpg` | the file `root/a/b.jpg`, or a member of `root/a.zip`: COCO's need no unpacking |
| `00000.tar/b.jpg` | a member of the tar archive `root/00000.tar` |
| `00000.parquet/12` | row 12, from 0, of the Parquet file `root/00000.parquet` |
| `https://host/b.jpg` | that file; the root does not matter |

The root may be a URL too, such as `s3://bucket/set`; it then holds no zip archives.
"""

import errno
import os
import re
import threading
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from ..stage.errors import MissingArtifactError
from ..stage.urls import RemoteError, is_url, join, stamp
from .ahead import ReadAhead
from .local import fingerprint_folder, fold, is_file, read_image_file
from .zip import ZipImages

if TYPE_CHECKING:
    from .fetch import Fetcher

ARCHIVES = (".tar/", ".parquet/")
ROW = re.compile(r"(.+\.parquet)/\d+")
TAR = re.compile(r"\.tar(?=/)")
FILE_BY_URL = "url"  # its fingerprint: asking for a better one is a request for each image
NUM_REQUESTS = 32  # at once; a request waits for its server most of the time

Content = bytes | OSError  # of an image file, or why it cannot be read
Located = tuple[str, int, int]  # name of an image; offset and size in its tar, otherwise -1
NO_PLACE = (-1, -1)


class ImageFiles:
    """Reads images by name from one root. Can be pickled and shared by threads.

    Args:
        root: folder or URL with the dataset's published layout.
        members: name → (offset, size) of images in tar archives, which `read` needs.
    """

    def __init__(
        self, root: Path | str, members: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        self.root: Path | str = str(root) if is_url(str(root)) else Path(root)
        self.members = members or {}
        self._zips: dict[str, ZipImages | None] = {}  # keyed by the folder the archive replaces
        self._archives: dict[str, bool] = {}  # name of a tar or Parquet file → whether it exists
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, list[str]]] = {}

    def __reduce__(self) -> tuple[type["ImageFiles"], tuple[Path | str]]:
        return ImageFiles, (self.root,)

    def locate(self, file_name: str) -> str:
        """Return the path or URL of a file below the root."""
        return join(str(self.root), file_name)

    def read(self, file_name: str) -> bytes:
        """Read the content of one image file. `stream` reads many in archives or behind URLs.

        Args:
            file_name: relative to the root, "/"-separated, or a URL.

        Raises:
            FileNotFoundError: there is no such file or zip member.
            OSError: it cannot be read, or has more than `MAX_FILE_BYTES`.
            DatasetError: the zip archive is damaged.
            ConfigError: a library for URLs is missing.
        """
        if self._is_streamed(file_name):
            located = (file_name, *self.members.get(file_name, NO_PLACE))
            with closing(self.stream([located])) as contents:
                content = next(contents)
            if isinstance(content, bytes):
                return content
            assert isinstance(content, OSError)
            raise content
        path = self._folder / file_name
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

    def stream(self, images: Iterable[Located]) -> Generator[str | Content, None, None]:
        """Read images ahead of use, archives from start to end and many URLs at once.

        Args:
            images: best in the order of their archives.

        Yields:
            For each image its content, or why it cannot be read, or its name: then it is a local
            file, which `read` reads as fast in any thread.

        Raises:
            ConfigError: a library for URLs is missing.
        """
        images = iter(images)
        for first in images:
            if self._is_streamed(first[0]):
                yield from self._read_ahead(chain([first], images))
            else:
                yield first[0]

    def _read_ahead(self, images: Iterator[Located]) -> Iterator[str | Content]:
        from .fetch import Fetcher  # httpx and pyarrow are imported where they are needed

        fetcher = Fetcher()
        contents = self._read_in_order(images, fetcher)
        reads = repeat(partial(next, contents, None))
        ahead: Generator[str | Content | None, None, None] = ReadAhead(reads, 1).results()
        try:
            for content in ahead:
                if content is None:
                    break
                yield content
        finally:
            fetcher.stop()
            ahead.close()
            contents.close()

    def _read_in_order(
        self, images: Iterator[Located], fetcher: "Fetcher"
    ) -> Generator[str | Content, None, None]:
        for place, group in groupby(images, key=lambda image: self._find_place(image[0])):
            if place is None:
                yield from (name for name, *_ in group)
            elif place == FILE_BY_URL:
                reads = (partial(fetcher.try_read, self.locate(name)) for name, *_ in group)
                yield from ReadAhead(reads, NUM_REQUESTS).results()
            else:
                yield from self._read_archive(place, group)

    def _read_archive(self, archive: str, images: Iterable[Located]) -> Iterator[Content]:
        """Yield the content of images in one tar or Parquet file.

        If it cannot be opened, or its server does not answer, all that follow have that reason.
        """
        reason: OSError | None = None
        with ExitStack() as opened:
            read: Callable[[Located], bytes] | None = None
            for image in images:
                content: Content
                try:
                    if reason is not None:
                        content = reason
                    else:
                        read = read or self._open_archive(archive, opened)
                        content = read(image)
                except (RemoteError, MissingArtifactError) as error:
                    text = getattr(error, "reason", "it does not exist any more")
                    content = reason = OSError(errno.EIO, f"{archive}: {text}")
                except OSError as error:
                    content = error
                    reason = error if read is None else None
                yield content

    def _open_archive(self, archive: str, opened: ExitStack) -> Callable[[Located], bytes]:
        """Open an archive, to be closed by `opened`; return what reads an image in it."""
        start = len(archive) + 1
        if archive.endswith(".tar"):
            from .tar import TarImages

            tar = opened.enter_context(closing(TarImages(self.locate(archive), archive)))
            return lambda image: tar.read(image[0][start:], *image[1:])
        from .parquet import ParquetImages

        rows = opened.enter_context(closing(ParquetImages(self.locate(archive), archive)))
        return lambda image: rows.read(image[0][start:])

    def fingerprints(self, file_names: Sequence[str]) -> list[str | None]:
        """Return a fingerprint for each file, which changes when the file does.

        Returns:
            "size:mtime_ns" for a file, "size:crc" for a zip member, that of the archive for a
            member of a tar or Parquet file, "url" for a file by URL, None if there is none.

        Raises:
            StorageError: a folder cannot be read, or a URL of an archive cannot be reached.
            DatasetError: a zip archive is damaged.
            ConfigError: a library for URLs is missing.
        """
        places = [self._find_place(name) for name in file_names]
        stamps = self._stamp_archives({place for place in places if place is not None})
        folders: dict[str, dict[str, str]] = {}
        fingerprints = []
        for file_name, place in zip(file_names, places, strict=True):
            if place is not None:
                fingerprints.append(stamps[place])
                continue
            folder, _, name = file_name.rpartition("/")
            if folder not in folders:
                folders[folder] = fingerprint_folder(self._folder / folder)
            fingerprint = folders[folder].get(name)
            if fingerprint is None and (found := self._find_zipped(file_name)):
                fingerprint = f"{found[1].file_size}:{found[1].CRC:08x}"
            fingerprints.append(fingerprint)
        return fingerprints

    def _stamp_archives(self, places: set[str]) -> dict[str, str | None]:
        archives = [place for place in places if place != FILE_BY_URL]
        with ThreadPoolExecutor(NUM_REQUESTS, "stamp") as pool:
            stamps = pool.map(stamp, map(self.locate, archives))
            return {FILE_BY_URL: FILE_BY_URL, **dict(zip(archives, stamps, strict=True))}

    @property
    def _folder(self) -> Path:
        """The root, where it is a folder."""
        assert isinstance(self.root, Path)
        return self.root

    def _is_streamed(self, file_name: str) -> bool:
        return self._find_place(file_name) is not None

    def _find_place(self, file_name: str) -> str | None:
        """Return the archive that an image is read from in a stream.

        Returns:
            The name of the tar or Parquet file; `FILE_BY_URL` for an image with a URL of its own;
            None for a local file or a member of a zip archive.
        """
        if "://" in file_name and is_url(file_name):
            return FILE_BY_URL
        is_remote = not isinstance(self.root, Path)
        if any(suffix in file_name for suffix in ARCHIVES):
            for archive in possible_archives(file_name):
                if is_remote or self._is_archive(archive):
                    return archive
        return FILE_BY_URL if is_remote else None

    def _is_archive(self, name: str) -> bool:
        if name not in self._archives:
            self._archives[name] = is_file(self._folder / name)
        return self._archives[name]

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
        return [path for path in near if path.isprintable() and is_file(self._folder / path)]

    def _find_similar(self, folder: str, parts: list[str]) -> Iterator[str]:
        first, *rest = parts
        entries = self._list_folder(folder)
        for name in entries.get(first, ()):
            path = f"{folder}/{name}".lstrip("/")
            if rest:
                yield from self._find_similar(path, rest)
            elif is_file(self._folder / path):
                yield path
        for name in entries.get(f"{first}.zip", ()) if rest else ():
            path = f"{folder}/{name}".lstrip("/").removesuffix(".zip")
            if archive := self._open_zip(path):
                yield from (f"{path}/{member}" for member in archive.find_similar("/".join(rest)))

    def _list_folder(self, folder: str) -> dict[str, list[str]]:
        """Return folded name → names of the entries of a folder; empty if it is not a folder."""
        if folder not in self._entries:
            entries: dict[str, list[str]] = {}
            with suppress(OSError), os.scandir(self._folder / folder) as found:
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
                path = self._folder / f"{folder}.zip"
                self._zips[folder] = ZipImages(path) if is_file(path) else None
            return self._zips[folder]


def possible_archives(file_name: str) -> Iterator[str]:
    """Yield the parts of a name that may be its archive, the most likely first.

    Others are folders: Spark writes `x.parquet/part-00000.parquet`.
    """
    if row := ROW.fullmatch(file_name):
        yield row[1]
    for suffix in TAR.finditer(file_name):
        yield file_name[: suffix.end()]
