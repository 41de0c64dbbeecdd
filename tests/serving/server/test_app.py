import base64
import json
import random
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from showtell.features.reading.views import View
from showtell.serving.server.schema import ErrorResponseJson, ResultsJson

from .conftest import Running, caption_of, draw

RED, BLUE = (250, 10, 20), (0, 30, 240)
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def wait_until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def form_of(*images: bytes) -> bytes:
    """A multipart body with boundary `b`."""
    part = b'--b\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n%b\r\n'
    return b"".join(part % image for image in images) + b"--b--\r\n"


def send_raw(running: Running, body: bytes, length: int | None = None) -> socket.socket:
    """Send the start of a request, and return its connection."""
    connection = socket.create_connection(running.address)
    head = f"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM['Content-Type']}\r\n"
    connection.sendall(f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body)
    return connection


def error_of(response, status: int) -> dict[str, str]:
    """The error of a response, after checks of its form."""
    assert response.status_code == status, response.text
    error = ErrorResponseJson.model_validate(response.json()).error
    assert error.code and error.message.endswith((".", "URL"))
    return error.model_dump()


def test_form_with_several_images_is_answered_in_order(running) -> None:
    response = running.post(draw(RED), draw(BLUE), draw(RED, kind="JPEG", size=(900, 30)))
    results = response.json()["results"]
    assert response.status_code == 200
    assert [result["caption"] for result in results[:2]] == [caption_of(RED), caption_of(BLUE)]
    assert results[0] == {"caption": caption_of(RED), "log_prob": -3.5}


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_json_with_base64_is_answered_like_a_form(running, prefix: str) -> None:
    images = [prefix + base64.b64encode(draw(color)).decode() for color in (BLUE, RED)]
    response = running.client.post("/caption", json={"images": images, "n_best": 2, "beam": 2})
    form = running.post(draw(BLUE), draw(RED), n_best="2", beam="2")
    assert response.status_code == 200 and response.json() == form.json()
    assert [len(result["captions"]) for result in response.json()["results"]] == [2, 2]


def test_details_give_probability_and_attention_of_each_word(running) -> None:
    (result,) = running.post(draw(RED), details="true").json()["results"]
    ((best,), words) = result["captions"], caption_of(RED).split()
    assert [token["text"] for token in best["tokens"]] == [*words, ""]
    assert sum(token["log_prob"] for token in best["tokens"]) == best["log_prob"]
    assert best["tokens"][0]["attention"] == [0.25] * 4


def test_unreadable_images_have_errors_in_their_places(running) -> None:
    truncated = draw(RED, (300, 300))[:200]
    response = running.post(b"text", draw(BLUE), truncated, b"")
    results = response.json()["results"]
    assert response.status_code == 200 and "error" not in response.json()
    codes = [result.get("error", {}).get("code") for result in results]
    assert codes == ["not_an_image", None, "unreadable_image", "empty_image"]
    assert results[1]["caption"] == caption_of(BLUE)
    ResultsJson.model_validate(response.json())


def test_status_is_that_of_the_first_error_if_no_image_is_readable(running) -> None:
    error = error_of(running.post(b"text", b""), 415)
    assert error["code"] == "not_an_image"
    assert error_of(running.post(b""), 422)["code"] == "empty_image"


def test_format_that_runs_other_programs_is_refused(running) -> None:
    content = BytesIO()
    Image.new("RGB", (8, 8)).save(content, "EPS")
    assert error_of(running.post(content.getvalue()), 415)["code"] == "format_not_supported"


def test_image_with_too_many_pixels_is_refused(start) -> None:
    running = start(max_pixels=10_000)
    error = error_of(running.post(draw(RED, (200, 100))), 413)
    assert error["code"] == "too_many_pixels" and "20,000 pixels" in error["message"]
    assert running.post(draw(RED, (100, 100))).status_code == 200
    # A JPEG is decoded at a fraction of its size, and counts as that.
    assert running.post(draw(RED, (800, 600), "JPEG")).status_code == 200


def test_image_of_50_megapixels_is_captioned(running) -> None:
    (result,) = running.post(draw(BLUE, (10_000, 5_000), "JPEG")).json()["results"]
    assert result["caption"].split()[-1] in ("238", "239", "240")  # JPEG is lossy


