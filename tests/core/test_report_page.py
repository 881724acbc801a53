"""The page of a report: whole, self-contained, and deaf to what data says."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pyarrow as pa
import pytest

from b3_core.config import BatchSpec, Phase
from b3_core.diff import diff
from b3_core.report.describe import describe
from b3_core.report.markdown import summary
from b3_core.report.page import page
from b3_core.report.plots import Series, distribution
from b3_core.report.view import lineage_lanes, pick, plain, written
from tests.conftest import topic_table
from tests.core.test_manifest import mine

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "</p></style></script><iframe src=//evil.example></iframe>",
    "{{ 7 * 7 }}{% raw %} \x00 & \u202e <!-- ]]>",
    "<svg onload=alert(4)><a href=javascript:alert(5)>",
)
VOID = {"meta", "link", "img", "input", "br", "path", "line"}


class Outline(HTMLParser):
    """Elements in order, with their attributes; who is open, and what is text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text, self.faults = [], [], [], []
        self.html = html
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        if len(set(names)) < len(names):
            self.faults.append((tag, "an attribute twice"))
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))

    def handle_endtag(self, tag):
        if tag in VOID or not self.open or self.open.pop() != tag:
            self.faults.append((tag, "closes what is not open"))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, *tags):
        return [attributes for tag, attributes, _ in self.elements if tag in tags]


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """A manifest whose texts would all like to be markup."""
    table = topic_table(130)
    columns = [
        [f"{HOSTILE[row % len(HOSTILE)]} {text}" for row, text in enumerate(column.to_pylist())]
        for column in table.columns
    ]
    table = pa.table(dict(zip(table.column_names, columns, strict=True)))
    phases = (Phase(random_share=1), Phase(epochs=2))
    store, stage = mine(
        tmp_path_factory.mktemp("page"), BatchSpec(batch_size=16, curriculum=phases), table
    )
    return describe(store.get(stage.address))


@pytest.fixture(scope="module")
def html(described):
    return page([described])


@pytest.fixture(scope="module")
def compared(described, tmp_path_factory):
    store, stage = mine(tmp_path_factory.mktemp("other"), BatchSpec(batch_size=8))
    other = store.get(stage.address)
    return page([described, describe(other)], diff(other, other))


@pytest.fixture(params=["html", "compared"])
def outline(request):
    return Outline(request.getfixturevalue(request.param))


def test_what_data_says_is_text(html):
    seen = Outline(html)
    text = "".join(seen.text).replace("\x00", "").replace("\ufffd", "")
    assert [each for each in HOSTILE if each.replace("\x00", "") not in text] == []
    assert seen.faults == [] and seen.open == []
    tags = {tag for tag, *_ in seen.elements}
    assert not tags & {"iframe", "object", "embed", "form", "base", "img"}
    assert len(seen.of("script")) == len(seen.of("style")) == 1
    for _, attributes, _ in seen.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_what_was_made_of_what_is_drawn_once_a_dataset(described, html):
    (lane,) = lineage_lanes(described)
    made = {step["stage"]: step["inputs"] for step in lane["steps"]}
    assert list(made)[0] == "pairs" and list(made)[-1] == "manifest"
    assert made["ranks"] == "from embeddings, pairs" or made["ranks"] == "from pairs, embeddings"
    assert "graph" in made["communities"] and made["manifest"] == "of faq"
    assert html.count('<ol class="lineage">') == 1
    assert html.count("<strong>communities</strong>") == 1


