"""Tests of push and pull against a stand-in for the Hugging Face Hub on loopback."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from showtell.model.runs import hub as hub_client
from showtell.model.runs.find import find_model, name_of_model
from showtell.model.runs.hub import fetch_bundle
from showtell.model.runs.layout import CONSENSUS_NAME, MODEL_NAME
from showtell.pipeline.stage.checksums import checksums_of
from showtell.pipeline.stage.errors import ConfigError, HubError
from showtell.pipeline.stage.manifest import Manifest
from showtell.serving.config import ExportConfig, PullConfig, PushConfig
from showtell.serving.export import export
from showtell.serving.hub import pull, push
from showtell.serving.load import load

pytest.importorskip("huggingface_hub")

REPO = "user/flickr8k-gru"


def load_server():
    spec = importlib.util.spec_from_file_location(
        "hub_server", Path(__file__).with_name("hub_server.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_server"] = module
    spec.loader.exec_module(module)
    return module


hub_server = load_server()


def set_endpoint(monkeypatch, url: str) -> None:
    """Do what HF_ENDPOINT does, which the library reads when it is imported."""
    from huggingface_hub import constants

    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[object]:
    """An empty Hub, and a user who is logged in with a token that may write."""
    from huggingface_hub import constants, file_download

    with hub_server.serving() as server:
        set_endpoint(monkeypatch, server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # it needs a server of its own
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
        monkeypatch.setenv("HF_TOKEN", hub_server.WRITE_TOKEN)
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture(scope="session")
def exported(data, tmp_path_factory) -> Path:
    """The bundle of run `r`, with consensus."""
    out = tmp_path_factory.mktemp("export") / "mine"
    export(ExportConfig(data=data, run="r", output=out, consensus=True))
    return out


@pytest.fixture
def bundle(exported, tmp_path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "mine"))


def content_of(folder: Path) -> dict[str, bytes]:
    """Name → content of the files of a bundle; the manifest without the name of its folder."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}
    manifest = replace(Manifest.load(folder), folder="")
    return files | {"manifest.json": manifest.to_bytes()}


def test_pull_writes_the_files_that_push_uploaded(hub, bundle, showtell) -> None:
    (bundle / "notes.txt").write_text("not part of the bundle")
    status, output = showtell("push", bundle, REPO, "--message", "Better captions")
    assert status == 0 and f"{hub.url}/{REPO}" in output
    names = {*Manifest.load(bundle).outputs, "manifest.json"}
    assert hub.files(REPO).keys() == names
    assert hub.repositories[REPO].messages[-1] == "Better captions"
    assert any(agent.startswith("showtell/") for agent in hub.agents)
    status, output = showtell("pull", REPO)
    assert status == 0 and "showtell caption IMAGE --model flickr8k-gru" in output
    assert content_of(Path("flickr8k-gru")) == hub.files(REPO)
    changed = {"README.md", "manifest.json"}
    for name in names - changed:
        assert hub.files(REPO)[name] == (bundle / name).read_bytes()


def test_pulled_bundle_captions_like_the_run(
    hub, bundle, captioner, image_paths, random_weights, showtell_json
) -> None:
    push(PushConfig(bundle=bundle, repo=REPO))
    expected = captioner.caption(image_paths[:6], beam=5, length_penalty=1.0)
    options = ("--weights", random_weights, "--device", "cpu", *image_paths[:6])
    showtell_json("pull", REPO, "pulled")
    for model in ("pulled", f"hf:{REPO}", f"hf:{REPO}@main"):
        status, results = showtell_json("caption", "--model", model, *options)
        assert status == 0
        assert [result["captions"][0]["caption"] for result in results] == expected


def test_card_and_manifest_name_the_repository(hub, bundle) -> None:
    push(PushConfig(bundle=bundle, repo=REPO))
    card = hub.files(REPO)["README.md"].decode()
    assert "pip install 'showtell[hub]'\n" in card
    assert f"--model hf:{REPO}\n" in card and f'showtell.load("hf:{REPO}")' in card
    # A damaged copy is repaired by another pull.
    pull(PullConfig(repo=REPO, output="pulled"))
    (Path("pulled") / MODEL_NAME).write_bytes(b"damaged")
    with pytest.raises(Exception, match=rf"Run 'showtell pull {REPO} \S+/pulled'"):
        load("pulled")
    # Pushed again under another name, the card names that.
    pull(PullConfig(repo=REPO, output="pulled"))
    push(PushConfig(bundle="pulled", repo="user/other"))
    assert REPO not in hub.files("user/other")["README.md"].decode()
    assert hub.files("user/other")["README.md"].decode().count("hf:user/other") == 2


