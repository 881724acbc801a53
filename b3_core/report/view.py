"""What the page shows of a described manifest: rows of tables, in words and rounded.

    describe's dict (one, or two side by side) -> tables, plots, sentences -> page

Everything here is a string or a plot; the template lays them out.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from b3_core.report.meetings import BINS, LIKELY
from b3_core.report.plots import Plot, Series, distribution

Described = Mapping[str, Any]

NONE = "–"


class Line(NamedTuple):
    """A line of a table of figures."""

    label: str
    cells: list[str]


class Figure(NamedTuple):
    """A figure of in-batch pairs: where it is, how it is written, what it says."""

    path: str
    label: str
    form: str


FIGURES = (
    Figure("similarity.mean", "mean similarity of in-batch pairs", "score"),
    Figure("similarity.q90", "similarity that one pair in ten exceeds", "score"),
    Figure("inside_similarity", "mean similarity inside communities", "score"),
    Figure("hardest.mean", "similarity of a row's hardest partner, mean", "score"),
    Figure("window.mean", "window partners a row, in its batch", "number"),
    Figure("window.inside_mean", "of these in its own community", "number"),
    Figure("window.none", "rows without a window partner", "share"),
    Figure("too_hard.mean", "too-hard partners a row, in its batch", "number"),
    Figure("too_hard.inside_mean", "of these in its own community", "number"),
    Figure("too_hard.none", "rows without a too-hard partner", "share"),
    Figure("false_negatives.share_of_pairs", f"likely false negatives, at {LIKELY}", "share"),
    Figure("false_negatives.share_of_pairs_at.0.90", "the same at 0.90", "share"),
    Figure("false_negatives.share_of_pairs_at.1.00", "the same at 1.00", "share"),
    Figure("false_negatives.share_of_rows", "rows with at least one of them", "share"),
)

ARMS = {"mined": "this manifest", "random": "random", "paper": "paper"}


def pick(nested: Mapping[str, Any] | None, path: str) -> Any:
    """Return what is at ``a.b`` of a nested dict; None where anything on the way is missing."""
    value: Any = nested
    while path:
        if not isinstance(value, Mapping):
            return None
        if path in value:
            return value[path]
        key, _, path = path.partition(".")
        value = value.get(key)
    return value


def written(value: Any, form: str, *, signed: bool = False) -> str:
    """Write a figure: ``score``, ``number``, ``share``, ``count``, ``seconds`` or ``bytes``."""
    sign = "+" if signed else ""
    if value is None:
        return NONE
    match form:
        case "share":
            said = f"{value:{sign}.1%}" if abs(value) < 0.9995 else f"{value:{sign}.0%}"
        case "score" | "number":
            said = f"{value:{sign}.{3 if form == 'score' else 2}f}"
        case "seconds":
            said = _duration(value)
        case "bytes":
            said = _size(value)
        case _:
            said = f"{value:{sign},}"
    return said


def plain(key: str, value: Any) -> str:
    """Write a setting; a curriculum in words."""
    if key.endswith("curriculum") and isinstance(value, list):
        return "; then ".join(_phase(phase) for phase in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NONE if value is None else str(value) or "(blank)"


def _phase(phase: Mapping[str, Any]) -> str:
    share = phase.get("random_share", 0)
    kind = {0: "mined", 1: "at random"}.get(share, f"{share:.0%} at random")
    own = [f"{key} {phase[key]}" for key in ("k", "repulsion") if phase.get(key) is not None]
    epochs = f"{phase['epochs']:g} epoch{'' if phase['epochs'] == 1 else 's'}"
    return ", ".join([f"{epochs} {kind}", *own])


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def arms_lines(dataset: Described) -> list[Line]:
    """Lay one dataset's figures out beside random batches and the paper's."""
    found = [[pick(dataset["batches"][arm], each.path) for arm in ARMS] for each in FIGURES]
    return _lines(found)


def pair_lines(before: Described, after: Described) -> list[Line]:
    """Lay two manifests' figures of one dataset out: A, B, B less A, and random for scale."""
    lines = []
    for each in FIGURES:
        a, b = (pick(side["batches"]["mined"], each.path) for side in (before, after))
        change = None if a is None or b is None else b - a
        drawn = pick(after["batches"]["random"], each.path)
        if a is None and b is None:
            continue
        cells = [written(a, each.form), written(b, each.form)]
        cells += [written(change, each.form, signed=True), written(drawn, each.form)]
        lines.append(Line(each.label, cells))
    return lines


