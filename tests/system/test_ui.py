"""What a person sees and does in the Prefect UI, in a real browser."""

import shutil
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.conftest import ROOT

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: chromium)"),
]
SHOTS = ROOT / "build" / "screenshots"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture(scope="module")
def page(installation):
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.set_default_timeout(30_000)
        yield page
        browser.close()


@pytest.fixture
def see(page, installation):
    """Return a function that opens a page of the UI and takes its picture."""

    def open_page(path, name, *texts):
        page.goto(f"{installation.cluster.ui}/{path}")
        for text in texts:
            expect(page.get_by_text(text).first).to_be_visible(timeout=30_000)
        time.sleep(1)
        page.screenshot(path=str(Path(SHOTS, f"{name}.png")), full_page=True)
        return page

    return open_page


def test_a_run_is_started_from_the_form(installation, tmp_path, see):
    name = installation.deploy(tmp_path, "faq")
    installation.hush(name)
    deployment = installation.deployment("pipeline", name)
    page = see(
        f"deployments/deployment/{deployment}/run",
        "form",
        "One CONFIG: what to mine, train on and evaluate.",
        "Rows in a batch: a multiple of mining.k.",
        "Local folder or s3://bucket/prefix.",
    )
    before = len(installation.runs("pipeline", name))
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**tab=Runs**", timeout=60_000)
    deadline = time.monotonic() + 60
    while len(installation.runs("pipeline", name)) == before:
        assert time.monotonic() < deadline
        time.sleep(1)
    run = installation.ended(installation.runs("pipeline", name)[-1]["id"])
    assert run["state_type"] == "COMPLETED", run["state"]
    see_the_run(installation, run, name, see)


def see_the_run(installation, run, name, see):
    see(f"runs/flow-run/{run['id']}", "run", run["name"], "Completed")
    mine = installation.api(
        "flow_runs/filter",
        flow_runs={"parent_flow_run_id": {"any_": [run["id"]]}},
        flows={"name": {"any_": ["mine"]}},
    )[0]
    page = see(f"runs/flow-run/{mine['id']}?tab=TaskRuns", "shards", mine["name"])
    expect(page.get_by_text("embed faq 0-256").first).to_be_visible(timeout=30_000)
    page.screenshot(path=str(Path(SHOTS, "shards.png")), full_page=True)
    see(f"artifacts/key/{name}-arms", "arms", f"{name}-arms")
    manifests = installation.api(
        "artifacts/filter", artifacts={"key": {"any_": [f"{name}-manifests"]}}
    )
    see(
        f"artifacts/artifact/{manifests[-1]['id']}", "manifests", "window partners", "b3 verify URI"
    )


def test_an_impossible_value_starts_nothing(installation, tmp_path, see):
    name = installation.deploy(tmp_path, "faq")
    installation.hush(name)
    deployment = installation.deployment("pipeline", name)
    page = see(f"deployments/deployment/{deployment}/run", "refused", "Rows in a community.")
    label = "//*[normalize-space(text())='K (Optional)']"
    page.locator(f"xpath={label}/following::input[1]").first.fill("1")
    page.get_by_role("button", name="Submit").click()
    time.sleep(3)
    page.screenshot(path=str(Path(SHOTS, "refused.png")), full_page=True)
    assert not installation.runs("pipeline", name)
    assert "/run" in page.url