@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_above_the_limit_is_refused_while_it_is_read(start, is_chunked: bool) -> None:
    running = start(max_body=1)
    body = form_of(bytes(3_000_000))
    chunks = (body[i : i + 65536] for i in range(0, len(body), 65536))
    response = running.client.post("/caption", content=chunks if is_chunked else body, headers=FORM)
    assert error_of(response, 413)["code"] == "body_too_large"
    assert running.post(draw(RED)).status_code == 200


def test_bodies_of_all_requests_together_are_limited(start) -> None:
    running = start(max_body=1)
    half = form_of(bytes(900_000))
    connections = [send_raw(running, half, 999_999) for _ in range(8)]
    wait_until(lambda: running.service.places.taken == 8)
    time.sleep(0.2)
    assert error_of(running.post(bytes(900_000)), 429)["code"] == "queue_full"
    for connection in connections:
        connection.close()
    wait_until(lambda: running.service.places.taken == 0)
    assert running.post(draw(RED)).status_code == 200


@pytest.mark.parametrize("as_json", [False, True])
def test_number_of_images_is_limited(start, as_json: bool) -> None:
    running = start(max_images=2)
    if as_json:
        image = base64.b64encode(draw(RED)).decode()
        response = running.client.post("/caption", json={"images": [image] * 3})
    else:
        response = running.post(*[draw(RED)] * 3)
    assert "at most 2 images" in error_of(response, 422)["message"]


@pytest.mark.parametrize(
    "headers, body, status, code",
    [
        ({}, b"", 415, "content_type_not_supported"),
        ({"Content-Type": "image/png"}, b"x", 415, "content_type_not_supported"),
        (FORM, b"", 422, "no_images"),
        (FORM, b"--b--\r\n", 422, "no_images"),
        (FORM, b"no form at all", 400, "invalid_form"),
        ({"Content-Type": "multipart/form-data"}, b"x", 400, "invalid_form"),
        (FORM, form_of(b"").replace(b'"images"', b'"photo"'), 422, "invalid_form"),
        (FORM, form_of(b"").replace(b'; filename="x"', b""), 422, "invalid_form"),
        ({"Content-Type": "application/json"}, b"{", 400, "invalid_json"),
        ({"Content-Type": "application/json"}, b"[" * 100_000, 400, "invalid_json"),
        ({"Content-Type": "application/json"}, b"\xff", 400, "invalid_json"),
        ({"Content-Type": "application/json"}, b"[]", 422, "invalid_json"),
        ({"Content-Type": "application/json"}, b'{"images": "x"}', 422, "invalid_json"),
        ({"Content-Type": "application/json"}, b'{"images": ["?"]}', 422, "invalid_base64"),
        ({"Content-Type": "application/json"}, b'{"images": ["\xc3\xa9"]}', 422, "invalid_base64"),
        ({"Content-Type": "application/json"}, b'{"images": []}', 422, "no_images"),
    ],
)
def test_malformed_request_is_refused(running, headers, body, status: int, code: str) -> None:
    response = running.client.post("/caption", content=body, headers=headers)
    assert error_of(response, status)["code"] == code


def test_full_queue_refuses_requests_until_it_has_places(start) -> None:
    running = start(max_queue=4, max_images=4)
    running.captioner.is_free.clear()
    with ThreadPoolExecutor() as pool:
        accepted = pool.submit(running.post, *[draw(RED)] * 3)
        wait_until(lambda: running.service.places.taken == 3)
        response = running.post(draw(RED), draw(BLUE))
        assert error_of(response, 429)["code"] == "queue_full"
        assert response.headers["Retry-After"] == "1"
        running.captioner.is_free.set()
        assert accepted.result().status_code == 200
    assert running.post(draw(RED), draw(BLUE)).status_code == 200


def test_request_that_takes_too_long_is_given_up(start) -> None:
    running = start(timeout=1.0, max_batch=1)
    running.captioner.is_free.clear()
    assert error_of(running.post(draw(RED), draw(BLUE)), 504)["code"] == "timeout"
    running.captioner.is_free.set()
    assert running.post(draw(RED)).status_code == 200
    assert running.captioner.batches == [1, 1]  # the second image was not captioned


