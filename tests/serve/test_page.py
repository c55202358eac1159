"""The page in a real browser: Debian's Chromium, headless, driven by playwright. UNITOKEN_SCREENSHOTS names a
folder for images of it."""

import os
import pathlib
import shutil

import pytest

from tests.helpers.stand_in_engine import StandInEngine
from tests.serve.conftest import running
from tests.serve.test_protocol import png

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,  # starts a browser
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]
HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # The sandbox needs what containers seldom give; the page is ours.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    engine = StandInEngine(delay=0.01)
    with running(engine) as (engine, address):
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(10_000)
        page.problems = []
        page.on(
            "console", lambda message: page.problems.append(message.text) if message.type == "error" else None
        )
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.engine, page.address = engine, address
        page.goto(address)
        page.get_by_role("status").get_by_text("Ready.").wait_for()
        yield page
        screenshot(page, request.node.name)
        assert page.problems == []
        page.close()


def screenshot(page, name: str) -> None:
    if folder := os.environ.get("UNITOKEN_SCREENSHOTS"):
        page.screenshot(path=pathlib.Path(folder) / f"{name}.png", full_page=True)


def upload(page, name="a.png"):
    page.locator("#files").set_input_files({"name": name, "mimeType": "image/png", "buffer": png()})
    page.get_by_alt_text(f"Image 1: {name}").wait_for()


def send(page, prompt: str):
    page.locator("#prompt").fill(prompt)
    page.locator("#send").click()


def test_it_answers_about_an_image(page):
    upload(page)
    send(page, "what is this ?")
    page.get_by_role("status").get_by_text("Answer: seed").wait_for()
    article = page.get_by_role("article")
    seed = page.locator("#seed").input_value()
    assert article.locator(".answer").inner_text() == f"seed {seed} index 0: what is this ?"
    (asked,) = page.engine.requests
    assert asked.conversation.turns[0].parts[0].path.data == png()
    assert article.get_by_alt_text("Image 1 of the question").count() == 1


def test_it_shows_rows_as_they_are_drawn(page):
    page.get_by_role("radio", name="Draw").check(force=True)
    page.get_by_label("How many").fill("2")
    page.get_by_label("Size").select_option("24x16")
    page.get_by_label("a new one each time").uncheck()
    page.get_by_label("Seed").fill("200")
    page.engine.delay = 0.4
    send(page, "a red circle")
    rows = page.get_by_alt_text("The first rows of: a red circle")
    rows.first.wait_for()
    heights = set()
    screenshot(page, "rows")
    while rows.count():
        heights |= set(
            page.evaluate("[...document.querySelectorAll('.frame img')].map(i => i.naturalHeight)")
        )
    assert heights & {4, 8, 12}
    page.get_by_text("2 images drawn").wait_for()
    drawn = page.get_by_alt_text("Drawn: a red circle")
    assert drawn.count() == 2
    assert drawn.first.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [24, 16]
    assert [(one.seed, one.index, one.settings.guidance) for one in page.engine.requests] == [
        (200, 0, 3.0),
        (200, 1, 3.0),
    ]


def test_it_changes_an_image_that_it_drew(page):
    page.get_by_role("radio", name="Draw").check(force=True)
    send(page, "a red circle")
    page.get_by_role("button", name="Edit", exact=True).last.click()
    assert page.get_by_role("radio", name="Edit").is_checked()
    page.get_by_label("Guidance").fill("1.5")
    send(page, "make it blue")
    page.get_by_alt_text("Drawn: make it blue").wait_for()
    parts = page.engine.requests[-1].prompt.turns[0].parts
    assert parts[1] == "make it blue"
    assert parts[0].path.data.startswith(b"\x89PNG")
    assert page.engine.requests[-1].settings.guidance == 1.5


def test_it_keeps_what_came_and_forgets_it_when_told(page):
    for words in ("one", "two"):
        send(page, words)
        page.get_by_role("status").get_by_text(f"0: {words}").wait_for()
    page.reload()
    page.get_by_role("status").get_by_text("Ready.").wait_for()
    assert page.locator("article h3").all_inner_texts() == ["two", "one"]
    assert page.locator(".answer").first.inner_text().endswith(" index 0: two")
    page.get_by_role("button", name="Again").last.click()
    assert page.locator("#prompt").input_value() == "one"
    page.get_by_role("button", name="Forget", exact=True).first.click()
    assert page.locator("article h3").all_inner_texts() == ["one"]
    page.get_by_role("button", name="Forget all").click()
    page.reload()
    page.get_by_text("Nothing yet.").wait_for()


def test_what_a_model_says_is_text(page):
    send(page, HOSTILE)
    page.get_by_role("status").get_by_text("Answer:").wait_for()
    assert HOSTILE in page.locator(".answer").inner_text()
    page.reload()
    page.get_by_role("status").get_by_text("Ready.").wait_for()
    assert HOSTILE in page.locator(".answer").inner_text()
    assert page.title() == "UniToken"
    assert page.locator("article script").count() == 0


def test_it_can_be_used_with_the_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "ask"
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="Draw").is_checked()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("a red circle")
    page.engine.hold.clear()
    page.keyboard.press("Control+Enter")
    page.get_by_text("Drawing ...").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("Stopped.").wait_for()
    page.engine.hold.set()
    assert page.engine.drain(5)
    assert page.engine.stats().cancelled == 1


def test_everything_has_a_name_for_screen_readers(page):
    send(page, "hello")
    page.get_by_role("status").get_by_text("Answer:").wait_for()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, select, button, a, img")]
          .filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel || e.alt))
          .map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("h1").count() == 1
    # Text against its background, WCAG 2.2's 4.5 to 1.
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for selector in ("h3", ".about", "#hint", "#status", "#send", "label[for=seed]"):
            assert contrast(page, selector) >= 4.5, (scheme, selector)
        screenshot(page, scheme)


def contrast(page, selector: str) -> float:
    colours = page.locator(selector).first.evaluate(
        """(element) => {
          const numbers = (text) => text.match(/[0-9.]+/g).map(Number);
          let under = element, paper;
          do { paper = numbers(getComputedStyle(under).backgroundColor); under = under.parentElement; }
          while (paper[3] === 0);
          return [numbers(getComputedStyle(element).color), paper];
        }"""
    )
    light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour) -> float:
    linear = [
        c / 12.92 if (c := value / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for value in colour[:3]
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_paste_and_a_drop_are_taken(page):
    for kind, target in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """([kind, target, bytes]) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
              document.dispatchEvent(kind === "paste"
                ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true, cancelable: true })
                : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
            }""",
            [kind, target, list(png())],
        )
        page.get_by_alt_text(f"{kind}.png").wait_for()
    page.get_by_role("button", name="Remove image 1").click()
    assert page.locator("#chosen li").count() == 1


def test_errors_are_shown_and_a_key_is_asked_for(browser):
    with running(keys=("secret",)) as (_, address):
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("status").get_by_text("wants a key").wait_for()
        page.get_by_label("Key of this server").fill("secret")
        send(page, "hello")
        page.get_by_role("status").get_by_text("Answer:").wait_for()
        page.get_by_label("How many").fill("")
        page.get_by_role("radio", name="Edit").check(force=True)
        send(page, "blue")
        page.get_by_text("Give the image that is to change.").wait_for()
        page.close()


def test_it_fits_a_phone(browser):
    with running() as (_, address):
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.goto(address)
        send(page, "a" * 300)
        page.get_by_role("status").get_by_text("Answer:").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        screenshot(page, "phone")
        page.close()
