"""The report of a real run, in a real browser: looked at, clicked through, judged by axe."""

import json
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from tests.conftest import ROOT

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: chromium)"),
]
SHOTS = ROOT / "build" / "screenshots"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
MOST_BYTES = 3_000_000


@pytest.fixture(scope="module")
def reports(tmp_path_factory, b3):
    """Pages about a run of the demo: of its b3 manifest, and of that beside its random one."""
    folder = tmp_path_factory.mktemp("report")
    store = ("--store", folder / "store")
    run = b3("demo", "--pairs", 3000, "--seeds", 1, *store, "--json", timeout=1500)
    outcome = json.loads(run.stdout)
    random, mined = outcome["manifests"][0], outcome["manifest"]
    b3("report", mined, "--output", folder / "one.html")
    said = b3("report", random, mined, "-o", folder / "two.html", "--json")
    found = json.loads(said.stdout)
    assert [each["manifest"] for each in found["reports"]] == [random, mined]
    return {"one": folder / "one.html", "two": folder / "two.html"}


@pytest.fixture(scope="module")
def browser():
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def view(browser, reports):
    """Return a function that opens a report; it must say nothing and ask for nothing."""
    said, pages = [], []

    def view(name="one", *, width=1280, scheme="light", **options):
        page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        uri = reports[name].as_uri()
        page.on("request", lambda r: r.url.split("#")[0] != uri and asked(r.url))
        page.goto(uri)
        pages.append(page)
        return page

    def asked(url):
        if not url.startswith("data:"):
            said.append(f"asked for {url}")

    yield view
    for page in pages:
        page.close()
    assert said == []


def colour(page, what="body", of="backgroundColor"):
    return page.evaluate(f"getComputedStyle(document.querySelector('{what}')).{of}")


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_axe_finds_no_serious_fault(view, reports, width, scheme, name):
    assert reports[name].stat().st_size < MOST_BYTES
    page = view(name, width=width, scheme=scheme)
    page.screenshot(path=str(SHOTS / f"report-{name}-{width}-{scheme}.png"), full_page=True)
    for details in ("closed", "open"):
        if details == "open":
            page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        over = page.evaluate(
            "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll')"
            " && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML)"
        )
        assert over == []
    found = Axe().run(page).response
    assert len(found["passes"]) > 20
    grave = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"]) for v in grave] == []
    dark = sum(map(int, colour(page)[4:-1].split(","))) < 200
    assert dark == (scheme == "dark")


def test_axe_would_find_a_fault(view):
    page = view()
    page.evaluate("document.getElementById('choose').labels[0].remove()")
    found = Axe().run(page).response["violations"]
    assert "select-name" in {v["id"] for v in found if v["impact"] == "critical"}


def test_themes_are_toggled_by_mouse_and_keyboard(view):
    page = view()
    light, button = colour(page), page.locator("#theme")
    expect(button).to_have_text("Dark theme")
    button.click()
    assert colour(page) != light
    expect(button).to_have_text("Light theme")
    assert Axe().run(page).response["violations"] == []
    button.press("Enter")
    assert colour(page) == light


def test_batches_are_browsed_by_mouse(view):
    page = view()
    batches, choose = page.locator(".batch"), page.locator("#choose")
    assert batches.count() == 8
    expect(page.locator(".batch:visible")).to_have_count(1)
    expect(page.locator("#previous")).to_be_disabled()
    page.locator("#next").click()
    expect(batches.nth(1)).to_be_visible()
    expect(page.locator("#said")).to_have_text("Batch 2 of 8: 32 of 32 rows")
    choose.select_option("7")
    expect(batches.nth(7)).to_be_visible()
    expect(page.locator("#next")).to_be_disabled()

    row = page.locator(".batch:visible .row").first
    row.locator("summary").click()
    partners = row.locator(".partners li")
    assert partners.count() == 5
    texts = partners.all_inner_texts()
    assert all("score" in text and "community" in text for text in texts)
    link = page.locator(".batch:visible .row summary:has-text('window')").first.locator("xpath=..")
    link.evaluate("(details) => { details.open = true }")
    target = link.locator("a").first.get_attribute("href")
    link.locator("a").first.click()
    expect(page.locator(target)).to_be_focused()


def test_batches_are_browsed_by_keyboard(view):
    page = view(width=400)
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    expect(skip).to_be_focused()
    assert skip.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()

    page.locator("#choose").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".batch").nth(1)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("#next")).to_be_focused()
    assert float(colour(page, "#next", "outlineWidth").removesuffix("px")) >= 2
    for _ in range(6):
        page.keyboard.press("Enter")
    expect(page.locator(".batch").nth(7)).to_be_visible()
    expect(page.locator("#previous")).to_be_focused()  # the button that is left to press
    page.locator("#suspects").focus()
    page.keyboard.press("Space")
    suspects = page.locator(".batch").nth(7).locator(".row[data-suspect]").count()
    expect(page.locator(".batch .row:visible")).to_have_count(suspects)
    assert 0 < suspects < 32
    page.locator(".batch:visible .row:visible summary").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".partners:visible")).to_have_count(1)


def test_without_scripts_everything_is_there(view):
    page = view(java_script_enabled=False)
    expect(page.locator(".batch:visible")).to_have_count(8)
    expect(page.locator("#theme")).to_be_hidden()
    expect(page.locator(".browser")).to_be_hidden()