def test_upload_that_takes_too_long_is_given_up(start) -> None:
    running = start(timeout=0.3)
    with send_raw(running, b"--b", 1000) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: running.service.places.taken == 0)


def test_upload_that_cannot_be_stored_is_refused(start, monkeypatch, tmp_path) -> None:
    running = start()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert error_of(running.post(draw(RED), bytes(2_000_000)), 503)["code"] == "out_of_space"
    assert running.post(draw(RED)).status_code == 200


def test_memory_error_is_no_fault_of_the_image(start, monkeypatch) -> None:
    running = start()
    running.captioner.error = MemoryError()
    assert error_of(running.post(draw(RED)), 503)["code"] == "out_of_memory"
    running.captioner.error = None
    with monkeypatch.context() as patched:
        patched.setattr("PIL.Image.open", Mock(side_effect=MemoryError))
        assert error_of(running.post(draw(RED)), 503)["code"] == "out_of_memory"
    assert running.post(draw(RED)).status_code == 200


def test_images_of_a_client_that_left_are_not_captioned(start) -> None:
    running = start(max_batch=2)
    running.captioner.is_free.clear()
    connection = send_raw(running, form_of(*[draw(RED)] * 10))
    wait_until(lambda: running.captioner.batches)
    wait_until(lambda: len(running.service.queue) == 8)
    connection.close()
    wait_until(lambda: running.service.places.taken == 0)
    assert len(running.service.queue) == 0
    running.captioner.is_free.set()
    assert running.post(draw(BLUE)).json()["results"][0]["caption"] == caption_of(BLUE)
    assert running.captioner.batches == [2, 1]
    assert 'status="499"} 1.0' in running.client.get("/metrics").text


def test_client_that_leaves_during_its_upload_frees_its_place(start) -> None:
    running = start()
    connection = send_raw(running, form_of(draw(RED))[:50], 5000)
    wait_until(lambda: running.service.places.taken == 1)
    connection.close()
    wait_until(lambda: running.service.places.taken == 0)


def test_images_of_several_requests_share_a_batch(start) -> None:
    running = start(max_batch=8)
    running.captioner.is_free.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(running.post, draw(RED))
        wait_until(lambda: running.captioner.batches)
        others = [pool.submit(running.post, draw(BLUE), draw(RED)) for _ in range(5)]
        wait_until(lambda: len(running.service.queue) == 10)
        running.captioner.is_free.set()
        assert all(each.result().status_code == 200 for each in [first, *others])
    assert running.captioner.batches == [1, 8, 2]


def test_images_with_other_options_do_not_share_a_batch(start) -> None:
    running = start()
    running.captioner.is_free.clear()
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(running.post, draw(RED))]
        wait_until(lambda: running.captioner.batches)
        several = ({}, {"beam": 5}, {"sample": "true"}, {"sample": "true"}, {})
        asked += [pool.submit(running.post, draw(BLUE), **options) for options in several]
        wait_until(lambda: len(running.service.queue) == 5)
        running.captioner.is_free.set()
    captions = [each.result().json()["results"][0]["caption"] for each in asked]
    assert captions == [caption_of(RED), *[caption_of(BLUE)] * 5]
    # Random numbers are drawn for a batch, so sampled captions do not share one.
    assert sorted(running.captioner.batches) == [1, 1, 1, 1, 2]


def test_answers_are_never_mixed_up(start) -> None:
    running = start(max_batch=7, max_queue=10_000)
    chance = random.Random(0)

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        colors = [
            tuple(chance.randrange(256) for _ in range(3)) for _ in range(chance.choice([1, 1, 5]))
        ]
        images = [draw(color, (chance.randrange(1, 40), 9)) for color in colors]
        if seed % 5 == 0:  # a client that leaves
            with send_raw(running, form_of(*images)):
                time.sleep(chance.random() / 50)
            return
        if seed % 7 == 0:
            images[0] = images[0][: chance.randrange(len(images[0]))]  # garbage
        n_best = chance.choice([1, 1, 2])
        results = running.post(*images, n_best=n_best).json()["results"]
        for index, (color, result) in enumerate(zip(colors, results, strict=True)):
            may_fail = index == 0 and seed % 7 == 0
            assert result.get("caption") == caption_of(color) or (may_fail and "error" in result)
            assert ("captions" in result) == (n_best > 1 and "error" not in result)

    seeds = chance.sample(range(100_000), 250)
    with ThreadPoolExecutor(12) as pool:
        for done in pool.map(ask, seeds):
            assert done is None
    wait_until(lambda: running.service.places.taken == 0)
    assert len(running.service.queue) == 0 and max(running.captioner.batches) == 7


