"""What each stage costs as data grows: seconds, memory, and the power of N they grow with.

    a plan whose stages are done -> their records -> a row a stage -> rows of several sizes -> fit

Nothing is timed here: every stage records what it took of the process that ran it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from b3_core.plan import Plan
from b3_core.stage import Stage
from b3_core.store import ArtifactStore

#: Stages that take less than this are mostly start-up, and say nothing about growth.
_LEAST_SECONDS = 0.2
_LEAST_MB = 20.0


def cost_rows(plan: Plan, store: ArtifactStore) -> list[dict[str, Any]]:
    """Read the records of a plan with one dataset and without a refresh.

    Returns
    -------
    list of dict
        For each stage ``stage``; ``rows`` of training; ``seconds``, the sum over its artifacts,
        whichever process made them; ``peak_mb``, the most resident in one process; ``above_mb``,
        the most by which that rose above what was resident when the stage began.
    """
    (leg,) = plan.legs
    rows = leg.vectors[0].ref.rows
    stages: dict[str, Iterable[Stage]] = {
        "shards": leg.vectors[0].shards,
        "embeddings": leg.vectors,
        "ranks": leg.ranks,
        "graph": leg.graphs,
        "communities": leg.communities,
        "manifest": plan.manifests,
        "student": plan.students,
        "evaluation": plan.evaluations.values(),
    }
    found = []
    for stage, made in stages.items():
        records = [store.get(each.address).record for each in made]
        found.append(
            {
                "stage": stage,
                "rows": rows,
                "seconds": round(sum(record["seconds"] for record in records), 3),
                "peak_mb": max(record["peak_mb"] for record in records),
                "above_mb": max(record["peak_mb"] - record["before_mb"] for record in records),
            }
        )
    return found


def exponents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fit ``a * N ** b`` to each stage's seconds and memory, by least squares of logarithms.

    Returns
    -------
    list of dict
        For each stage ``stage``, ``seconds_exponent`` and ``memory_exponent`` (of ``above_mb``);
        None where fewer than two sizes took enough to tell.
    """
    return [
        {
            "stage": stage,
            "seconds_exponent": _slope(rows, stage, "seconds", least=_LEAST_SECONDS),
            "memory_exponent": _slope(rows, stage, "above_mb", least=_LEAST_MB),
        }
        for stage in dict.fromkeys(row["stage"] for row in rows)
    ]


def _slope(
    rows: Sequence[Mapping[str, Any]], stage: str, figure: str, *, least: float
) -> float | None:
    points = [
        (row["rows"], row[figure]) for row in rows if row["stage"] == stage and row[figure] >= least
    ]
    if len({size for size, _ in points}) < 2:
        return None
    size_P, value_P = np.log(np.array(points, np.float64)).T
    return round(float(np.polyfit(size_P, value_P, 1)[0]), 2)