def _lines(found: Sequence[Sequence[Any]]) -> list[Line]:
    return [
        Line(each.label, [written(value, each.form) for value in values])
        for each, values in zip(FIGURES, found, strict=True)
        if any(value is not None for value in values)
    ]


def dataset_lines(datasets: Sequence[Described]) -> list[Line]:
    """Lay datasets out side by side, a line a figure."""
    columns = [_of_dataset(each) for each in datasets]
    labels = dict.fromkeys(label for column in columns for label in column)
    return [Line(label, [column.get(label, NONE) for column in columns]) for label in labels]


def _of_dataset(data: Described) -> dict[str, str]:
    edges, repeats, teacher = data["edges"], data["repeats"] or {}, data["teacher"]
    last = min(data["p"] + data["m"], data["rows"] - 1) - 1  # of N rows each ranks N - 1
    window = f"{data['p']} to {last}" if data["p"] <= last else "none"
    window = "labels" if data["labelled"] else window
    found = {
        "rows": written(data["rows"], "count"),
        "batches": written(data["batches_all"], "count"),
        "rows left out of an epoch": written(data["left_out_share"], "share"),
        "ranks of the window": window,
        "rows whose own positive the teacher ranks first": written(teacher.get("hit@1"), "share"),
        "mean score of the own positive": written(teacher.get("own"), "score"),
        "edges of the window graph": written(edges.get("edges"), "count"),
        "rows without an edge": written(edges.get("isolated"), "share"),
        "rows moved to reach exact k": written(data["moved_share"], "share"),
        "slots that meet their own group": written(repeats.get("same_group"), "count"),
    }
    for place, where in (("in_communities", "communities"), ("in_batches", "batches")):
        kept, drawn = edges.get(place), edges.get(f"random_{place}")
        beside = NONE if kept is None else f"{written(kept, 'share')} ({written(drawn, 'share')})"
        found[f"edges kept in {where} (at random)"] = beside
    if "window_recall" in teacher:
        found["window found by the approximate search"] = written(teacher["window_recall"], "share")
    return found


def epoch_lines(dataset: Described) -> list[Line]:
    """Lay the epochs of one dataset out."""
    return [
        Line(
            str(row["epoch"]),
            [
                written(row["batches"], "count"),
                written(row["random_share"], "share"),
                written(row["similarity"], "score"),
                written(row["window"], "number"),
                written(row["too_hard"], "number"),
                written(row["likely"], "share"),
            ],
        )
        for row in dataset["epochs"]
    ]


def repeat_lines(dataset: Described) -> list[Line]:
    """Say what is the same and meets in a batch, of one dataset."""
    found = dataset["repeats"]
    if found is None:
        return []
    slots = found["slots"]
    return [
        Line(label, [written(found[key], "count"), written(found[key] / whole, "share")])
        for key, label, whole in (
            ("rows_in_groups", "rows of the dataset whose group has another", dataset["rows"]),
            ("same_group", "slots that meet a row of their group (masked)", slots),
            ("repeated_queries", "rows whose query text is there again", dataset["rows"]),
            ("same_query", "slots that meet their query in another group", slots),
            ("repeated_positives", "rows whose positive is there again", dataset["rows"]),
            ("same_positive", "slots that meet their positive in another group", slots),
        )
    ]