def test_push_again_uploads_what_changed_and_deletes_the_rest(hub, bundle, data) -> None:
    push(PushConfig(bundle=bundle, repo=REPO))
    hub.requests.clear()
    push(PushConfig(bundle=bundle, repo=REPO))
    assert not any(request.startswith("PUT") for request in hub.requests)
    assert CONSENSUS_NAME in hub.files(REPO)
    hub.repositories[REPO].commits[hub.repositories[REPO].branches["main"]]["more.txt"] = b"theirs"
    pull(PullConfig(repo=REPO, output="pulled"))
    export(ExportConfig(data=data, run="r", output=bundle, half=True))
    push(PushConfig(bundle=bundle, repo=REPO))
    assert CONSENSUS_NAME not in hub.files(REPO)
    assert hub.files(REPO)["more.txt"] == b"theirs"
    pull(PullConfig(repo=REPO, output="pulled"))
    expected = {k: v for k, v in hub.files(REPO).items() if k != "more.txt"}
    assert content_of(Path("pulled")) == expected


def test_private_repository_and_branch(hub, bundle, monkeypatch) -> None:
    push(PushConfig(bundle=bundle, repo=REPO, private=True, revision="v2"))
    assert hub.repositories[REPO].private
    assert hub.files(REPO) == {} and MODEL_NAME in hub.files(REPO, "v2")
    commit = push(PushConfig(bundle=bundle, repo=REPO, revision="v2"))["commit"]
    pull(PullConfig(repo=REPO, output="one", revision="v2"))
    pull(PullConfig(repo=REPO, output="two", revision=commit))
    assert content_of(Path("one")) == content_of(Path("two")) == hub.files(REPO, "v2")
    with pytest.raises(HubError, match=r"user/flickr8k-gru is not a showtell bundle"):
        pull(PullConfig(repo=REPO, output="three"))


def test_damaged_bundle_is_not_uploaded(hub, bundle, showtell) -> None:
    content = bytearray((bundle / MODEL_NAME).read_bytes())
    content[-5] ^= 1
    (bundle / MODEL_NAME).write_bytes(content)
    status, output = showtell("push", bundle, REPO)
    assert status == 1 and "is damaged" in output and "Run 'showtell export r" in output
    status, output = showtell("push", "nothing", REPO)
    assert status == 1 and "nothing is not a bundle. Write one with 'showtell export" in output
    assert hub.requests == []


def test_pull_again_is_up_to_date(hub, bundle, capsys) -> None:
    push(PushConfig(bundle=bundle, repo=REPO))
    pull(PullConfig(repo=REPO, output="pulled"))
    hub.requests.clear()
    capsys.readouterr()
    pull(PullConfig(repo=REPO, output="pulled"))
    assert capsys.readouterr().out == "pull: pulled is up to date.\n"
    assert len(hub.requests) == 1


def test_other_files_are_never_overwritten(hub, bundle, write_foreign_model) -> None:
    push(PushConfig(bundle=bundle, repo=REPO))
    contents = write_foreign_model(Path("flickr8k-gru"))
    with pytest.raises(ConfigError, match=r"is not a bundle\. Give a new or empty folder"):
        pull(PullConfig(repo=REPO))
    assert {path.name: path.read_bytes() for path in Path("flickr8k-gru").iterdir()} == contents


def test_interrupted_pull_resumes(hub, bundle) -> None:
    push(PushConfig(bundle=bundle, repo=REPO))
    hub.faults = {"vocab.json": 403}
    with pytest.raises(HubError):
        pull(PullConfig(repo=REPO, output="pulled"))
    assert not Path("pulled").exists()
    hub.faults = {}
    hub.requests.clear()
    pull(PullConfig(repo=REPO, output="pulled"))
    assert content_of(Path("pulled")) == hub.files(REPO)
    assert not any("config.json" in request for request in hub.requests)


