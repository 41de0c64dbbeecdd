"""Shared fixtures: the command line run in this process, and a tiny prepared dataset."""

import os

# Several test processes with several threads each would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from showtell.model.decoders.base import Decoder

# A job in the background of a script ignores Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MAX_SECONDS, MAX_BYTES = 2.0, 10**9  # for one hostile file
SHARED = Path(__file__).parents[2] / "shared"


Limits = Callable[[], AbstractContextManager[None]]


def pytest_collection_finish() -> None:
    """Let the garbage collector skip the modules and tests, which live until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """Do not wait until files are on the disk, thousands of times: no test cuts the power.

    tests/chaos, in other processes, checks that all is synced, and in which order.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # an error for what is not open
        yield


@pytest.fixture(scope="session", autouse=True)
def command_line_is_built_once() -> Iterator[None]:
    """Keep the commands that typer makes of functions: tests use the command line often."""
    from functools import cache

    import typer.main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session", autouse=True)
def curves_are_not_drawn() -> Iterator[None]:
    """Write an empty `curves.png` after each training: to draw it takes as long as the training.

    tests/model/runs/test_curves.py draws.
    """
    from showtell.model.runs import curves
    from showtell.pipeline.stage.files import write_bytes

    def write_nothing(run_dir: Path, monitor: str, best_epoch: int) -> Path:
        curves.read_curves(run_dir / curves.LOG_NAME)[f"val_{monitor}"]
        write_bytes(run_dir / curves.CURVES_NAME)
        return run_dir / curves.CURVES_NAME

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw_curves", write_nothing)
        yield


@pytest.fixture(scope="session")
def within_limits() -> Limits:
    """Check that a `with` block takes at most `MAX_SECONDS` and `MAX_BYTES` of memory.

    Seconds are those of the processor, because other tests run at the same time. Garbage is not
    collected meanwhile: after thousands of examples that takes long, and has nothing to do with the
    block.
    """
    from showtell.bench.measurement import forget_peak_memory, peak_memory

    @contextmanager
    def check() -> Iterator[None]:
        forget_peak_memory()
        gc.disable()
        started, before = time.process_time(), peak_memory()
        try:
            yield
            seconds = time.process_time() - started
        finally:
            gc.enable()
        assert seconds < MAX_SECONDS
        assert peak_memory() - before < MAX_BYTES

    return check


