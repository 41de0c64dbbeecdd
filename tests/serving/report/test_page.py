import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from showtell.serving.report.collect import Report
from showtell.serving.report.page import escape_markdown, render_html, render_markdown
from showtell.serving.report.tokens import LEVELS

HOSTILE = "</script><script>window.hacked = 1</script><!-- <script> <img src=x onerror=hacked()>"


class Parser(HTMLParser):
    """Collects the start tags of a page with their attributes, and the content of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="session")
def hostile_report(soft_report: Report) -> Report:
    """The report with markup in every text that comes from files of the user."""
    images = [
        replace(
            image,
            file_name=HOSTILE,
            caption=HOSTILE,
            references=[HOSTILE],
            ranked=[replace(ranked, text=HOSTILE) for ranked in image.ranked],
            tokens=[replace(token, text=f" {HOSTILE}") for token in image.tokens],
            others=[(HOSTILE, 0.5) for _ in image.others],
        )
        for image in soft_report.images
    ]
    words = replace(soft_report.words, oov_words=[(HOSTILE, 3)])
    return replace(soft_report, images=images, words=words)


def test_page_holds_every_image_with_all_that_belongs_to_it(soft_report, soft_page) -> None:
    data = Parser(soft_page.decode()).data
    assert data["grid"] == [2, 2]
    assert data["others"] == [other.name for other in soft_report.others]
    assert len(data["images"]) == len(soft_report.images) == 10
    for shown, image in zip(data["images"], soft_report.images, strict=True):
        assert (shown["id"], shown["caption"]) == (image.image_id, image.caption)
        assert shown["references"] == image.references
        assert shown["cider"] == pytest.approx(image.cider, abs=1e-4)
        assert sum(token["logProb"] for token in shown["tokens"]) == pytest.approx(
            shown["logProb"], abs=0.02
        )
        assert shown["ranked"][0]["text"] == image.caption
        assert len(shown["ranked"]) == 3
        assert shown["picture"].startswith("data:image/webp;base64,")


def test_page_loads_nothing_and_allows_no_script_but_its_own(soft_page) -> None:
    html = soft_page.decode()
    page = Parser(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            link = attributes.get(name) or "#"
            assert link.startswith(("#", "data:")), (tag, link)
    (policy,) = (
        attributes["content"]
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = hashlib.sha256(script.encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"url\((?!#)|@import", html)


def test_markup_in_captions_and_file_names_stays_text(
    soft_report, hostile_report, without_plots
) -> None:
    plain, hostile = (
        Parser(render_html(report).decode()) for report in (soft_report, hostile_report)
    )
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in plain.tags}
    assert len(hostile.scripts) == 2 and hostile.scripts[1] == plain.scripts[1]
    assert hostile.data["images"][0]["caption"] == HOSTILE
    assert hostile.data["images"][0]["file"] == HOSTILE


def test_script_and_program_agree_about_the_characters_of_attention(soft_page) -> None:
    script = Parser(soft_page.decode()).scripts[1]
    assert f'const LEVELS = "{LEVELS}";' in script


def test_numbers_that_json_lacks_become_null(soft_report, without_plots) -> None:
    image = replace(soft_report.images[0], log_prob=float("-inf"), cider=float("nan"))
    data = Parser(render_html(replace(soft_report, images=[image])).decode()).data
    assert data["images"][0]["logProb"] is None and data["images"][0]["cider"] == 0.0


def test_report_without_attention_probabilities_and_images_is_complete(
    soft_report, without_plots
) -> None:
    images = [
        replace(image, tokens=[], log_prob=None, ranked=[], thumbnail=None, others=[])
        for image in soft_report.images
    ]
    bare = replace(soft_report, images=images, others=[], differences=[], grid=None, logs={})
    page = Parser(render_html(bare).decode())
    assert page.data["images"][0]["picture"] is None
    values = [attributes.get("value") for tag, attributes in page.tags if tag == "option"]
    assert "surprising" not in values and "best" in values


def test_markdown_lists_scores_plots_and_examples(soft_report, without_plots) -> None:
    text, files = render_markdown(soft_report, "my report")
    lines = text.decode().splitlines()
    assert lines[0] == "# soft: test-beam3-nbest3"
    header = lines.index(next(line for line in lines if line.startswith("| evaluation |")))
    rows = lines[header + 2 : header + 2 + 3]
    assert {line.count("|") for line in lines[header : header + 5]} == {lines[header].count("|")}
    assert all(row.startswith("| ") and "**" in row for row in rows)
    assert len(files) == 6
    for name, content in files.items():
        assert f"({name.replace(' ', '%20')})" in text.decode()
        assert content.startswith(b"\x89PNG")
    best = max(soft_report.images, key=lambda image: image.cider)
    assert f"{100 * best.cider:.1f} | {best.caption}" in text.decode()


def test_markup_in_captions_stays_text_in_markdown(hostile_report, without_plots) -> None:
    text = render_markdown(hostile_report, "report")[0].decode()
    assert "<" not in text.replace("&lt;", "")
    assert escape_markdown("a|b *c* `d` [e](f) <g> & \n# h $i$ ![j]") == (
        r"a\|b \*c\* \`d\` \[e\](f) &lt;g&gt; &amp; # h \$i\$ !\[j\]"
    )


# ---- in a browser -------------------------------------------------------------------------


@pytest.fixture
def open_page(browser, tmp_path, without_plots):
    """Open a report from the disk; afterwards, check for errors and network requests."""
    problems: list[str] = []
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})

    def open_report(report: Report, fragment: str = ""):
        (tmp_path / "report.html").write_bytes(render_html(report))
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(r.url),
        )
        page.goto(f"file://{tmp_path}/report.html{fragment}")
        return page

    yield open_report
    context.close()
    assert problems == []


def captions(page) -> list[str]:
    return page.locator("#cards .card .text").all_text_contents()


def wait_for_cards(page, count: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator(".card")).to_have_count(count)


def test_gallery_sorts_searches_and_filters(open_page, soft_report) -> None:
    images = soft_report.images
    page = open_page(soft_report)
    assert captions(page) == [image.caption for image in images]

    page.select_option("#sort", "worst")
    ranked = sorted(images, key=lambda image: round(image.cider, 4))
    assert captions(page) == [image.caption for image in ranked]
    page.select_option("#sort", "surprising")
    assert captions(page)[0] == min(images, key=lambda image: image.confidence).caption

    word = images[0].caption.split(" ")[-1]
    page.select_option("#sort", "order")
    page.select_option("#scope", "caption")
    page.keyboard.press("/")
    page.keyboard.type(word)
    having = [image.caption for image in images if word in image.caption.split(" ")]
    wait_for_cards(page, len(having))
    assert captions(page) == having
    assert page.locator("#count").inner_text() == (
        f"{len(having)} of 10" if len(having) < 10 else "10 images"
    )
    page.fill("#query", f"-{word}")
    wait_for_cards(page, 10 - len(having))
    page.keyboard.press("Escape")
    wait_for_cards(page, 10)
    page.select_option("#filter", "unique")
    counts = [image.caption for image in images]
    assert len(captions(page)) == sum(counts.count(caption) == 1 for caption in counts)


def test_an_image_opens_with_keys_and_shows_the_attention_of_each_word(
    open_page, soft_report
) -> None:
    page = open_page(soft_report)
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    image = soft_report.images[1]
    shown = page.locator("#detail .shown")
    assert page.locator("#detail .token").count() == len(image.tokens)
    assert page.locator("#detail li").all_inner_texts() == image.references
    assert "lit" not in shown.get_attribute("class")
    page.keyboard.press("ArrowDown")
    assert "lit" in shown.get_attribute("class")
    assert page.locator(".word-shown").inner_text() == image.tokens[0].text.strip()
    alphas = page.evaluate(
        "() => [...document.querySelector('.region canvas').getContext('2d')"
        ".getImageData(0, 0, 2, 2).data].filter((_, i) => i % 4 === 3)"
    )
    levels = [LEVELS.index(cell) for cell in image.tokens[0].attention]
    # The more attention, the clearer the image.
    assert sorted(range(4), key=lambda i: alphas[i]) == sorted(range(4), key=lambda i: -levels[i])
    page.keyboard.press("ArrowLeft")
    assert page.locator("#position").inner_text() == "1 of 10"
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    assert page.evaluate("document.activeElement === document.querySelector('.card')")


def test_address_keeps_the_view_and_the_theme_changes(open_page, soft_report) -> None:
    image = soft_report.images[3]
    page = open_page(soft_report, f"#sort=best&image={image.image_id}")
    assert page.input_value("#sort") == "best"
    assert page.locator("#detail .under").inner_text().startswith(image.file_name)
    page.keyboard.press("Escape")
    page.wait_for_url("**/*#sort=best")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_markup_stays_text_in_the_browser(open_page, hostile_report) -> None:
    page = open_page(hostile_report)
    assert captions(page)[0] == HOSTILE
    page.fill("#query", "script")
    page.locator(".card").first.click()
    assert page.locator("#detail .token").first.inner_text().startswith(HOSTILE)
    assert page.locator("#detail li").all_inner_texts() == [HOSTILE]
    assert page.evaluate("window.hacked") is None


def test_page_fits_a_phone(browser, soft_page, tmp_path) -> None:
    (tmp_path / "report.html").write_bytes(soft_page)
    context = browser.new_context(
        viewport={"width": 390, "height": 800}, is_mobile=True, has_touch=True, offline=True
    )
    page = context.new_page()
    page.goto(f"file://{tmp_path}/report.html")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator(".card").first.tap()
    page.locator(".token").first.tap()
    assert "lit" in page.locator("#detail .shown").get_attribute("class")
    assert page.evaluate("document.querySelector('#detail').scrollWidth") <= 390
    context.close()
