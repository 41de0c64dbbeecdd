"""The commands `showtell push` and `pull`: bundles to and from the Hugging Face Hub."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..model.runs.hub import PREFIX, fetch_bundle, find_files, hub_requests, library
from ..model.runs.layout import CARD_NAME
from ..pipeline.stage.artifacts import is_bundle, require_bundle_folder, require_stage
from ..pipeline.stage.checksums import checksum
from ..pipeline.stage.command_line import command_of
from ..pipeline.stage.console import format_bytes, print_note, print_table
from ..pipeline.stage.errors import ConfigError, HubError
from ..pipeline.stage.files import locked, write_bytes
from ..pipeline.stage.manifest import MANIFEST_NAME, Manifest
from .config import PullConfig, PushConfig
from .onnx_runtime import ONNX_PACKAGES


def push(config: PushConfig) -> dict[str, Any]:
    """Upload a bundle in one commit; create the repository and the branch if needed.

    Files of the bundle that was there before are deleted if the new one does not have them.

    Returns:
        Name and address of the repository, the commit, and the size of each file.

    Raises:
        ConfigError: the folder is not a bundle, or huggingface_hub is not installed.
        DamagedFileError: a file of the bundle is damaged.
        HubError: the Hub refuses the upload, or cannot be reached.
    """
    if not is_bundle(config.bundle):
        raise ConfigError(
            f"{config.bundle} is not a bundle. Write one with 'showtell export RUN OUT'."
        )
    repo, revision = config.repo, config.revision
    files = files_for(repo, config.bundle, require_stage(config.bundle))
    with hub_requests(repo, revision):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

        if get_token() is None:
            raise HubError(
                f"Uploading to {repo} needs a token with write access. Log in with "
                "'hf auth login', or set HF_TOKEN."
            )
        api = HfApi(**library())
        url = api.create_repo(repo, private=config.private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        stale = find_files(repo, revision) - files.keys()
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo,
            [*added, *map(CommitOperationDelete, sorted(stale))],
            commit_message=config.message,
            revision=revision,
        )
    sizes = {item.path_in_repo: item.upload_info.size for item in added}
    rows = [(name, format_bytes(size)) for name, size in sizes.items()]
    print_table("push", [*rows, ("url", str(url))])
    return {"repo": repo, "url": str(url), "commit": commit.oid, "files": sizes}


def files_for(repo: str, bundle: Path, manifest: Manifest) -> dict[str, Path | bytes]:
    """Return the files to upload: name → path, or content if it differs from the bundle's.

    The commands in the model card name the repository, and the manifest names the command that
    downloads the bundle again.
    """
    card = with_repository((bundle / CARD_NAME).read_text("utf-8"), repo).encode()
    manifest = replace(
        manifest,
        outputs=manifest.outputs | {CARD_NAME: len(card)},
        checksums=manifest.checksums | {CARD_NAME: checksum(card)},
        command=command_of("pull", PullConfig(repo=repo)),
        folder="",
    )
    files: dict[str, Path | bytes] = {name: bundle / name for name in manifest.outputs}
    return files | {CARD_NAME: card, MANIFEST_NAME: manifest.to_bytes()}


def with_repository(card: str, repo: str) -> str:
    """Return a model card whose commands load the model from a repository of the Hub."""
    card = card.replace("pip install showtell\n", "pip install 'showtell[hub]'\n")
    packages = f"pip install {' '.join(ONNX_PACKAGES)}"
    card = re.sub(rf"{packages}\n", f"{packages} huggingface_hub\n", card)
    card = re.sub(r"--model \S+", lambda _: f"--model {PREFIX}{repo}", card)
    load = r'((?:showtell|OnnxCaptioner)\.load\()"[^"]*"'
    return re.sub(load, lambda found: f'{found[1]}"{PREFIX}{repo}"', card)


def pull(config: PullConfig) -> Manifest:
    """Download a bundle to a folder, and verify it.

    Raises:
        ConfigError: the folder holds something else, or huggingface_hub is not installed.
        HubError: there is no such bundle, or the Hub cannot be reached.
        StorageError: the folder cannot be written.
    """
    out = config.output or Path(config.repo.partition("/")[2])
    require_bundle_folder(out, "pull", config.repo)
    source = fetch_bundle(config.repo, config.revision)
    # The repository's own manifest may name another one, if it was renamed or uploaded otherwise.
    command = command_of("pull", PullConfig(repo=config.repo))
    manifest, previous = replace(Manifest.load(source), command=command), Manifest.read(out)
    changed = [name for name, _ in manifest.find_problems(out)]
    if previous == manifest and not changed:
        print_note(f"pull: {out} is up to date.")
        return manifest
    with locked(out):
        manifest.write_copy(out)  # an interrupted download can then continue
        for name in changed:
            write_bytes(out / name, (source / name).read_bytes())
        for name in previous.outputs.keys() - manifest.outputs.keys() if previous else ():
            (out / name).unlink(missing_ok=True)
        manifest.write(out)
    rows = [(name, format_bytes(size)) for name, size in manifest.outputs.items()]
    print_table("pull", [*rows, ("path", str(out))])
    print_note(f"Caption images with 'showtell caption IMAGE --model {out}'.")
    return manifest