def stage_lines(described: Described) -> list[Line]:
    """Lay the stages out: what each took, by its record."""
    lines = []
    for stage in described["stages"]:
        label = f"{stage['stage']} of {stage['dataset']}"
        if stage["stage"] == "manifest":
            label = "manifest"
        if not stage["there"]:
            lines.append(Line(label, [stage["fingerprint"], "gone", NONE, NONE, NONE]))
            continue
        parts = f" ({stage['parts']} parts)" if stage["parts"] > 1 else ""
        lines.append(
            Line(
                label + parts,
                [
                    stage["fingerprint"],
                    written(stage["seconds"], "seconds"),
                    NONE if stage["peak_mb"] is None else _size(1e6 * stage["peak_mb"]),
                    _size(stage["bytes"]),
                    str(stage["finished"]).replace("T", " ").rstrip("Z"),
                ],
            )
        )
    return lines


def lineage_lanes(described: Described) -> list[dict[str, Any]]:
    """Lay out what was made of what, a lane a dataset, each in the order of its making."""
    lanes: dict[str, list[dict[str, Any]]] = {}
    *stages, manifest = described["stages"]
    for stage in stages:
        lanes.setdefault(stage["dataset"], []).append(stage)
    drawn = []
    for name, made in lanes.items():
        known = {stage["stage"] for stage in made}
        steps = [_step(stage, known) for stage in (*made, manifest)]
        steps[-1]["inputs"] = "of " + ", ".join(each["name"] for each in described["datasets"])
        drawn.append({"name": name, "steps": steps})
    return drawn


def _step(stage: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    named = stage.get("lineage", {})
    if "shards" in known:  # which name their rows' content instead
        named = {"shards": ["pairs"], "embeddings": ["shards"]}.get(stage["stage"], named)
    inputs = [name for name in named if name in known]
    took = (
        f"{written(stage['seconds'], 'seconds')}, {_size(stage['bytes'])}"
        if stage["there"]
        else "no longer in the store"
    )
    return {
        "stage": stage["stage"],
        "fingerprint": stage["fingerprint"][:8],
        "there": stage["there"],
        "took": took,
        "inputs": f"from {', '.join(inputs)}" if inputs else "",
    }


def plots(dataset: Described, *, other: Described | None, ident: str) -> list[Plot]:
    """Draw the distributions of one dataset: beside random and paper, or A, B and random."""
    if other is None:
        sides = [(name, dataset["batches"][arm]) for arm, name in ARMS.items()]
    else:
        sides = [("A", dataset["batches"]["mined"]), ("random", other["batches"]["random"])]
        sides.append(("B", other["batches"]["mined"]))
    drawn = []
    for number, (path, title, x_label, y_label) in enumerate(_PLOTS):
        series = [
            Series(name, found)
            for name, side in sides
            if (found := _shares(side, path)) is not None
        ]
        if not series:
            continue
        scores = path.endswith("shares")
        longest = max(len(each.shares) for each in series)
        series = [
            Series(each.name, [*each.shares, *[0.0] * (longest - len(each.shares))])
            for each in series
        ]
        drawn.append(
            distribution(
                series,
                title=title,
                x_label=x_label,
                y_label=y_label,
                start=-1.0 if scores else 0,
                step=2 / BINS if scores else 1,
                ident=f"{ident}-{number}",
                whole=not scores,
            )
        )
    return drawn


_PLOTS = (
    (
        "similarity.shares",
        "How hard in-batch pairs are",
        "teacher's score of a query and another row's positive",
        "share of pairs",
    ),
    (
        "hardest.shares",
        "How hard each row's hardest partner is",
        "highest score among the other rows of the batch",
        "share of rows",
    ),
    ("window.rows_with", "Window partners a row", "partners in the batch", "share of rows"),
    ("too_hard.rows_with", "Too-hard partners a row", "partners in the batch", "share of rows"),
)


def _shares(side: Mapping[str, Any] | None, path: str) -> list[float] | None:
    found = pick(side, path)
    if found is None:
        return None
    total = sum(found) or 1
    return [each / total for each in found]
