"""timm's weights on the Hugging Face Hub, through the cache of huggingface_hub.

A file in the cache is used without any request. The environment variables `HF_HOME`, `HF_ENDPOINT`
and `HF_HUB_OFFLINE` work as in every program that uses huggingface_hub.
"""

import re
from pathlib import Path
from urllib.error import HTTPError

from ...pipeline.stage.errors import HubUnreachableError, WeightsError
from ...pipeline.stage.files import hash_file
from .hub import check_reachable, describe

FILE_NAMES = ("model.safetensors", "pytorch_model.bin")  # the first that a repository has


def fetch(encoder: str, address: str) -> Path:
    """Return a repository's weights file in the cache; download it if it is not there.

    Args:
        encoder: for errors.
        address: the repository, e.g. `timm/resnet50.a1_in1k`, or `repository@revision`.

    Raises:
        WeightsError: the file in the cache is damaged.
        HubUnreachableError: the file is not in the cache and cannot be downloaded; `__cause__` is
            the reason.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    repo, _, revision = address.partition("@")
    version = revision or None
    for name in FILE_NAMES:
        cached = try_to_load_from_cache(repo, name, revision=version)
        if isinstance(cached, str):
            return verify(Path(cached))
    reason: Exception
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        require_server(constants.ENDPOINT)
        for name in FILE_NAMES:
            try:
                return Path(hf_hub_download(repo, name, revision=version))
            except EntryNotFoundError as error:
                reason = error
    except (OSError, RuntimeError, ValueError) as error:
        reason = error
    raise HubUnreachableError(
        f"The weights of --encoder {encoder} are not in the cache, and cannot be downloaded from "
        f"{constants.ENDPOINT}: {one_line(reason)}. On a machine with internet access, run "
        f"'hf download {repo} {FILE_NAMES[0]}', and give the file with --weights FILE."
    ) from reason


def require_server(endpoint: str) -> None:
    """Check that the Hub answers within 10 seconds. Any status counts as an answer.

    Raises:
        OSError: it does not.
    """
    try:
        check_reachable(endpoint)
    except HTTPError:
        return


def verify(path: Path) -> Path:
    """Compare a large file with its sha256, which is its name in the cache; return the path.

    Raises:
        WeightsError: they differ.
    """
    expected = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", expected) and hash_file(path) != expected:
        raise WeightsError(
            f"{path} is damaged: its sha256 is not {expected[:12]}…. Delete {path.resolve()} and "
            "run the command again."
        )
    return path


def one_line(error: Exception) -> str:
    """Return the reason of a failed download as one line without a period."""
    # The client's own message does not say why the Hub cannot be reached.
    text = describe(error.__cause__ or error)
    return text.split("\n")[0].strip().rstrip(".") or type(error).__name__
