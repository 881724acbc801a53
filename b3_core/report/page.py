"""The page: one HTML file with everything in it, that asks for nothing else.

    describe's dict (one, or two and their differences) -> view -> template -> HTML

What data says is text throughout: the template escapes it, and the page's content policy runs no
script and takes no style but the two that are named by their hash.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from b3_core.report import view
from b3_core.report.view import Described, Line, written

_EPOCHS = (
    "batches",
    "drawn at random",
    "mean similarity",
    "window partners",
    "too hard",
    "likely false negatives",
)
_STAGES = ("fingerprint", "seconds", "peak memory", "on disk", "finished, UTC")
_CHIPS = {
    "window": "window",
    "too_hard": "too hard",
    "beyond": "beyond the window",
    "group": "same group",
    "unknown": "rank unknown",
}
_LABELS = {"window": "near label", "beyond": "not a near label"}


def page(reports: Sequence[Described], changes: Mapping[str, Any] | str | None = None) -> str:
    """Write one report, or two side by side.

    Parameters
    ----------
    reports
        One or two of :func:`b3_core.report.describe.describe`.
    changes
        Of two, what :func:`b3_core.diff.diff` found; or why it found nothing.
    """
    both = len(reports) > 1
    named = [str(report["manifest"]).rsplit("/", 1)[-1][:8] for report in reports]
    sections = [
        ("Plan", "plan"),
        *([("Differences", "differences")] if both else []),
        ("To look at first", "advice"),
        ("Hardness", "hardness"),
        ("Datasets", "datasets"),
        ("Batches to read", "batches"),
        ("Cost and lineage", "cost"),
        ("Settings", "settings"),
    ]
    style, script = _asset("page.css"), _asset("page.js")
    return _template().render(
        title=f"b3 report: {' and '.join(named)}",
        heading="Two manifests compared" if both else "What these batches are worth",
        style=Markup(style),  # noqa: S704 - the package's own
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
        sections=sections,
        reports=[
            _report(report, letter="AB"[place] if both else "")
            for place, report in enumerate(reports)
        ],
        compared=_compared(changes) if both else None,
        datasets=_datasets(reports),
        epoch_columns=_EPOCHS,
        stage_columns=_STAGES,
        batches=[
            _batch(batch, letter="AB"[place] if both else "")
            for place, report in enumerate(reports)
            for batch in report["batches"]
        ],
        method=_method(reports),
        sampling=_sampling(reports),
    )


def _report(report: Described, *, letter: str) -> dict[str, Any]:
    of = f" of {letter}" if letter else ""
    return {
        "letter": letter,
        "of": of,
        "manifest": report["manifest"],
        "sentence": _sentence(report),
        "tiles": _tiles(report),
        "advice": report["advice"],
        "gone": report["gone"],
        "dataset_names": [each["name"] for each in report["datasets"]],
        "dataset_lines": view.dataset_lines(report["datasets"]),
        "by_dataset": [
            {
                "name": each["name"],
                "epochs": view.epoch_lines(each),
                "repeats": view.repeat_lines(each),
            }
            for each in report["datasets"]
        ],
        "cost": _cost(report),
        "lanes": view.lineage_lanes(report),
        "stage_lines": view.stage_lines(report),
        "setting_lines": [
            Line(row["key"], [view.plain(row["key"], row[name]) for name in ("value", "default")])
            for row in report["settings"]
        ],
        "library_lines": [
            Line(name, [version or view.NONE]) for name, version in report["libraries"].items()
        ],
        "teacher_lines": [
            Line(f"{each['name']}: {key}", [view.plain(key, value)])
            for each in report["datasets"]
            for key, value in each["teacher"]["settings"].items()
        ],
    }


def _sentence(report: Described) -> str:
    plan = report["plan"]
    kind = (
        "all drawn at random"
        if plan["random_share"] == 1
        else f"communities of {plan['k']} rows by {plan['partitioner']}"
    )
    if 0 < plan["random_share"] < 1:
        kind += f", {plan['random_share']:.0%} of slots drawn at random"
    leg = f", leg {plan['leg']} of its curriculum" if plan["leg"] else ""
    epochs = "an epoch" if plan["epochs"] == 1 else f"{plan['epochs']} epochs"
    return (
        f"{plan['batches']:,} batches of {plan['batch_size']} rows in {epochs} over "
        f"{plan['rows']:,} rows: {kind}, seed {plan['seed']}{leg}."
    )


def _tiles(report: Described) -> list[dict[str, str]]:
    plan, totals = report["plan"], report["totals"]
    tiles = [
        {"label": "examples in all epochs", "value": f"{plan['examples']:,}", "beside": ""},
    ]
    for data in report["datasets"][:2]:
        of = f", {data['name']}" if len(report["datasets"]) > 1 else ""
        for path, label, form in (
            ("window.mean", "window partners a row", "number"),
            ("too_hard.mean", "too-hard partners a row", "number"),
            ("similarity.mean", "mean similarity of pairs", "score"),
            ("false_negatives.share_of_pairs", "likely false negatives", "share"),
        ):
            value, drawn = (view.pick(data["batches"][arm], path) for arm in ("mined", "random"))
            if value is not None:
                beside = f"{written(drawn, form)} at random" if drawn is not None else ""
                tiles.append({"label": label + of, "value": written(value, form), "beside": beside})
    tiles.append(
        {
            "label": "to mine, all stages",
            "value": written(totals["seconds"], "seconds"),
            "beside": f"peak {written(1e6 * totals['peak_mb'], 'bytes')}",
        }
    )
    if plan["negatives"]:
        short = f"{plan['negatives_short']:,} short" if plan["negatives_short"] else "all there"
        tiles.append(
            {"label": "hard negatives a query", "value": f"{plan['negatives']}", "beside": short}
        )
    return tiles


def _datasets(reports: Sequence[Described]) -> list[dict[str, Any]]:
    """Lay out how hard batches are: each dataset alone, or those that two manifests share."""
    shown = []
    last = {each["name"]: each for each in reports[-1]["datasets"]}
    for number, data in enumerate(reports[0]["datasets"]):
        other = last.get(data["name"]) if len(reports) > 1 else None
        if len(reports) > 1 and other is None:
            continue
        drawn = view.plots(data, other=other, ident=f"plot-{number}")
        sources = data["sources"]
        said = f"This manifest: {sources['mined']}. Paper: {sources['paper']}."
        if data["sources"]["teacher"].startswith("reads"):
            said += f" The teacher {sources['teacher']}."
        shown.append(
            {
                "name": data["name"],
                "sources": said
                if other is None
                else f"A: {sources['mined']}. B: {other['sources']['mined']}.",
                "plots": [vars(plot) | {"where": f", {data['name']}"} for plot in drawn],
                "columns": list(view.ARMS.values())
                if other is None
                else ["A", "B", "B − A", "random"],
                "lines": view.arms_lines(data) if other is None else view.pair_lines(data, other),
            }
        )
    return shown


def _batch(batch: Mapping[str, Any], *, letter: str) -> dict[str, Any]:
    kind = "at random" if batch["random"] else "mined"
    title = f"batch {batch['batch']} of {batch['dataset']}, epoch {batch['epoch']}, {kind}"
    chips = _CHIPS | _LABELS if batch["labelled"] else _CHIPS
    rows = []
    for row in batch["rows"]:
        counted = Counter(chips[near["relation"]] for near in row["partners"])
        partners = []
        for near in row["partners"]:
            ranked = near["relation"] in ("window", "too_hard") and near["rank"] is not None
            rank = f", rank {near['rank']}" if ranked else ""
            partners.append({**near, "chip": chips[near["relation"]] + rank})
        summary = ", ".join(f"{count} {name}" for name, count in counted.items())
        rows.append({**row, "partners": partners, "summary": summary})
    says = "Rows of one community have the same colour at their left; they follow one another."
    return {
        **batch,
        "title": f"{letter}: {title}" if letter else title[0].upper() + title[1:],
        "rows": rows,
        "says": "Its rows were drawn at random." if batch["random"] else says,
    }


def _compared(changes: Mapping[str, Any] | str | None) -> dict[str, Any]:
    if changes is None or isinstance(changes, str):
        return {"sentence": changes or "", "changes": [], "rows": []}
    lines = [
        Line(name.replace("_", " "), [view.plain(name, value) for value in changes[name]])
        for name in ("batches", "left_out")
        if changes[name][0] != changes[name][1]
    ]
    for section in ("settings", "libraries"):
        lines += [
            Line(f"{section}: {key}", [view.plain(key, value) for value in pair])
            for key, pair in changes[section].items()
        ]
    rows = []
    for name, data in changes["datasets"].items():
        if "only_in" in data:
            where = {"before": ["there", "absent"], "after": ["absent", "there"]}[data["only_in"]]
            lines.append(Line(f"dataset {name}", where))
            continue
        lines += [
            Line(f"{name}: {key}", [view.plain(key, value) for value in pair])
            for key, pair in data["inputs"].items()
        ]
        count, moved = data["rows"], data["communities"]
        rows.append(
            Line(
                name,
                [
                    *(written(count[key], "count") for key in ("kept", "added", "removed")),
                    written(moved["partners_kept"], "share"),
                    f"{moved['variation_of_information']:.2f} bits",
                ],
            )
        )
    return {
        "sentence": "" if lines else "Nothing: inputs, settings and libraries are the same.",
        "changes": lines,
        "rows": rows,
        "rows_columns": [
            "rows in both",
            "added in B",
            "removed in B",
            "partners in a community kept",
            "variation of information",
        ],
    }


def _cost(report: Described) -> str:
    totals = report["totals"]
    gone = (
        f" {totals['gone']} of its artifacts are gone, and what they took is not counted."
        if totals["gone"]
        else ""
    )
    cost = totals.get("money")
    spent = f"{cost:.2f}" if cost and cost >= 0.01 else "less than 0.01"
    money = "" if cost is None else f", which costs {spent}"
    return (
        f"{written(totals['seconds'], 'seconds')} one after the other{money}, at most "
        f"{written(1e6 * totals['peak_mb'], 'bytes')} of memory, "
        f"{written(totals['bytes'], 'bytes')} on disk, by the records of the artifacts. What other "
        f"arms and seeds use too is counted whole.{gone}"
    )


def _method(reports: Sequence[Described]) -> str:
    drawn = view.pick(reports[-1]["datasets"][0]["batches"]["random"],
                      "false_negatives.share_of_pairs")  # fmt: skip
    floor = (
        ""
        if drawn is None
        else f" Of random pairs {drawn:.1%} count as such: where a dataset repeats little, that is "
        "the teacher's own error, and what batches have beyond it bounds what mining added."
    )
    return f"{reports[-1]['sampling']['method']}{floor}"


def _sampling(reports: Sequence[Described]) -> str:
    said = []
    for report in reports:
        for data in report["datasets"]:
            mined = data["batches"]["mined"]
            how = "all" if data["exact"] else f"a sample, seed {report['sampling']['seed']}:"
            said.append(
                f"{data['name']}: {how} {mined['batches']:,} batches with {mined['pairs']:,} pairs"
            )
    return f"Distributions are of {'; '.join(said)}. Made by b3 report."


@cache
def _asset(name: str) -> str:
    return resources.files("b3_core.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html"))


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