def test_stop_finishes_accepted_requests(start) -> None:
    running = start()
    running.captioner.is_free.clear()
    with ThreadPoolExecutor() as pool:
        accepted = pool.submit(running.post, draw(RED))
        wait_until(lambda: running.captioner.batches)
        running.server.should_exit = True
        time.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(running.address).close()
        running.captioner.is_free.set()
        assert accepted.result().json()["results"][0]["caption"] == caption_of(RED)


def test_stop_answers_what_is_unfinished_in_time(start) -> None:
    running = start(stop_timeout=0.3)
    running.captioner.is_free.clear()
    with ThreadPoolExecutor() as pool:
        accepted = pool.submit(running.post, draw(RED))
        wait_until(lambda: running.captioner.batches)
        uploading = send_raw(running, b"--b", 100)
        running.server.should_exit = True
        assert error_of(accepted.result(), 503)["code"] == "stopping"
        assert uploading.recv(100).startswith(b"HTTP/1.1 503 ")
        uploading.close()


def test_error_of_the_model_is_answered_and_the_next_request_succeeds(start) -> None:
    running = start()
    running.captioner.error = ValueError("a bug")
    assert error_of(running.post(draw(RED)), 500)["code"] == "internal_error"
    running.captioner.error = None
    assert running.post(draw(RED)).status_code == 200


def test_bug_in_decoding_is_answered_in_the_place_of_its_image(start, monkeypatch) -> None:
    running = start()
    transform = running.service.decoder.transform

    def fail_on_red(image: Image.Image, view: View) -> NDArray[np.uint8]:
        if image.getpixel((0, 0)) == RED:
            raise ZeroDivisionError
        return transform(image, view)

    fail_on_red.resized_size = transform.resized_size
    monkeypatch.setattr(running.service.decoder, "transform", fail_on_red)
    bad, good = running.post(draw(RED), draw(BLUE)).json()["results"]
    assert bad["error"]["code"] == "internal_error" and good["caption"] == caption_of(BLUE)


def test_health_and_metrics(running) -> None:
    running.post(draw(RED), b"text")
    assert running.client.get("/healthz").json() == {"status": "ok"}
    text = running.client.get("/metrics").text
    assert re.search(r'^showtell_images_total\{outcome="captioned"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^showtell_images_total\{outcome="not_an_image"\} [1-9]', text, re.MULTILINE)
    for name in ("requests_total", "batch_images_bucket", "places_taken", "decode_seconds_sum"):
        assert f"showtell_{name}" in text


def test_unknown_path_and_method_are_answered_in_json(running) -> None:
    assert error_of(running.client.get("/nothing"), 404)["code"] == "not_found"
    response = running.client.get("/caption")
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["Allow"] == "POST"


def test_openapi_describes_the_options_and_the_answer(running) -> None:
    document = running.client.get("/openapi.json").json()
    operation = document["paths"]["/caption"]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    beam = content["application/json"]["schema"]["properties"]["beam"]
    assert beam["default"] == 3 and beam["minimum"] == 1
    assert {"200", "413", "415", "422", "429", "503", "504"} <= set(operation["responses"])
    assert "docs" not in json.dumps(list(document["paths"]))


def test_page_loads_nothing_from_elsewhere(running) -> None:
    response = running.client.get("/")
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    for path in ("/", "/page.js", "/page.css"):
        assert not re.search(r"https?:|//[a-z]+\.", running.client.get(path).text)


def test_threads_end_with_the_server(start) -> None:
    before = threading.active_count()
    running = start()
    running.post(draw(RED))
    assert threading.active_count() > before
    running.server.should_exit = True
    wait_until(lambda: threading.active_count() <= before)
