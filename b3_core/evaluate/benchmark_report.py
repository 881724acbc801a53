"""Results of benchmarks as people and programs read them.

    results of arms -> Markdown: hit@1 of each arm, side by side
    BenchmarkResult -> Markdown, beside published rows     -> JSON
                    -> model-index of a model card (YAML)  -> mteb's result files, where asked for

Figures are hit rates; in tables they are in percent, as in papers. Tables are narrow enough for a
page of the Prefect UI, and have no rows for tasks that are not in the local copy.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from b3_core.evaluate import mmeb
from b3_core.evaluate.benchmark import BenchmarkResult, Score
from b3_core.evaluate.published import published_for

_NAMES = {
    "mmeb": "MMEB",
    "flickr30k": "Flickr30k",
    "coco": "COCO 5k",
    "coco-1k": "COCO 1k",
    "urban1k": "Urban1k",
    "msrvtt": "MSR-VTT 1k-A",
    "msvd": "MSVD",
    "didemo": "DiDeMo",
    "vatex": "VATEX",
    "activitynet": "ActivityNet",
}
#: mteb's own tasks: sets of the same name whose queries or media are counted otherwise have none.
_MTEB_KEYS = {"hit@1": "hit_rate_at_1", "hit@5": "hit_rate_at_5", "hit@10": "hit_rate_at_10"}


_MEANS = ("all", "classification", "vqa", "retrieval", "grounding", "in-domain", "out-of-domain")


def side_by_side(found: Mapping[str, Sequence[BenchmarkResult]]) -> str:
    """Write one table of hit@1: MMEB's means and each direction, a column an arm.

    Parameters
    ----------
    found
        Arm -> results of the same benchmarks, in one order.
    """
    lines = list(_table_head(["benchmark", "hit@1 of", *found, "published"]))
    for results in zip(*found.values(), strict=True):
        name = results[0].benchmark
        title, best = _NAMES.get(name, name), published_for(name)[:1]
        if name == "mmeb":
            parts = {mean: [_mean(each.means.get(mean)) for each in results] for mean in _MEANS}
        else:
            scores = zip(*(each.scores for each in results), strict=True)
            parts = {each[0].task: [_percent(score, "hit@1") for score in each] for each in scores}
        for part, cells in parts.items():
            if any(cells):
                known = [row for row in best if part in row.figures]
                beside = [f"{_figure(row.figures, part)} ({row.model})" for row in known]
                lines.append(_row([title, part, *cells, "".join(beside)]))
    return "\n".join(lines) + "\n"


def markdown(results: Sequence[BenchmarkResult], *, model: str = "this model") -> str:
    """Write tables: MMEB by meta-task and by task, the other sets by direction.

    Published rows stand in the same tables. What is missing, failed or left out is said, and a
    mean that lacks tasks is marked with how many it is over.
    """
    parts = []
    for result in results:
        lines = _mmeb_lines(result, model) if result.benchmark == "mmeb" else _lines(result, model)
        title = _NAMES.get(result.benchmark, result.benchmark)
        parts.append("\n".join([f"### {title}", "", *lines, *_remarks(result)]))
    return "\n\n".join(parts) + "\n"


def as_json(results: Sequence[BenchmarkResult]) -> list[dict[str, Any]]:
    """Return plain dicts: scores, means with what they are over, and published rows."""
    return [
        {
            "benchmark": result.benchmark,
            "complete": result.complete,
            "scores": [asdict(score) for score in result.scores],
            "means": {
                name: {**asdict(mean), "partial": mean.partial}
                for name, mean in result.means.items()
            },
            "published_percent": [asdict(row) for row in published_for(result.benchmark)],
        }
        for result in results
    ]


def model_index(results: Sequence[BenchmarkResult], *, model: str) -> str:
    """Write the ``model-index`` part of a model card's head, of tasks that ran.

    Partial means are left out: a reader of the card would take them for whole ones.
    """
    entries = []
    for result in results:
        title = _NAMES.get(result.benchmark, result.benchmark)
        for score in result.scores:
            if score.metrics and not score.left_out:
                entries.append(_entry(f"{title} {score.task}", score.metrics["hit@1"]))
        for name, mean in result.means.items():
            if not mean.partial:
                entries.append(_entry(f"{title} (mean, {name})", mean.value))
    index = {"model-index": [{"name": model, "results": entries}]}
    return yaml.safe_dump(index, sort_keys=False, allow_unicode=True)


def mteb_results(result: BenchmarkResult, *, revision: str = "local") -> dict[str, dict[str, Any]]:
    """Return result files as mteb lays them out, by file name; of tasks that ran.

    Parameters
    ----------
    revision
        Of the local copy: what is known of where it came from.

    Returns
    -------
    dict
        For each file the content of mteb's ``TaskResult``. Names begin with ``b3_``: they are not
        mteb's tasks, whose data may differ.
    """
    files = {}
    for score in result.scores:
        if not score.metrics:
            continue
        name = f"b3_{result.benchmark}_{score.task}"
        files[f"{name}.json"] = {
            "dataset_revision": revision,
            "task_name": name,
            "mteb_version": None,
            "evaluation_time": score.seconds,
            "kg_co2_emissions": None,
            "scores": {"test": [_mteb_scores(score)]},
        }
    return files


def write_mteb_results(
    results: Sequence[BenchmarkResult], folder: Path, *, revision: str = "local"
) -> list[Path]:
    """Write :func:`mteb_results` into a folder, which is made; only where a caller asks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        for name, content in mteb_results(result, revision=revision).items():
            paths.append(folder / name)
            paths[-1].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return paths


