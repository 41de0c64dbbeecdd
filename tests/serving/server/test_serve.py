"""The command as people run it, with a trained model, and how it stops."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from showtell.serving.server.serve import describe

from .conftest import draw


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `showtell serve` on a free port; yields its URL and the process."""
    command = [sys.executable, "-m", "showtell", "serve", "--port", "0", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, line + process.stderr.read()
            yield found[0], process
        finally:
            process.kill()


def stop(process: "subprocess.Popen[str]", number: int) -> list[dict[str, Any]]:
    """Stop a server that has nothing to do, and return what it logged."""
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, output + errors
    return [json.loads(line) for line in errors.splitlines()]


def test_command_captions_like_the_captioner_until_sigterm(data, captioner, image_paths) -> None:
    paths = image_paths[:5]
    options = ("r", "--data", data, "--device", "cpu", "--precision", "fp32")
    with serving(*options, "--token", "a-secret") as (url, process):
        files = [("images", (path.name, path.read_bytes())) for path in paths]
        headers = {"Authorization": "Bearer a-secret"}
        response = httpx.post(f"{url}caption", files=files, data={"beam": 2}, headers=headers)
        captions = [result["caption"] for result in response.json()["results"]]
        assert captions == captioner.caption(paths, beam=2)
        assert httpx.get(f"{url}model", headers=headers).json()["name"] == "r"
        assert httpx.get(f"{url}model").status_code == 401
        logged = stop(process, signal.SIGTERM)
    assert [record["images"] for record in logged if "images" in record] == [5]
    text = json.dumps(logged)
    assert "Traceback" not in text and paths[0].name not in text and "a-secret" not in text


def test_options_of_the_command_are_the_defaults_of_requests(data) -> None:
    decoding = ("--beam", 4, "--n-best", 2, "--consensus", 20)
    with serving("--data", data, *decoding, "--device", "cpu", "--quiet") as (url, process):
        options = httpx.get(f"{url}model").json()["options"]
        assert options["beam"]["default"] == 4 and options["consensus"]["default"] == 20
        (result,) = httpx.post(f"{url}caption", files={"images": draw((9, 9, 9))}).json()["results"]
        assert len(result["captions"]) == 2
        assert stop(process, signal.SIGINT) == []


def test_description_of_a_model(captioner) -> None:
    expected = {"name": "r", "encoder": "resnet18", "has_attention": False, "crop": 64 / 73}
    assert describe(captioner) == expected


def test_missing_library_is_named_with_its_extra(data, showtell, monkeypatch) -> None:
    monkeypatch.setattr("showtell.serving.server.serve.LIBRARIES", ("fastapi", "no_such_library"))
    status, output = showtell("serve", "--data", data)
    assert status == 1 and "no_such_library" in output
    assert "pip install 'showtell[serve]'" in output


def test_port_in_use_is_reported_before_the_model_is_loaded(showtell, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, output = showtell("serve", "--data", tmp_path, "--port", port)
    assert status == 1 and f"--port {port}" in output and f"add --port {port + 1}." in output


def test_unknown_address_is_reported(showtell, tmp_path) -> None:
    options = ("--host", "no.such.host.invalid", "--allow-anyone")
    status, output = showtell("serve", "--data", tmp_path, *options)
    assert status == 1 and "--host no.such.host.invalid" in output and "Traceback" not in output


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_public_address_needs_a_token(showtell, tmp_path: Path, host: str) -> None:
    status, output = showtell("serve", "--data", tmp_path, "--host", host)
    assert status == 1 and "SHOWTELL_TOKEN" in output and "--allow-anyone" in output


@pytest.mark.parametrize("token", ["short", "with a space", "näturlich nicht"])
def test_token_that_does_not_fit_into_a_header_is_refused(showtell, tmp_path, token) -> None:
    status, output = showtell("serve", "--data", tmp_path, "--token", token)
    assert status == 1 and "--token must be at least 8" in output and token not in output


def test_more_images_than_places_are_refused(showtell, tmp_path) -> None:
    status, output = showtell("serve", "--data", tmp_path, "--max-queue", 8)
    assert status == 1 and "--max-images 64 is above --max-queue 8" in output
