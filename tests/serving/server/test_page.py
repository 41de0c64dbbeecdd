"""The page, in a real browser, with the server of the other tests behind it."""

import base64
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from showtell.serving.config import IMAGE_SUFFIXES

from .conftest import caption_of, draw

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect, Page = playwright.expect, playwright.Page

RED, BLUE = (250, 10, 20), (0, 30, 240)
Open = Callable[..., Page]


@pytest.fixture
def open_page(browser) -> Iterator[Open]:
    """Open the page of a server; scripts that fail are errors of the test."""
    problems: list[str] = []
    contexts = []

    def open_page(running) -> Page:
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.set_default_timeout(10_000)
        page.goto("http://{}:{}/".format(*running.address))
        page.locator("#work:not([hidden]), #token-form:not([hidden])").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    # A test stops the server, another one leaves, and a page may close before its icon is read.
    expected = re.compile(r"/caption$|/icon\.svg$")
    assert [problem for problem in problems if not expected.search(problem)] == []


def file_of(name: str, content: bytes) -> dict[str, object]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def wait_until(page: Page, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


def captions_of(page: Page, count: int) -> list[str]:
    """The captions and errors of the cards, from the top, once all have one."""
    expect(page.locator(".card:not(.waiting)")).to_have_count(count, timeout=10_000)
    return page.locator(".card .caption").all_inner_texts()


def test_chosen_images_are_captioned_in_order_and_errors_are_shown(running, open_page) -> None:
    page = open_page(running)
    markup = '<img src=x onerror="document.title=1">.png'
    images = {markup: draw(RED), "b.png": draw(BLUE), "c.png": b"no image"}
    page.set_input_files("#files", [file_of(*item) for item in images.items()])
    red, blue, error = captions_of(page, 3)
    assert (red, blue) == (caption_of(RED), caption_of(BLUE))
    assert "not an image in a known format" in error
    assert page.locator(".card .name").all_inner_texts() == list(images)
    assert page.title() == "showtell"
    expect(page.locator("#status")).to_have_text("2 of 3 captioned, 1 failed")
    assert page.locator(".card").first.locator(".word").first.get_attribute("data-percent") == "61"
    with page.expect_download() as download:
        page.click("#save")
    saved = Path(download.value.path()).read_text("utf-8")
    assert caption_of(RED) in saved and "no image" not in saved
    page.click("#clear")
    expect(page.locator(".card")).to_have_count(0)


def test_pasted_image_is_captioned(running, open_page) -> None:
    page = open_page(running)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async (text) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const blob = new Blob([bytes], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        base64.b64encode(draw(BLUE)).decode(),
    )
    page.keyboard.press("Control+V")
    assert captions_of(page, 1) == [caption_of(BLUE)]
    page.click(".copy")
    assert page.evaluate("navigator.clipboard.readText()") == caption_of(BLUE)


def test_dropped_image_is_captioned(running, open_page) -> None:
    page = open_page(running)
    transfer = page.evaluate_handle(
        """(text) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "red.png", { type: "image/png" }));
            return transfer;
        }""",
        base64.b64encode(draw(RED)).decode(),
    )
    page.dispatch_event("#drop", "dragenter", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_have_class("over")
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    assert captions_of(page, 1) == [caption_of(RED)]


def test_options_apply_to_new_images_and_to_caption_again(running, open_page) -> None:
    page = open_page(running)
    page.set_input_files("#files", file_of("a.png", draw(RED)))
    captions_of(page, 1)
    page.click("summary")
    page.fill("[name=n_best]", "3")
    expect(page.locator("#changed")).to_have_text("n_best 3")
    page.click("#again")
    expect(page.locator(".others li")).to_have_count(2)
    page.fill("[name=beam]", "2")
    page.keyboard.press("Enter")
    expect(page.locator(".failed .caption")).to_have_text("n_best must be at most beam 2, got 3.")
    page.click("button[type=reset]")
    expect(page.locator("#changed")).to_have_text("")


def test_keys_move_through_the_words_and_show_attention(running, open_page) -> None:
    page = open_page(running)
    page.set_input_files("#files", file_of("a.png", draw(RED, (80, 40))))
    captions_of(page, 1)
    words, attention = page.locator(".word"), page.locator(".attention")
    page.focus("#clear")
    page.keyboard.press("Tab")
    expect(words.nth(0)).to_be_focused()
    expect(attention).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(words.nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(words.last).to_be_focused()
    box, image = attention.bounding_box(), page.locator(".card img").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(2, rel=0.02)
    assert box["width"] == pytest.approx(image["width"], abs=1)
    page.keyboard.press("Escape")
    expect(attention).to_be_hidden()


def test_page_waits_while_the_server_is_full(start, open_page) -> None:
    running = start(max_queue=1, max_images=1)
    page = open_page(running)
    colors = [(40 * index, 0, 0) for index in range(4)]
    page.set_input_files("#files", [file_of("a.png", draw(color)) for color in colors])
    assert captions_of(page, 4) == [caption_of(color) for color in colors]


def test_removed_image_leaves_the_queue(start, open_page) -> None:
    running = start(max_batch=1)
    running.captioner.is_free.clear()
    page = open_page(running)
    page.set_input_files("#files", [file_of("a.png", draw(color)) for color in (RED, BLUE)])
    wait_until(page, lambda: len(running.service.queue) == 1)
    page.locator(".remove").nth(1).click()
    page.locator(".remove").nth(0).click()
    wait_until(page, lambda: running.service.places.taken == 0)
    assert running.captioner.batches == [1]


def test_page_asks_for_the_token(start, open_page) -> None:
    running = start(token="a-secret")
    page = open_page(running)
    expect(page.locator("#work")).to_be_hidden()
    page.fill("#token", "wrong-token")
    page.keyboard.press("Enter")
    expect(page.locator("#token-error")).to_have_text("The token is wrong.")
    page.fill("#token", "a-secret")
    page.keyboard.press("Enter")
    expect(page.locator("#work")).to_be_visible()
    page.set_input_files("#files", file_of("a.png", draw(RED)))
    assert captions_of(page, 1) == [caption_of(RED)]


def test_errors_of_the_server_are_shown(start, open_page) -> None:
    running = start(max_body=1)
    page = open_page(running)
    page.set_input_files("#files", file_of("large.png", bytes(1_500_000)))
    assert captions_of(page, 1) == ["The file has 1.5 MB; the server takes up to 1 MB."]
    running.server.should_exit = True
    time.sleep(0.5)
    page.set_input_files("#files", file_of("a.png", draw(RED)))
    assert "cannot be reached" in captions_of(page, 2)[0]


def test_answer_that_breaks_off_is_an_error(running, open_page) -> None:
    page = open_page(running)
    answer = {"status": 200, "content_type": "application/json", "body": '{"results": [{"cap'}
    page.route("**/caption", lambda route: route.fulfill(**answer))
    page.set_input_files("#files", file_of("a.png", draw(RED)))
    assert "connection broke" in captions_of(page, 1)[0]
    page.unroute("**/caption")
    page.click("#again")
    assert captions_of(page, 1) == [caption_of(RED)]
    page.route("**/model", lambda route: route.fulfill(**answer))
    page.reload()
    expect(page.locator("#model")).to_contain_text("connection broke")
    expect(page.locator("#work")).to_be_hidden()


def test_page_knows_the_image_files_of_the_command(running) -> None:
    script = running.client.get("/page.js").text
    (pattern,) = re.findall(r"IMAGE_NAME = /(.*)/i;", script)
    assert all(re.search(pattern, f"a{suffix}") for suffix in IMAGE_SUFFIXES)
    assert not any(re.search(pattern, name) for name in ("a.txt", "a.jp", "jpg"))


def test_page_of_another_origin_cannot_use_the_server(running, start, open_page) -> None:
    page = open_page(start())
    page.goto(f"{page.url}healthz")  # it has no policy against such a form
    target = "http://{}:{}/caption".format(*running.address)
    before = len(running.captioner.batches)
    page.set_content(
        f'<form method="post" action="{target}" enctype="multipart/form-data">'
        '<input type="file" name="images"><button>Send</button></form>'
    )
    page.set_input_files("input", file_of("a.png", draw(RED)))
    page.click("button")
    expect(page.locator("body")).to_contain_text("origin_not_allowed")
    assert len(running.captioner.batches) == before
