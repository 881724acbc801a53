"""What the arms of a CONFIG came to: side by side, task by task, and as batches to look at.

Evaluation (all arms and seeds) -> Results: table, paired differences, report, contact sheets
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from b3_core.artifacts import Artifact, Draft
from b3_core.evaluate import compare, retrieval
from b3_core.inputs import Seeing
from b3_core.learn import Evaluation, Student
from b3_core.manifest import Manifest
from b3_core.mine import ManifestOf
from b3_core.progress import Progress
from b3_core.sheet import Cell, contact_sheet
from b3_core.stage import Stage, generator
from b3_core.store import ArtifactStore

Reports = Sequence[Sequence[retrieval.EvalReport]]
"""A list a seed, a report a task."""

_SHOWN = ("random", "b3")  # arms of which a batch is drawn
_SHOWN_ROWS = 64
_SHOWN_SIDE = 128  # pixels


@dataclass(frozen=True)
class Results(Stage):
    """Arms side by side: mean and spread over seeds, and b3 against random, paired."""

    evaluations: tuple[tuple[str, Evaluation], ...]
    name: ClassVar[str] = "results"
    version: ClassVar[int] = 10 * compare.VERSION + 6

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return self.evaluations[0][1].dataset

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"arms": [arm for arm, _ in self.evaluations]}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {
            f"{arm}/{evaluation.student.manifest.seed}": evaluation.address.fingerprint
            for arm, evaluation in self.evaluations
        }

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        runs_of: dict[str, list[Evaluation]] = {}
        for arm, evaluation in self.evaluations:
            runs_of.setdefault(arm, []).append(evaluation)
        reports_of = {arm: [_reports(store, run) for run in runs] for arm, runs in runs_of.items()}
        effort_of = {
            arm: _effort([run.student for run in runs], store) for arm, runs in runs_of.items()
        }
        whole = _table(reports_of, effort_of)
        tasks = [report.task for report in next(iter(reports_of.values()))[0]]
        by_task = {}
        for number, task in enumerate(tasks if len(tasks) > 1 else ()):
            alone = {arm: [[run[number]] for run in runs] for arm, runs in reports_of.items()}
            by_task[task] = _table(alone, effort_of, also=("hit@1",))
        draft.write_json("results.json", {**whole, **({"tasks": by_task} if by_task else {})})
        refs = self.evaluations[0][1].student.manifest.refs
        cautions = [said for ref in refs for said in ref.warnings(store)]
        text = _report("Held-out queries against all positives", whole, cautions)
        text += "".join("\n" + _report(task, table) for task, table in by_task.items())
        draft.path("report.md").write_text(text, encoding="utf-8")
        for arm in _SHOWN:
            shown = _shown(store, runs_of[arm][0].student.manifest) if arm in runs_of else None
            if shown is not None:
                draft.path(f"batch-{arm}.png").write_bytes(
                    contact_sheet(shown, f"a batch of {arm}")
                )


def read_results(artifact: Artifact) -> dict[str, Any]:
    """Return the table of arms, the differences, and the URIs of the report and of pictures."""
    results: dict[str, Any] = json.loads(artifact.path("results.json").read_bytes())
    uri_of = {name: f"{artifact.uri}/{stored.path}" for name, stored in artifact.files.items()}
    pictures = {name: uri for name, uri in uri_of.items() if name.endswith(".png")}
    return {
        **results,
        "report": uri_of["report.md"],
        **({"pictures": pictures} if pictures else {}),
    }


def _reports(store: ArtifactStore, run: Evaluation) -> list[retrieval.EvalReport]:
    artifact = store.get(run.address)
    return [retrieval.EvalReport.load(artifact, task) for task in artifact.counts["tasks"]]


def _table(
    reports_of: Mapping[str, Reports],
    effort_of: Mapping[str, Mapping[str, Any]],
    *,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """Return ``arms``, means over tasks, and ``differences`` in MRR; ``also`` in other metrics."""
    means = {arm: [_mean_metrics(reports) for reports in runs] for arm, runs in reports_of.items()}
    scores = {
        (arm, metric): np.stack([_scores(reports, metric) for reports in runs])
        for arm, runs in reports_of.items()
        for metric in ("mrr", *also)
    }
    first = next(iter(reports_of.values()))[0]
    tasks = [report.drawn for report in first]
    rows = [
        {**row, **effort_of[arm]} for arm, row in zip(means, compare.arms_table(means), strict=True)
    ]
    for (arm, metric), score_SQ in scores.items():
        row = next(row for row in rows if row["arm"] == arm)
        row |= _interval(score_SQ, f"{metric}_", tasks=tasks)
    # Every arm against the control, and b3 against every other.
    compared = [(arm, "random") for arm in means if arm != "random" and "random" in means]
    compared += [("b3", arm) for arm in means if arm not in ("b3", "random") and "b3" in means]
    differences = {
        metric: {
            f"{ours} - {control}": _interval(
                scores[ours, metric], other=scores[control, metric], tasks=tasks
            )
            for ours, control in compared
        }
        for metric in ("mrr", *also)
    }
    others = {f"{metric}_differences": differences[metric] for metric in also}
    return {"arms": rows, "differences": differences["mrr"], "metric": "mrr", **others}


def told(table: Mapping[str, Any]) -> list[str]:
    """Say every difference of a table of arms, metric by metric."""
    said = compare.sentences(table["differences"], table["metric"])
    for metric in retrieval.METRICS:
        said += compare.sentences(table.get(f"{metric}_differences", {}), metric)
    return said


def _mean_metrics(reports: Sequence[retrieval.EvalReport]) -> dict[str, float]:
    found = [report.metrics for report in reports]
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def _scores(reports: Iterable[retrieval.EvalReport], metric: str) -> npt.NDArray[np.float64]:
    """Return a score a query, of all tasks: 1 / rank, or whether it is first."""
    rank_Q = np.concatenate([report.rank_Q for report in reports])
    return 1.0 / rank_Q if metric == "mrr" else (rank_Q == 1).astype(np.float64)


def _shown(store: ArtifactStore, made: ManifestOf) -> list[Cell] | None:
    """Return the last batch of a manifest to look at; None where its datasets have no pictures."""
    plan = Manifest.load(store.get(made.address)).plan
    slots = [part[-1, :_SHOWN_ROWS] for part in (plan.dataset_SB, plan.row_SB, plan.community_SB)]
    there = {dataset: made.refs[dataset] for dataset in np.unique(slots[0])}
    shelf_of = {dataset: ref.shelf(store) for dataset, ref in there.items()}
    if not any(shelf_of.values()):
        return None
    seeing = Seeing(_SHOWN_SIDE, 1)
    inputs_of = {
        (dataset, side): ref.table(store).inputs(side, shelf_of[dataset], seeing=seeing)
        for dataset, ref in there.items()
        for side in ("query", "positive")
    }
    return [
        Cell(inputs_of[dataset, "query"][row], inputs_of[dataset, "positive"][row], community)
        for dataset, row, community in zip(*(part.tolist() for part in slots), strict=True)
    ]


def _interval(
    score_SQ: npt.NDArray[np.float64],
    prefix: str = "",
    *,
    tasks: Sequence[compare.Task],
    other: npt.NDArray[np.float64] | None = None,
) -> dict[str, float]:
    """Return the interval of mean scores, a row a seed and a column a query, or of a difference.

    The mean is over tasks, as the metrics' is: a dataset of few queries counts as much as another.
    """
    against_SQ = np.zeros_like(score_SQ) if other is None else other
    found = compare.paired_bootstrap(
        score_SQ, against_SQ, rng=generator(0, "bootstrap"), tasks=tasks
    )
    bounds = {f"{prefix}low": found.low, f"{prefix}high": found.high}
    return bounds if other is None else {"mean": found.mean, **bounds, "seeds": len(score_SQ)}


def _effort(students: Sequence[Student], store: ArtifactStore) -> dict[str, Any]:
    """Say what an arm's training took: seeds, batches, examples and mean seconds of a run."""
    counts = [store.get(student.address).counts for student in students]
    return {
        "seeds": [student.manifest.seed for student in students],
        "batch_size": students[0].manifest.batching.batch_size,
        "examples_seen": counts[0]["examples_seen"],
        "seconds": round(float(np.mean([count["train_seconds"] for count in counts])), 2),
    }


