"""The stage `showtell download`: fetches a dataset's archives into `data/<dataset>/raw`.

It writes:
    NAME.zip                     each archive; images stay inside, and are read from there
    annotations/captions_*.json  unpacked from the archive of annotations
    .NAME.zip.verified.json      `md5`, `size_bytes` and `mtime_ns` of an archive when verified
    manifest.json

For `scenes` it draws `images/` and `captions.csv` instead.
"""

import errno
import hashlib
import os
import shlex
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from .archives.fetch import HEADERS, Archive, fetch
from .archives.partial_download import PartialDownload, read_json
from .config import DownloadConfig
from .datasets.scenes import SCENES_VERSION, draw_scenes
from .images.zip import ZipImages
from .stage.artifacts import describe, repair_command
from .stage.checksums import checksums_of
from .stage.console import format_bytes, print_note
from .stage.errors import DatasetError, DownloadError
from .stage.files import file_size, locked, write_bytes, write_error, write_json
from .stage.manifest import Manifest
from .stage.stopwatch import Stopwatch

VERSION = 1
COCO_URL = "http://images.cocodataset.org"

# The smallest archive comes first, so that a wrong mirror is noticed within seconds. COCO publishes
# no checksums; at least two independent projects pin each of these.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "coco2014": (
        Archive(
            "annotations/annotations_trainval2014.zip",
            252_872_794,
            "0a379cfc70b0e71301e0f377548639bd",
            ("annotations/captions_train2014.json", "annotations/captions_val2014.json"),
        ),
        Archive("zips/val2014.zip", 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3"),
        Archive("zips/train2014.zip", 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88"),
    ),
    "coco2017": (
        Archive(
            "annotations/annotations_trainval2017.zip",
            252_907_541,
            "f4bbac642086de4f52a3fdda2de5fa2c",
            ("annotations/captions_train2017.json", "annotations/captions_val2017.json"),
        ),
        Archive("zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
        Archive("zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    ),
}
ON_REQUEST = {
    "flickr8k": "https://forms.illinois.edu/sec/1713398",
    "flickr30k": "https://shannon.cs.illinois.edu/DenotationGraph/",
}


def download(config: DownloadConfig, *, sleep: Callable[[float], None] = time.sleep) -> Manifest:
    """Download a dataset into `data/<dataset>/raw`, except the files that are already complete.

    The environment variable SHOWTELL_COCO_URL selects another server with the same archives.

    Args:
        config: options of the stage.
        sleep: replaces `time.sleep` in tests.

    Returns:
        The manifest, with the counts `num_archives` and `num_bytes`, or `num_images` for scenes.

    Raises:
        DownloadError: the dataset cannot be downloaded, or the server has other files than the
            published ones.
        StorageError: the disk is full, or the folder cannot be written.
    """
    raw_dir = config.dataset_dir / "raw"
    if config.dataset == "scenes":
        scenes: dict[str, Any] = {"dataset": "scenes", "scenes_version": SCENES_VERSION}
        return _run(raw_dir, scenes, {}, lambda: _draw_scenes(raw_dir))
    archives = find_archives(config.dataset)
    inputs = {archive.path: f"md5:{archive.md5}" for archive in archives}
    return _run(
        raw_dir,
        {"dataset": config.dataset},
        inputs,
        lambda: _fetch_archives(archives, raw_dir, config, sleep),
    )


def find_archives(dataset: str) -> tuple[Archive, ...]:
    """Return the archives of a dataset.

    Raises:
        DownloadError: the dataset cannot be downloaded. The message says how to get it.
    """
    if dataset in ARCHIVES:
        return ARCHIVES[dataset]
    if dataset in ON_REQUEST:
        raise DownloadError(
            f"{dataset} is available only on request: ask for it at {ON_REQUEST[dataset]}, unpack "
            f"it, then run 'showtell prepare --dataset {dataset} --source DIR'."
        )
    raise DownloadError(
        f"dataset {dataset!r} cannot be downloaded, only {', '.join(ARCHIVES)} and scenes. "
        f"For your own files run 'showtell prepare --dataset {shlex.quote(dataset)} --source DIR'."
    )


def _run(
    raw_dir: Path,
    config: dict[str, Any],
    inputs: dict[str, str],
    make_files: Callable[[], tuple[list[str], dict[str, int]]],
) -> Manifest:
    """Call `make_files` unless the stage is up to date, and write the manifest.

    Args:
        raw_dir: output folder.
        config: config of the manifest.
        inputs: inputs of the manifest.
        make_files: returns the names of the output files, and the counts.
    """
    # Checked before `locked`, which writes a file: a folder that is up to date may be read-only.
    done = Manifest.read(raw_dir)
    if done and done.matches(raw_dir, VERSION, config, inputs):
        print_note(f"download: {raw_dir} is up to date")
        return done
    with _reporting_storage_errors(raw_dir), locked(raw_dir):
        stopwatch = Stopwatch()
        # `locked` deletes only those in the folder itself.
        for leftover in raw_dir.glob("*/.*.partial*"):
            leftover.unlink(missing_ok=True)
        names, counts = make_files()
        return Manifest(
            stage="download",
            version=VERSION,
            config=config,
            inputs=inputs,
            outputs={name: (raw_dir / name).stat().st_size for name in names},
            counts=counts,
            # Archives are not read again: each member has its own checksum.
            checksums=checksums_of(raw_dir, [name for name in names if not name.endswith(".zip")]),
            command=f"download --dataset {shlex.quote(config['dataset'])}",
            seconds=stopwatch.seconds,
        ).write(raw_dir)


def _draw_scenes(raw_dir: Path) -> tuple[list[str], dict[str, int]]:
    """Draw the `scenes` dataset; return its file names and counts."""
    num_images = draw_scenes(raw_dir)
    images = (f"images/{path.name}" for path in sorted((raw_dir / "images").glob("*.jpg")))
    return ["captions.csv", *images], {"num_images": num_images}


def _fetch_archives(
    archives: tuple[Archive, ...],
    raw_dir: Path,
    config: DownloadConfig,
    sleep: Callable[[float], None],
) -> tuple[list[str], dict[str, int]]:
    """Fetch, verify and unpack all archives; return the file names and counts."""
    _require_disk_space(archives, raw_dir)
    base_url = os.environ.get("SHOWTELL_COCO_URL", COCO_URL).rstrip("/")
    with httpx.Client(timeout=config.timeout_s, follow_redirects=True, headers=HEADERS) as client:
        for archive in archives:
            target = raw_dir / archive.name
            if target.exists():
                verify_present(archive, target)
            else:
                fetch(client, f"{base_url}/{archive.path}", archive, target, config.retries, sleep)
                write_json(_verification_path(target), _verification(archive, target))
            unpack_members(archive, target)
    names = [name for archive in archives for name in (archive.name, *archive.members)]
    num_bytes = sum(archive.size_bytes for archive in archives)
    return names, {"num_archives": len(archives), "num_bytes": num_bytes}


def verify_present(archive: Archive, target: Path) -> None:
    """Verify a file that already has the final name; once verified, compare size and mtime only.

    Raises:
        DownloadError: it is not the published archive. The file is kept.
    """
    if read_json(_verification_path(target)) == _verification(archive, target):
        return
    found = f"{target.stat().st_size:,} bytes"
    if target.stat().st_size == archive.size_bytes:
        print_note(f"download: verifying {target}")
        with target.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        if md5 == archive.md5:
            write_json(_verification_path(target), _verification(archive, target))
            return
        found = f"{found} with md5 {md5}"
    raise DownloadError(
        f"{target} has {found}, expected {archive.size_bytes:,} bytes with md5 {archive.md5}. "
        f"Delete it, or rename it to {target.name}.partial if it is an incomplete download; then "
        "run the same command again."
    )


def _verification_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.verified.json")


def _verification(archive: Archive, target: Path) -> dict[str, Any]:
    stat = target.stat()
    return {"md5": archive.md5, "size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def unpack_members(archive: Archive, target: Path) -> None:
    """Unpack the listed members into the folder of the archive, unless they are there already.

    Raises:
        DownloadError: a member is missing, or the archive is damaged.
    """
    for member in archive.members:
        path = target.parent / member
        try:
            zipped = ZipImages(target)
            info = zipped.members[member]
            content = None if _is_unpacked(path, info) else zipped.read(info)
        except (DatasetError, KeyError, OSError) as error:
            raise DownloadError(
                f"{target}: cannot unpack {member} ({describe(error)}). "
                f"Run '{repair_command(target)}'."
            ) from error
        if content is not None:
            write_bytes(path, content)


def _is_unpacked(path: Path, member: zipfile.ZipInfo) -> bool:
    """Return whether a file has the size and the checksum of a zip member."""
    return file_size(path) == member.file_size and zlib.crc32(path.read_bytes()) == member.CRC


def _require_disk_space(archives: Iterable[Archive], raw_dir: Path) -> None:
    """Fail now if the rest of the download would fill the disk hours later."""
    needed = 0
    for archive in archives:
        target = raw_dir / archive.name
        if not target.exists():
            needed += archive.size_bytes - PartialDownload(target).size_bytes
    free = shutil.disk_usage(raw_dir).free
    if needed > free:
        reason = f"{format_bytes(needed)} remain to be downloaded, {format_bytes(free)} are free"
        raise OSError(errno.ENOSPC, reason)


@contextmanager
def _reporting_storage_errors(raw_dir: Path) -> Iterator[None]:
    """Turn the operating system's errors, such as a full disk, into a `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise
        raise write_error(Path(error.filename or raw_dir), error) from error
