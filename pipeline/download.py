"""The stage `showtell download`: a dataset's published archives → `data/<dataset>/raw`.

What lies there when it is done: the archives under their own names, `annotations/captions_*.json`
out of the annotations archive, and the manifest; and a `.NAME.verified.json` for each archive, its
md5, size and mtime when it was verified. The image archives stay zipped, since images are read
straight out of them. For `scenes` it draws `images/` and `captions.csv` instead.
"""

import errno
import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from .archives.fetch import HEADERS, Archive, fetch
from .archives.partial_download import Partial, read_json
from .config import DownloadConfig
from .datasets.scenes import SCENES_VERSION, draw_scenes
from .stage.console import format_bytes, print_note
from .stage.errors import DownloadError
from .stage.files import atomic_path, file_size, locked, write_json
from .stage.manifest import Manifest
from .stage.stopwatch import Stopwatch

VERSION = 1
COCO_URL = "http://images.cocodataset.org"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# The smallest first: a wrong mirror then shows after seconds. COCO publishes no checksums; these
# are what independent projects pin, sizes and md5 each confirmed by at least two of them.
RECIPES: dict[str, tuple[Archive, ...]] = {
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
    """Bring the dataset's files into `data/<dataset>/raw`; what is there already is not redone.

    Args:
        config: the dataset, and how patient to be. The environment variable SHOWTELL_COCO_URL
            names another server with the same archives.
        sleep: waits so many seconds between two attempts.

    Returns:
        The manifest of `raw`, with `num_archives` and `num_bytes`, or for scenes `num_images`.

    Raises:
        DownloadError: no recipe for the dataset, no room, or files other than the published ones.
    """
    raw_dir = config.dataset_dir / "raw"
    if config.dataset == "scenes":
        recipe: dict[str, Any] = {"dataset": "scenes", "scenes_version": SCENES_VERSION}
        return _run(raw_dir, recipe, {}, lambda: _draw_scenes(raw_dir))
    archives = find_archives(config.dataset)
    inputs = {archive.path: f"md5:{archive.md5}" for archive in archives}
    return _run(
        raw_dir,
        {"dataset": config.dataset},
        inputs,
        lambda: _fetch_archives(archives, raw_dir, config, sleep),
    )


def find_archives(dataset: str) -> tuple[Archive, ...]:
    """Look up the archives of a dataset.

    Raises:
        DownloadError: the dataset cannot be downloaded; says what to do instead.
    """
    if dataset in RECIPES:
        return RECIPES[dataset]
    if dataset in ON_REQUEST:
        raise DownloadError(
            f"{dataset} cannot be downloaded freely: ask for it at {ON_REQUEST[dataset]}, unpack "
            f"it, then run 'showtell prepare --dataset {dataset} --source DIR'."
        )
    raise DownloadError(
        f"dataset {dataset!r} has no download recipe, expected one of {', '.join(RECIPES)}, scenes."
        f" For files of your own run 'showtell prepare --dataset {dataset} --source DIR'."
    )


def _run(
    raw_dir: Path,
    recipe: dict[str, Any],
    inputs: dict[str, str],
    make: Callable[[], tuple[list[str], dict[str, int]]],
) -> Manifest:
    """Call `make` unless its work is done; record the file names and counts that it returns."""
    with _one_line_when_full(raw_dir), locked(raw_dir):
        done = Manifest.read(raw_dir)
        if done and done.matches(raw_dir, VERSION, recipe, inputs):
            print_note(f"download: {raw_dir} is up to date")
            return done
        stopwatch = Stopwatch()
        names, counts = make()
        return Manifest(
            stage="download",
            version=VERSION,
            config=recipe,
            inputs=inputs,
            outputs={name: (raw_dir / name).stat().st_size for name in names},
            counts=counts,
            seconds=stopwatch.seconds,
        ).write(raw_dir)


def _draw_scenes(raw_dir: Path) -> tuple[list[str], dict[str, int]]:
    num_images = draw_scenes(raw_dir)
    images = (f"images/{path.name}" for path in sorted((raw_dir / "images").glob("*.jpg")))
    return ["captions.csv", *images], {"num_images": num_images}


def _fetch_archives(
    archives: tuple[Archive, ...],
    raw_dir: Path,
    config: DownloadConfig,
    sleep: Callable[[float], None],
) -> tuple[list[str], dict[str, int]]:
    _require_room(archives, raw_dir)
    base_url = os.environ.get("SHOWTELL_COCO_URL", COCO_URL).rstrip("/")
    with httpx.Client(timeout=config.timeout_s, follow_redirects=True, headers=HEADERS) as client:
        for archive in archives:
            target = raw_dir / archive.name
            if target.exists():
                verify_present(archive, target)
            else:
                fetch(client, f"{base_url}/{archive.path}", archive, target, config.retries, sleep)
                write_json(_receipt_path(target), _receipt(archive, target))
            unpack_members(archive, target)
    names = [name for archive in archives for name in (archive.name, *archive.members)]
    num_bytes = sum(archive.size_bytes for archive in archives)
    return names, {"num_archives": len(archives), "num_bytes": num_bytes}


def verify_present(archive: Archive, target: Path) -> None:
    """Accept a file that already has the final name: hashed once, then known by size and mtime.

    Raises:
        DownloadError: it is not the archive. It is left as it is.
    """
    if read_json(_receipt_path(target)) == _receipt(archive, target):
        return
    found = f"{target.stat().st_size:,} bytes"
    if target.stat().st_size == archive.size_bytes:
        print_note(f"download: verifying {target}")
        with target.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        if md5 == archive.md5:
            write_json(_receipt_path(target), _receipt(archive, target))
            return
        found = f"{found} with md5 {md5}"
    raise DownloadError(
        f"{target} is {found}, expected {archive.size_bytes:,} bytes with md5 {archive.md5}. Delete"
        f" it, or rename it to {target.name}.partial if it is the beginning of a download; then run"
        " 'showtell download' again."
    )


def _receipt_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.verified.json")


def _receipt(archive: Archive, target: Path) -> dict[str, Any]:
    stat = target.stat()
    return {"md5": archive.md5, "size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def unpack_members(archive: Archive, target: Path) -> None:
    """Copy the archive's listed members to beside it, those that are not there yet.

    Raises:
        DownloadError: a member is not in the archive, or the archive is damaged.
    """
    try:
        for member in archive.members:
            path = target.parent / member
            with zipfile.ZipFile(target) as zipped:
                if file_size(path) == zipped.getinfo(member).file_size:
                    continue
                with (
                    atomic_path(path) as partial,
                    partial.open("wb") as file,
                    zipped.open(member) as source,
                ):
                    shutil.copyfileobj(source, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"{target}: cannot unpack {member} ({error}). Delete the archive, then run 'showtell "
            "download' again."
        ) from error


def _require_room(archives: Iterable[Archive], raw_dir: Path) -> None:
    """Say at once what would otherwise fill the disk hours later."""
    needed = 0
    for archive in archives:
        target = raw_dir / archive.name
        if not target.exists():
            needed += archive.size_bytes - Partial(target).size_bytes
    free = shutil.disk_usage(raw_dir).free
    if needed > free:
        text = f"{format_bytes(needed)} are still to come, {format_bytes(free)} are free"
        raise OSError(errno.ENOSPC, text)


@contextmanager
def _one_line_when_full(raw_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise DownloadError(
            f"{raw_dir}: {error.strerror}. What was fetched is kept: make room, or give another "
            "disk by --data, then run 'showtell download' again."
        ) from error
