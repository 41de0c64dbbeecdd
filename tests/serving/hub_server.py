"""A stand-in for the Hugging Face Hub on loopback: the requests that huggingface_hub makes.

It stores repositories in memory. Files of safetensors go through the LFS protocol, as on the Hub.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

WRITE_TOKEN, READ_TOKEN = "hf_write", "hf_read"

Answer = tuple[int, dict[str, str], bytes]


def error(status: int, message: str, code: str = "") -> Answer:
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    return status, headers, json.dumps({"error": message}).encode()


def reply(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


@dataclass
class Repository:
    """Attributes: branches: name → commit; commits: id → files; messages of the commits."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs"}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        oid = hashlib.sha1(f"{len(self.messages)}{branch}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def find(self, revision: str) -> str | None:
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None


class Hub:
    """The server's state.

    Attributes:
        repositories: user/name → repository.
        requests: "METHOD path" of every request.
        faults: part of "METHOD path" → status that such requests get, or the number of bytes
            after which the connection breaks, as a negative number.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: dict[str, int] = {}
        self.agents: set[str] = set()
        self.url = self.cdn_url = ""

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo]
        files = repository.commits[repository.find(revision) or ""]
        return {name: content for name, content in files.items() if name != ".gitattributes"}

    def answer(self, method: str, path: str, token: str, body: bytes) -> Answer:
        if token not in ("", WRITE_TOKEN, READ_TOKEN):
            return error(401, "Invalid credentials in Authorization header")
        if method == "PUT" and (found := re.fullmatch(r"/lfs/(\w+)", path)):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.objects[found[1]] = body
            return reply({})
        if path == "/lfs/verify":
            value = json.loads(body)
            return reply({}) if len(self.objects[value["oid"]]) == value["size"] else error(400, "")
        if found := re.fullmatch(r"/cdn/(\w+)", path):
            assert not token  # it belongs to another host
            return 200, {"Accept-Ranges": "bytes"}, self.objects[found[1]]
        if path == "/api/validate-yaml":
            bad = "license: nonsense" in json.loads(body)["content"]
            errors = [{"message": '"license" must be one of [mit, other]'}] if bad else []
            return reply({"errors": errors, "warnings": []}, 400 if bad else 200)
        if method == "POST" and token != WRITE_TOKEN:
            return (
                error(403, "Forbidden: you do not have write access") if token else error(401, "")
            )
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/([^/]+)", path):
            repo, action, revision = found[1], found[2], unquote(found[3])
            if (repository := self.repositories.get(repo)) is None:
                return error(404, "Repository not found", "RepoNotFound")
            return getattr(self, action)(repo, repository, revision, body)
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(found[1], unquote(found[2]), found[3], token)
        return error(404, f"no such endpoint: {method} {path}")

    def create(self, value: dict[str, Any]) -> Answer:
        repo = f"{value['organization']}/{value['name']}"
        if value["organization"] == "stranger":
            return error(403, "You don't have the rights to create a model under this namespace")
        address = {"url": f"{self.url}/{repo}", "name": repo}
        if repo in self.repositories:
            return reply({"error": "You already created this model repo", **address}, 409)
        self.repositories[repo] = Repository(private=value.get("visibility") == "private")
        return reply(address)

    def branch(self, repo: str, repository: Repository, name: str, body: bytes) -> Answer:
        if name in repository.branches:
            return error(409, "Reference already exists")
        repository.branches[name] = repository.branches["main"]
        return reply({}, 201)

    def preupload(self, repo: str, repository: Repository, revision: str, body: bytes) -> Answer:
        if repository.find(revision) is None:
            return error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return reply({"files": files})

    def batch(self, value: dict[str, Any]) -> Answer:
        assert value["operation"] == "upload" and "basic" in value["transfers"]
        objects = []
        for item in value["objects"]:
            known = {} if item["oid"] in self.objects else {"actions": self.actions(item["oid"])}
            objects.append({**item, **known})
        return reply({"transfer": "basic", "objects": objects})

    def actions(self, oid: str) -> dict[str, Any]:
        return {
            "upload": {"href": f"{self.url}/lfs/{oid}"},
            "verify": {"href": f"{self.url}/lfs/verify"},
        }

    def commit(self, repo: str, repository: Repository, revision: str, body: bytes) -> Answer:
        header, *changes = [json.loads(line) for line in body.splitlines()]
        files = dict(repository.commits[repository.branches[revision]])
        for change in changes:
            value = change["value"]
            if change["key"] == "deletedFile":
                del files[value["path"]]
            elif change["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        oid = repository.commit(revision, files, header["value"]["summary"])
        url = f"{self.url}/{repo}/commit/{oid}"
        return reply({"commitUrl": url, "commitOid": oid, "success": True})

    def resolve(self, repo: str, revision: str, name: str, token: str) -> Answer:
        repository = self.repositories.get(repo)
        if repository is None or (repository.private and not token):
            return error(404 if token else 401, "Repository not found", "RepoNotFound")
        if repository.gated:
            return error(403, "Access to this model is restricted", "GatedRepo")
        if (oid := repository.find(revision)) is None:
            return error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if (content := repository.commits[oid].get(name)) is None:
            return error(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": oid}
        if not name.endswith(".safetensors"):
            return 200, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content
        sha256 = hashlib.sha256(content).hexdigest()
        self.objects.setdefault(sha256, content)
        headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        return 302, headers | {"Location": f"{self.cdn_url}/cdn/{sha256}"}, b""


class Handler(BaseHTTPRequestHandler):
    """Answers from the state of a `Hub`, with its faults."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do(self) -> None:
        body = self.read_body()
        path = urlparse(self.path).path
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        self.hub.agents.add(self.headers.get("User-Agent", ""))
        faults = [value for part, value in self.hub.faults.items() if part in request]
        if faults and faults[0] > 0:
            self.send(*error(faults[0], "the server has a bad day"))
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        method = "GET" if self.command == "HEAD" else self.command
        status, headers, content = self.hub.answer(method, path, token, body)
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            status, content = 206, content[start:]
        self.send(status, headers, content, -faults[0] if faults else None)

    do_GET = do_HEAD = do_POST = do_PUT = do  # noqa: N815

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(
        self, status: int, headers: dict[str, str], content: bytes, stop: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:stop])
        self.close_connection = self.close_connection or stop is not None

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    """Run the stand-in on a free port of loopback during the `with` block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.cdn_url = f"http://localhost:{server.server_port}"  # another host, as on the Hub
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