def _mteb_scores(score: Score) -> dict[str, Any]:
    return {
        **{name: score.metrics[ours] for ours, name in _MTEB_KEYS.items()},
        "mrr": score.metrics["mrr"],
        "main_score": score.metrics["hit@1"],
        "hf_subset": "default",
        "languages": ["eng-Latn"],
    }


def _entry(name: str, value: float) -> dict[str, Any]:
    return {
        "task": {"type": "retrieval"},
        "dataset": {"type": "local", "name": name},
        "metrics": [{"type": "hit_rate_at_1", "value": round(100 * value, 2)}],
    }


def _mmeb_lines(result: BenchmarkResult, model: str) -> Iterator[str]:
    yield from _table_head(["mean of all 36 tasks", "hit@1"])
    yield _row([model, _mean(result.means.get("all"))])
    for row in published_for("mmeb"):
        yield _row([f"{row.model} ({row.source})", _figure(row.figures, "all")])
    yield ""
    yield from _table_head(["mean of tasks", "hit@1"])
    for name in _MEANS[1:]:
        if name in result.means:
            yield _row([name, _mean(result.means[name])])
    yield ""
    yield from _table_head(["task", "meta-task", "domain", "hit@1", "queries", "candidates"])
    by_name = {task.name: task for task in mmeb.TASKS}
    for score in result.scores:
        if score.missing:
            continue
        task = by_name[score.task]
        cells = [score.task, task.meta, "in" if task.trained else "out"]
        yield _row([*cells, _percent(score, "hit@1"), *_sizes(score)])


def _lines(result: BenchmarkResult, model: str) -> Iterator[str]:
    head = ["R@1", "R@5", "R@10", "median rank", "queries", "candidates"]
    yield from _table_head(["direction", "model", *head])
    for score in result.scores:
        rates = [_percent(score, f"hit@{k}") for k in (1, 5, 10)]
        median = f"{score.metrics['median_rank']:g}" if score.metrics else ""
        yield _row([score.task, model, *rates, median, *_sizes(score)])
        for row in published_for(result.benchmark):
            if score.task in row.figures:
                name = (
                    f"{row.model} ({row.source})"
                    if row.of == "model"
                    else f"{row.model}, as published"
                )
                yield _row([score.task, name, _figure(row.figures, score.task), "", "", "", "", ""])


def _remarks(result: BenchmarkResult) -> Iterator[str]:
    missing = [score.task for score in result.scores if score.missing]
    lines = []
    if missing:
        lines.append(f"Not in the local copy ({len(missing)}): {', '.join(missing)}.")
    lines += [f"{each.task} failed: {_code(each.error)}" for each in result.scores if each.error]
    left_out = max((score.left_out for score in result.scores), default=0)
    if left_out:
        lines.append(
            f"{left_out} media are not in the local copy, and were left out with captions."
        )
    if any(mean.partial for mean in result.means.values()):
        lines.append("Means marked k/n are over k of n tasks, and not to be compared.")
    for line in lines:
        yield ""
        yield line


def _code(text: str) -> str:
    """Quote what somebody else wrote, so that none of it is taken for Markdown."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def _table_head(cells: Sequence[str]) -> Iterator[str]:
    yield _row(cells)
    yield "|" + "---|" * len(cells)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _sizes(score: Score) -> tuple[str, str]:
    return (f"{score.queries:,}", f"{score.candidates:,}") if score.metrics else ("", "")


def _percent(score: Score, metric: str) -> str:
    if score.metrics:
        return f"{100 * score.metrics[metric]:.1f}"
    return "missing" if score.missing else "failed"


def _mean(mean: mmeb.Mean | None) -> str:
    if mean is None:
        return ""
    return f"{100 * mean.value:.2f}" + (f" ({mean.ran}/{mean.of})" if mean.partial else "")


def _figure(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:g}" if name in figures else ""