def test_bundle_of_another_source_is_never_overwritten(hub, bundle, showtell) -> None:
    for repo in (REPO, "other/flickr8k-gru"):
        push(PushConfig(bundle=bundle, repo=repo))
    shutil.copytree(bundle, "flickr8k-gru")
    (Path("flickr8k-gru") / "notes.txt").write_text("precious")
    status, output = showtell("pull", REPO)
    assert status == 1 and "holds another bundle, made by 'showtell export r'" in output
    assert content_of(Path("flickr8k-gru")) == content_of(bundle) | {"notes.txt": b"precious"}
    shutil.rmtree("flickr8k-gru")
    pull(PullConfig(repo=REPO))
    _, output = showtell("pull", "other/flickr8k-gru")
    assert f"made by 'showtell pull {REPO}'. Delete the folder, or give" in output
    assert content_of(Path("flickr8k-gru")) == hub.files(REPO)
    assert showtell("pull", REPO)[0] == 0


def test_stopped_pull_continues(hub, bundle, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    push(PushConfig(bundle=bundle, repo=REPO))
    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            pull(PullConfig(repo=REPO, output="pulled"))
    assert (Path("pulled") / MODEL_NAME).exists()
    pull(PullConfig(repo=REPO, output="pulled"))
    assert content_of(Path("pulled")) == hub.files(REPO)


def test_broken_connection_continues_in_the_middle_of_a_file(hub, bundle, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # of 10 MB
    push(PushConfig(bundle=bundle, repo=REPO))
    size = (bundle / MODEL_NAME).stat().st_size
    hub.faults = {"GET /cdn/": -(size // 3)}
    pull(PullConfig(repo=REPO, output="pulled"))
    assert content_of(Path("pulled")) == hub.files(REPO)
    assert sum("GET /cdn/" in request for request in hub.requests) > 2


def test_damaged_file_in_the_cache_is_downloaded_again(hub, bundle) -> None:
    push(PushConfig(bundle=bundle, repo=REPO))
    folder = fetch_bundle(REPO)
    for name in (MODEL_NAME, "manifest.json", "config.json"):
        path = (folder / name).resolve()
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert content_of(fetch_bundle(REPO)) == hub.files(REPO)


def test_damaged_file_on_the_hub_is_refused(hub, bundle) -> None:
    push(PushConfig(bundle=bundle, repo=REPO))
    repository = hub.repositories[REPO]
    files = repository.commits[repository.branches["main"]]
    files["vocab.json"] = files["vocab.json"].replace(b"a", b"b", 1)
    with pytest.raises(HubError, match=r"vocab.json of user/flickr8k-gru is damaged on the Hub"):
        pull(PullConfig(repo=REPO, output="pulled"))
    assert not Path("pulled").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", ".bashrc", ""])
def test_file_outside_the_folder_is_refused(hub, bundle, name: str) -> None:
    push(PushConfig(bundle=bundle, repo=REPO))
    manifest = Manifest.load(bundle)
    evil = replace(manifest, outputs=manifest.outputs | {name: 1}).to_bytes()
    repository = hub.repositories[REPO]
    repository.commits[repository.branches["main"]]["manifest.json"] = evil
    with pytest.raises(HubError, match="is not a showtell bundle"):
        pull(PullConfig(repo=REPO, output="pulled"))


def test_manifest_of_another_program_is_refused(hub, bundle) -> None:
    hub.repositories[REPO] = hub_server.Repository()
    hub.repositories[REPO].commit("main", {"manifest.json": b'{"name": "My page"}'}, "")
    with pytest.raises(HubError, match="is not a showtell bundle"):
        pull(PullConfig(repo=REPO))
    push(PushConfig(bundle=bundle, repo=REPO))
    assert content_of(fetch_bundle(REPO)) == hub.files(REPO)


ERRORS = {
    "no token": (
        ("push", "mine", REPO),
        "needs a token with write access. Log in with 'hf auth login', or set HF_TOKEN.",
    ),
    "wrong token": (("push", "mine", REPO), "does not accept your token (Invalid credentials"),
    "read token": (("push", "mine", REPO), "Create a token with write access at"),
    "stranger": (("push", "mine", "stranger/x"), "Your token may not do this with stranger/x"),
    "license": (
        ("push", "mine", REPO),
        '"license" must be one of [mit, other]. If that concerns the model card, export the',
    ),
    "name of model": (
        ("caption", "x.jpg", "--model", "hf:a/b/c"),
        "hf:a/b/c is not a name on the Hugging Face Hub. Give hf:user/name.",
    ),
    "no model": (("caption", "x.jpg", "--model", "hf:flickr8k"), "has no model flickr8k that you"),
    "missing": (("pull", "user/none"), "has no model user/none that you may read. Check the name."),
    "private": (("pull", REPO), "If the repository is private, log in with 'hf auth login'"),
    "gated": (("pull", REPO), "user/flickr8k-gru is gated. Ask for access at"),
    "revision": (("pull", REPO, "--revision", "v9"), "has no revision 'v9'. Give a branch"),
    "no bundle": (("pull", "user/other"), "user/other is not a showtell bundle."),
    "offline": (("pull", REPO), "HF_HUB_OFFLINE is set. Unset it to download."),
    "unreachable": (("pull", REPO), "cannot be reached, or the transfer broke ("),
    "unreachable push": (("push", "mine", REPO), "cannot be reached, or the transfer broke ("),
    "busy": (("pull", REPO), "answered 503 (the server has a bad day). Run the same command again"),
    "name": (("pull", "flickr8k-gru"), "must be a name on the Hugging Face Hub, such as user/"),
    "name of push": (("push", "mine", "a/b/c"), "USER/NAME must be a name on the Hugging Face Hub"),
    "extra": (("pull", REPO), "Run \"pip install 'showtell[hub]'\"."),
    "extra of push": (("push", "mine", REPO), "Run \"pip install 'showtell[hub]'\"."),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_with_a_fix(hub, bundle, monkeypatch, run_showtell, case: str) -> None:
    from huggingface_hub import constants

    command, expected = ERRORS[case]
    hub.repositories["user/other"] = hub_server.Repository()
    if case == "license":
        card = bundle / "README.md"
        card.write_text(card.read_text("utf-8").replace("license: other", "license: nonsense"))
        sizes = {"README.md": card.stat().st_size}
        manifest = Manifest.load(bundle)
        outputs = manifest.outputs | sizes
        replace(manifest, outputs=outputs, checksums=checksums_of(bundle, outputs)).write(bundle)
    if command[0] == "pull" and case != "missing":
        push(PushConfig(bundle=bundle, repo=REPO))
    tokens = {"no token": "", "wrong token": "hf_wrong", "private": "", "read token": "hf_read"}
    monkeypatch.setenv("HF_TOKEN", tokens.get(case, hub_server.WRITE_TOKEN))
    if case in ("private", "gated"):
        setattr(hub.repositories[REPO], case, True)
    if case.startswith("unreachable"):
        set_endpoint(monkeypatch, "http://127.0.0.1:9")
    if case.startswith("extra"):
        monkeypatch.setattr(hub_client, "find_spec", lambda _: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", case == "offline")
    hub.faults = {"/resolve/": 503} if case == "busy" else {}
    status, output, errors = run_showtell(*command)
    assert (status, output) == (1, "")
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert expected in lines[0] and len(lines) == 1 and "Traceback" not in errors


def test_without_a_connection_the_cache_is_used(hub, bundle, monkeypatch) -> None:
    from huggingface_hub import constants

    push(PushConfig(bundle=bundle, repo=REPO))
    folder = fetch_bundle(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_bundle(REPO) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert fetch_bundle(REPO) == folder


def test_run_records_the_commit_that_it_started_from(hub, bundle, tmp_path) -> None:
    commit = push(PushConfig(bundle=bundle, repo=REPO))["commit"]
    folder = find_model(tmp_path, f"hf:{REPO}")
    address = name_of_model(tmp_path, folder)
    assert address == f"hf:{REPO}@{commit}"
    hub.requests.clear()
    assert find_model(tmp_path, address) == folder
    assert hub.requests == []  # the commit is in the cache
    assert name_of_model(tmp_path, bundle) == str(bundle)


def test_only_the_library_s_own_folders_are_written(hub, bundle, tmp_path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name[:3] != "HF_"} | {
        "HOME": str(home),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub_server.WRITE_TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    run = [sys.executable, "-m", "showtell"]
    for arguments in (["push", "mine", REPO, "--json"], ["pull", REPO, "pulled", "--json"]):
        done = subprocess.run(
            [*run, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\n") <= 1
        assert MODEL_NAME in done.stdout
    assert json.loads(done.stdout)["stage"] == "export"
    assert content_of(Path("pulled")) == hub.files(REPO)
    assert list(home.iterdir()) == []