def test_hostile_names_and_figures_are_text_too(described):
    """Whoever writes a manifest chooses its settings, records and URIs."""
    spoilt = json.loads(json.dumps(described))
    evil = '"><script>alert(6)</script>'
    spoilt["manifest"] = evil
    spoilt["gone"] = [evil]
    spoilt["settings"][0]["value"] = evil
    spoilt["libraries"] = {evil: evil}
    data = spoilt["datasets"][0]
    data["name"] = spoilt["batches"][0]["dataset"] = evil
    data["sources"] = dict.fromkeys(data["sources"], evil)
    data["teacher"]["settings"] = {evil: evil}
    data["advice"] = spoilt["advice"] = [
        {"dataset": evil, "says": evil, "remedy": evil, "kind": evil}
    ]
    for stage in spoilt["stages"]:
        stage |= {"fingerprint": evil, "dataset": evil, "finished": evil}
    seen = Outline(page([spoilt]))
    assert len(seen.of("script")) == 1 and seen.faults == []
    assert "".join(seen.text).count(evil) > 15


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(outline):
    links = [a[name] for _, a, _ in outline.elements for name in ("src", "href") if name in a]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    policy = next(a["content"] for a in outline.of("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:")
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        (body,) = re.findall(f"<{kind}>(.*?)</{kind}>", outline.html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_who_cannot_see_it_finds_the_way(outline):
    levels = [int(tag[1]) for tag, *_ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    ids = [a["id"] for _, a, _ in outline.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    for _, attributes, _ in outline.elements:
        for name in ("aria-labelledby", "for"):
            assert set(attributes.get(name, "").split()) <= set(ids)
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    tags = [tag for tag, *_ in outline.elements]
    for tag in ("header", "nav", "main", "footer"):
        assert tags.count(tag) == 1
    assert tags.count("caption") == tags.count("table") > 5
    assert all("scope" in attributes for attributes in outline.of("th"))
    figures = [a for a in outline.of("svg") if "aria-hidden" not in a]
    assert figures and all(a["role"] == "img" for a in figures)
    assert tags.count("desc") == len(figures)
    assert next(a for a in outline.of("html"))["lang"] == "en"


def test_the_figures_are_on_the_page(described, html, compared):
    mined = described["datasets"][0]["batches"]["mined"]
    text = " ".join(Outline(html).text)
    for path, form in (("similarity.mean", "score"), ("window.mean", "number")):
        assert written(pick(mined, path), form) in text
    assert "NV-Retriever" in text and "METIS at its defaults" in text
    both = " ".join(Outline(compared).text)
    assert "Two manifests compared" in both and "B − A" in both
    assert "Nothing: inputs, settings and libraries are the same" in both


def test_a_page_of_what_is_hardly_there(described):
    bare = json.loads(json.dumps(described))
    (data,) = bare["datasets"]
    data["batches"] = {"mined": {"batches": 1, "rows": 2, "pairs": 2}, "random": {}, "paper": None}
    data |= {"repeats": None, "edges": {}, "moved_share": None}
    data["teacher"] = {"settings": {}}
    for epoch in data["epochs"]:
        epoch.update(dict.fromkeys(("similarity", "window", "too_hard", "likely")))
    bare["batches"] = []
    bare["stages"] = [{"dataset": "faq", "stage": "ranks", "fingerprint": "0" * 20, "there": False}]
    text = " ".join(Outline(page([bare])).text)
    assert "None: the rows are not in the store." in text and "gone" in text


def test_a_distribution_by_hand():
    plot = distribution(
        [Series("a", [0.0, 0.5, 0.5, 0.0]), Series("<b>", [0.0, 0.0, 0.25, 0.75])],
        title="t",
        x_label="x",
        y_label="y",
        start=-1.0,
        step=0.5,
        ident="p",
    )
    assert plot.table == [
        ("-0.50 to 0.00", ["50.00%", "0.00%"]),
        ("0.00 to 0.50", ["50.00%", "25.00%"]),
        ("0.50 to 1.00", ["0.00%", "75.00%"]),
    ]
    assert "&lt;b&gt;: most at 0.50 to 1.00" in plot.svg and "<b>" not in plot.svg
    path = re.search(r'class="line s0" d="M([^"]+)"', plot.svg)[1]
    heights = [float(point.split()[1]) for point in path.split("L")]
    # The axis ends at 80 %: half of the rows is five eighths of the way up, of 192 pixels.
    assert heights[0] == heights[-1] and heights[0] - heights[1] == pytest.approx(120, abs=0.2)


def test_many_counts_are_merged():
    plot = distribution(
        [Series("a", [1 / 90] * 90)],
        title="t", x_label="x", y_label="y", start=0, step=1, ident="p", whole=True,
    )  # fmt: skip
    assert [name for name, _ in plot.table][:2] == ["0 to 2", "3 to 5"] and len(plot.table) == 30


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, "share", "–"),
        (0.1234, "share", "12.3%"),
        (1.0, "share", "100%"),
        (0.98765, "score", "0.988"),
        (12345, "count", "12,345"),
        (59.96, "seconds", "60.0 s"),
        (125.4, "seconds", "2 min 5 s"),
        (7300, "seconds", "2.0 h"),
        (999, "bytes", "999 B"),
        (1.5e9, "bytes", "1.5 GB"),
    ],
)
def test_figures_are_written_for_people(value, form, text):
    assert written(value, form) == text


def test_settings_are_written_for_people():
    phases = [{"epochs": 1.0, "random_share": 1.0}, {"epochs": 2.5, "random_share": 0.25, "k": 8}]
    said = plain("batches.curriculum", phases)
    assert said == "1 epoch at random; then 2.5 epochs 25% at random, k 8"
    assert [plain("x", value) for value in (True, None, "", 0.5)] == ["yes", "–", "(blank)", "0.5"]


def test_a_summary_is_markdown_and_nothing_else(described):
    spoilt = json.loads(json.dumps(described))
    spoilt["gone"] = ["a | b <script>\n# no heading"]
    text = summary(spoilt)
    assert r"- a \| b \<script\> # no heading" in text.splitlines()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count(" | ") for line in tables} == {1, 3}
    mined = described["datasets"][0]["batches"]["mined"]
    shown = next(line for line in tables if "window partners a row, in its batch" in line)
    assert written(mined["window"]["mean"], "number") in shown