@pytest.fixture
def run_showtell(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `showtell ARGS…` like its console script; returns exit status, stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        from showtell.cli import run as run_command_line

        monkeypatch.setattr(sys, "argv", ["showtell", *map(str, args)])
        capsys.readouterr()
        status = run_command_line()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def showtell(run_showtell) -> Callable[..., tuple[int, str]]:
    """Run `showtell ARGS…`; returns the exit status and all output."""

    def run(*args: object) -> tuple[int, str]:
        status, output, errors = run_showtell(*args)
        return status, output + errors

    return run


@pytest.fixture
def showtell_json(run_showtell) -> Callable[..., tuple[int, Any]]:
    """Run `showtell ARGS… --json`; returns the exit status and the document, None if empty."""

    def run(*args: object) -> tuple[int, Any]:
        status, output, _ = run_showtell(*args, "--json")
        return status, json.loads(output) if output else None

    return run


@pytest.fixture(scope="session")
def build_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Fill a folder with a name, once for all test processes; return its path. Do not write to it.

    The first process calls the function with the folder, and the others wait.
    """
    import fcntl

    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent

    def build(name: str, fill: Callable[[Path], object]) -> Path:
        folder, finished = common / f"shared-{name}", common / f"shared-{name}.finished"
        with (common / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                finished.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def random_weights(build_once) -> Path:
    """A file of random ResNet-18 weights; even their features tell images apart."""

    def save(folder: Path) -> None:
        import torch
        from torchvision.models import resnet18

        torch.manual_seed(0)
        torch.save(resnet18().state_dict(), folder / "random.pth")

    return build_once("weights", save) / "random.pth"


@pytest.fixture(scope="session")
def prepared_scenes(build_once, random_weights) -> Path:
    """A data folder with a few drawn scenes, prepared, with features. Copy it before writing."""

    def fill(data: Path) -> None:
        from showtell.features.config import FeaturesConfig
        from showtell.features.extract import extract
        from showtell.pipeline.config import PrepareConfig
        from showtell.pipeline.datasets.scenes import draw_scenes
        from showtell.pipeline.prepare import prepare

        draw_scenes(data / "scenes" / "raw", num_train=40, num_val=10, num_test=10)
        prepare(PrepareConfig(data=data, dataset="scenes", min_count=1))
        extract(
            FeaturesConfig(
                data=data,
                dataset="scenes",
                encoder="resnet18",
                weights=str(random_weights),
                image_size=64,
                shard_size=25,
            )
        )

    return build_once("scenes", fill)


@pytest.fixture(scope="session")
def prepared_grids(prepared_scenes, random_weights, build_once) -> Path:
    """The same with two views of each image and 2×2 grids. Copy it before writing."""

    def fill(data: Path) -> None:
        from showtell.features.config import FeaturesConfig
        from showtell.features.extract import extract

        shutil.copytree(prepared_scenes, data, dirs_exist_ok=True)
        options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
        extract(FeaturesConfig(data=data, dataset="scenes", views=2, grid=True, **options))

    return build_once("grids", fill)


@pytest.fixture
def grid_scenes(prepared_grids, tmp_path) -> Path:
    """A copy of `prepared_grids` that a test may write to."""
    return Path(shutil.copytree(prepared_grids, tmp_path / "grids"))


@pytest.fixture
def scenes(prepared_scenes, tmp_path) -> Path:
    """A copy of `prepared_scenes` that a test may write to."""
    return Path(shutil.copytree(prepared_scenes, tmp_path / "data"))


@pytest.fixture
def scorers(monkeypatch) -> list[Any]:
    """List each time that `eval` scores captions; the entries have the references."""
    from showtell.model import evaluate

    made: list[Any] = []
    score_captions = evaluate.score_captions

    def record(references: Mapping[int, Sequence[str]], *arguments: Any) -> Any:
        made.append(SimpleNamespace(references=references))
        return score_captions(references, *arguments)

    monkeypatch.setattr(evaluate, "score_captions", record)
    return made


@pytest.fixture(scope="session")
def amplify_image() -> Callable[[Path], None]:
    """Scale up how much run `r` depends on the image.

    With a random encoder all images would otherwise get the same caption.
    """
    from dataclasses import replace

    from showtell.model.runs.tensors import read_tensors, write_tensors
    from showtell.pipeline.stage.checksums import checksums_of
    from showtell.pipeline.stage.manifest import Manifest

    def amplify(data: Path, times: float = 50.0) -> None:
        run_dir = data / "runs/r"
        tensors, metadata = read_tensors(run_dir / "best.safetensors")
        tensors["image_proj.weight"] *= times  # it multiplies differences from the mean image
        write_tensors(run_dir / "best.safetensors", tensors, metadata)
        if (manifest := Manifest.read(run_dir)) is not None:
            checksums = checksums_of(run_dir, manifest.outputs)
            replace(manifest, checksums=checksums).write(run_dir)

    return amplify


@pytest.fixture(scope="session")
def random_decoder() -> Callable[..., "Decoder"]:
    """Make a small decoder with clearly different word probabilities."""
    import torch

    from showtell.model.decoders.base import Decoder
    from showtell.model.decoders.config import DecoderConfig
    from showtell.model.decoders.registry import create_decoder

    def make(seed: int = 0, **options: object) -> Decoder:
        torch.manual_seed(seed)
        sizes = {"cell": "gru", "feature_dim": 6, "vocab_size": 12} | options
        decoder = create_decoder(DecoderConfig(**({"embed_size": 8, "hidden_size": 8} | sizes)))
        torch.nn.init.normal_(decoder.embedding.weight, std=1.0)
        torch.nn.init.normal_(decoder.output_bias)
        return decoder.double().eval()

    return make


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    """Real photographs beside the repository; the test is skipped if they are missing."""
    path = SHARED / "flickr8k"
    if not path.exists():
        pytest.skip("no ../shared/flickr8k")
    return path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on loopback; s3fs and boto3 find it in the environment."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield settings["AWS_ENDPOINT_URL"]
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value
    server.stop()


@pytest.fixture
def upload(s3_server, request) -> Callable[[Path], str]:
    """Copy a folder to a new bucket, and return the bucket's URL."""
    import uuid

    import s3fs

    def copy(folder: Path) -> str:
        bucket = f"test-{uuid.uuid4().hex}"
        files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        files.mkdir(bucket)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            files.pipe_file(f"{bucket}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://{bucket}"

    return copy


class HTTPFolder:
    """A folder served by HTTP on loopback.

    Attributes:
        url: of the folder.
        requests: (method, path, range header or None) of each request.
        statuses: path → HTTP statuses of its next requests, before the file itself.
        has_ranges: whether the server answers requests for a range of bytes.
    """

    def __init__(self, folder: Path) -> None:
        from functools import partial
        from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

        self.requests: list[tuple[str, str, str | None]] = []
        self.statuses: dict[str, list[int]] = {}
        self.has_ranges = True
        served = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def send_head(self) -> Any:
                wanted = self.headers.get("Range")
                served.requests.append((self.command, self.path, wanted))
                if statuses := served.statuses.get(self.path):
                    return self.send_error(statuses.pop(0))
                path = Path(self.translate_path(self.path))
                if wanted is None or not served.has_ranges or not path.is_file():
                    return super().send_head()
                size = path.stat().st_size
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                end = min(int(last or size - 1), size - 1) + 1
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
                self.send_header("Content-Length", str(end - int(first)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(path.read_bytes()[int(first) : end])
                return None

        handler = partial(Handler, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def serve_folder() -> Iterator[Callable[[Path], HTTPFolder]]:
    """Serve folders by HTTP until the end of the test."""
    import threading

    pytest.importorskip("aiohttp")
    servers = []

    def serve(folder: Path) -> HTTPFolder:
        served = HTTPFolder(folder)
        threading.Thread(target=served.server.serve_forever, daemon=True).start()
        servers.append(served)
        return served

    yield serve
    for served in servers:
        served.server.shutdown()
        served.server.server_close()
