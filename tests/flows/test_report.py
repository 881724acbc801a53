"""``b3 report`` as a person runs it, and the same figures on the run's page."""

import json

import pytest
from prefect.artifacts import Artifact

from b3_core.store import open_artifact
from tasks import artifacts


@pytest.fixture
def mined(command, write_config):
    """Mine two arms; return the URIs of their manifests."""
    config = write_config(arms=["paper", "b3"], compute={"workers": 1, "shard_rows": 100_000})
    code, out, err = command("mine", config, "--json")
    assert code == 0, err
    return json.loads(out)["manifests"]


@pytest.mark.timeout(280)
def test_a_report_is_written_and_its_figures_are_on_the_runs_page(command, mined, tmp_path):
    paper, b3 = mined
    page = tmp_path / "deep" / "page.html"
    code, out, err = command("report", b3, "--output", page, "--batches", 3, "--json")
    assert code == 0, err
    found = json.loads(out)
    (report,) = found["reports"]
    assert found["output"] == str(page) and report["manifest"] == b3
    assert len(report["batches"]) == 3 and "query_picture" not in report["batches"][0]["rows"][0]
    html = page.read_text()
    assert html.startswith("<!doctype html>") and html.count('class="batch"') == 3
    window = report["datasets"][0]["batches"]["mined"]["window"]["mean"]
    assert f"{window:.2f}" in html

    shown = Artifact.get("small-manifests").data
    assert "## paper" in shown and "## b3" in shown and f"`{b3}`" in shown
    assert f"| window partners a row, in its batch | {window:.2f} |" in shown

    code, out, err = command("report", paper, b3, "-o", tmp_path / "two.html")
    assert code == 0 and out.rstrip().endswith(f"report: {tmp_path}/two.html")
    assert "Two manifests compared" in (tmp_path / "two.html").read_text()
    more = "--price", "machine-hour=3600", "--json"
    code, out, err = command("report", paper, b3, "-o", tmp_path / "two.html", *more)
    for report in json.loads(out)["reports"]:
        assert report["totals"]["money"] == pytest.approx(report["totals"]["seconds"], abs=1e-3)
    assert (tmp_path / "two.html").read_text().count(", which costs ") == 2
    changed = json.loads(out)["differences"]["settings"]
    assert changed["mining.partitioner"] == ["metis-paper", "leiden"]


def test_what_is_large_is_not_fetched_for_the_runs_page(mined, monkeypatch):
    monkeypatch.setattr(artifacts, "_MOST_BYTES", 1000)
    uri = mined[1]
    artifacts.publish_manifests("large", {("b3", 0): open_artifact(uri)})
    shown = Artifact.get("large-manifests").data
    assert f"`b3 report {uri}`" in shown and "in its batch" not in shown


def test_what_cannot_be_reported_on_is_one_line(command, tmp_path):
    code, _, err = command("report", tmp_path / "nothing", "-o", tmp_path / "page.html")
    assert code == 2 and err.startswith("b3: no whole artifact at") and err.count("\n") == 1
    code, _, err = command("report", tmp_path, "--media", "icons")
    assert code == 2 and "--media icons; expected DATASET=FOLDER" in err
    assert not (tmp_path / "page.html").exists()
