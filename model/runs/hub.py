"""Download bundles from the Hugging Face Hub, and turn errors of its client into one line.

Downloads go through the cache of huggingface_hub, which keeps every complete file. So an
interrupted download resumes there, and the model of a repository is downloaded once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...pipeline.stage.console import shows_progress
from ...pipeline.stage.errors import ConfigError, HubError
from ...pipeline.stage.manifest import MANIFEST_NAME, Manifest
from ...pipeline.stage.options import check_plain_name

NO_BUNDLE = "is not a showtell bundle. Give a repository that 'showtell push' has written."
PREFIX = "hf:"  # of a model to load from the Hub: hf:user/name or hf:user/name@revision


def split_address(model: str) -> tuple[str, str | None]:
    """Return repository and revision of a model such as `hf:user/name@v2`."""
    repo, _, revision = model.removeprefix(PREFIX).partition("@")
    return repo, revision or None


def address_of(folder: Path) -> str | None:
    """Return `hf:user/name@commit` for a folder that `fetch_bundle` returned, None for any other.

    The client's cache has folders such as `models--user--name/snapshots/0123…`.
    """
    repo = folder.parents[1].name if len(folder.parts) > 2 else ""
    if folder.parent.name != "snapshots" or not repo.startswith("models--"):
        return None
    return f"{PREFIX}{repo.removeprefix('models--').replace('--', '/')}@{folder.name}"


def fetch_bundle(repo: str, revision: str | None = None) -> Path:
    """Return the folder of a bundle in the cache of huggingface_hub; download what is missing.

    Without a connection, the version in the cache is used.

    Args:
        repo: the repository, user/name.
        revision: branch, tag or commit; default the main branch.

    Raises:
        ConfigError: huggingface_hub is not installed.
        HubError: there is no such bundle, or the Hub cannot be reached.
    """
    with hub_requests(repo, revision):
        from huggingface_hub import hf_hub_download

        download: Callable[..., str] = partial(hf_hub_download, repo, **library())
        folder = Path(download(MANIFEST_NAME, revision=revision)).parent
        if Manifest.read(folder) is None:  # maybe damaged in the cache
            download(MANIFEST_NAME, revision=revision, force_download=True)
        manifest = read_manifest(repo, folder)
        for name, _ in manifest.find_problems(folder):
            is_damaged = (folder / name).exists()
            download(name, revision=folder.name, force_download=is_damaged)
    for name, problem in manifest.find_problems(folder):
        raise HubError(
            f"{name} of {repo} is damaged on the Hub: {problem}. Ask its author to push it again, "
            "or give an earlier --revision."
        )
    return folder


def read_manifest(repo: str, folder: Path) -> Manifest:
    """Return the manifest of a downloaded bundle.

    Raises:
        HubError: the repository holds something else.
    """
    manifest = Manifest.read(folder)
    if (
        manifest is None
        or manifest.stage != "export"
        or any(map(check_plain_name, manifest.outputs))
    ):
        raise HubError(f"{repo} {NO_BUNDLE}")
    return manifest


def find_files(repo: str, revision: str | None) -> set[str]:
    """Return the names of the files of the bundle that a repository holds; none if it has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        path = hf_hub_download(repo, MANIFEST_NAME, revision=revision, **library())
    except RemoteEntryNotFoundError:
        return set()
    manifest = Manifest.read(Path(path).parent)
    return set(manifest.outputs) if manifest and manifest.stage == "export" else set()


def library() -> dict[str, Any]:
    """Return how requests name the program that makes them."""
    from ... import __version__

    return {"library_name": "showtell", "library_version": __version__}


@contextmanager
def hub_requests(repo: str, revision: str | None) -> Iterator[None]:
    """Make requests to the Hub: any error becomes a `HubError` that says what to do.

    Args:
        repo: the repository, user/name.
        revision: branch, tag or commit that the user gave.

    Raises:
        ConfigError: huggingface_hub is not installed.
        HubError: see `explain`.
    """
    if find_spec("huggingface_hub") is None:
        raise ConfigError(
            'The Hugging Face Hub needs the package huggingface_hub. Run "pip install '
            "'showtell[hub]'\"."
        )
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not shows_progress():
        disable_progress_bars()
    try:
        yield
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]
        if getattr(error, "errno", None) is not None:
            raise  # an error of the disk
        # Without a connection, the error is that the cache has no such file.
        is_wrapped = isinstance(error, errors.LocalEntryNotFoundError | ValueError)
        cause = error.__cause__ if is_wrapped else None
        raise HubError(explain(cause or error, repo, revision)) from error


def explain(error: BaseException, repo: str, revision: str | None) -> str:
    """Return what went wrong in a request to the Hub, and what to do."""
    from huggingface_hub import constants, errors

    address = constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = " ".join((getattr(error, "server_message", None) or str(error)).split())[:300]
    match error:
        case errors.OfflineModeIsEnabled():
            return f"{repo} is not in the cache, and HF_HUB_OFFLINE is set. Unset it to download."
        case errors.GatedRepoError():
            return (
                f"{repo} is gated. Ask for access at {address}/{repo}, then log in with "
                "'hf auth login', or set HF_TOKEN."
            )
        case errors.HFValidationError():
            return f"{PREFIX}{repo} is not a name on the Hugging Face Hub. Give {PREFIX}user/name."
        case errors.RevisionNotFoundError():
            return f"{repo} has no revision {revision!r}. Give a branch, a tag or a commit."
        case errors.RemoteEntryNotFoundError():
            return f"{repo} {NO_BUNDLE}"
        case errors.RepositoryNotFoundError():
            status = 404
    if status == 404:
        return (
            f"{address} has no model {repo} that you may read. Check the name. If the repository "
            "is private, log in with 'hf auth login', or set HF_TOKEN."
        )
    if status == 401:
        return (
            f"{address} does not accept your token ({reason}). Log in again with 'hf auth login', "
            "or correct HF_TOKEN."
        )
    if status == 403:
        return (
            f"Your token may not do this with {repo} ({reason}). Create a token with write access "
            f"at {address}/settings/tokens, then log in with 'hf auth login', or set HF_TOKEN."
        )
    if status == 400:
        return (
            f"{address} refuses this upload: {reason.rstrip('.')}. If that concerns the model "
            "card, export the bundle again, for example with another --license."
        )
    if status is not None:
        return f"{address} answered {status} ({reason}). Run the same command again later."
    return (
        f"{address} cannot be reached, or the transfer broke ({reason}). Check the network and "
        "HF_ENDPOINT, then run the same command again."
    )