def _report(title: str, table: Mapping[str, Any], cautions: Sequence[str] = ()) -> str:
    """Write a table of arms and their differences as Markdown, and what to know before."""
    rows = table["arms"]
    metrics = [name for name in retrieval.METRICS if name in rows[0]]
    lines = [
        f"# {title}",
        "",
        *(f"**Warning**: {said}." for said in cautions),
        *([""] if cautions else []),
        f"Mean and standard deviation over seeds; {_equal(rows)}.",
        "",
        f"| arm | {' | '.join(metrics)} | examples seen | seeds |",
        "|" + "-|" * (len(metrics) + 3),
    ]
    for row in rows:
        cells = [_with_spread(row, name) for name in metrics]
        seeds = len(row["seeds"])
        lines.append(f"| {row['arm']} | {' | '.join(cells)} | {row['examples_seen']:,} | {seeds} |")
    lines.append("")
    lines += [f"- {sentence}" for sentence in told(table)]
    return "\n".join(lines) + "\n"


def _equal(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say whether arms saw as many examples, in batches of the same size."""
    words = {"examples_seen": "examples", "batch_size": "batch size"}
    differs = [key for key in words if len({row[key] for row in rows}) > 1]
    equal = "".join(f", {word}" for key, word in words.items() if key not in differs)
    values = {key: ", ".join(f"{row['arm']} {row[key]:,}" for row in rows) for key in differs}
    unequal = [f"; not equal: {words[key]} ({each})" for key, each in values.items()]
    return f"equal initial weights{equal}{''.join(unequal)}"


def _with_spread(row: Mapping[str, Any], metric: str) -> str:
    spread = row[f"{metric}_spread"]  # None for a single seed
    return f"{row[metric]:.4f}" + ("" if spread is None else f" ± {spread:.4f}")
