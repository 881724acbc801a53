"""A forecast beside what its run took: each stage's seconds, memory and disk.

forecast, the plan whose stages are done -> their records -> a row a stage: predicted, real
"""

import itertools
from collections.abc import Iterable
from typing import Any

from b3_core.artifacts import Artifact
from b3_core.forecast.predict import Forecast
from b3_core.plan import Plan
from b3_core.stage import Stage
from b3_core.store import ArtifactStore

#: A stage that took less is not judged: its time is start-up and the clock's grain.
LEAST_SECONDS = 2.0
#: How far off a prediction may be.
WITHIN = 0.30


def compared(made: Forecast, plan: Plan, store: ArtifactStore) -> list[dict[str, Any]]:
    """Compare a forecast with the records of its run.

    Returns
    -------
    list of dict
        For each kind of stage ``stage``, ``predicted`` and ``real`` seconds of work, summed over
        artifacts, their ``ratio``; ``within``, whether that is within 30 % (None for a stage of
        less than two seconds); ``predicted_mb`` and ``real_mb`` of files.
    """
    rows = []
    for stage in made.stages:
        records = list(_made(stage.stage, plan, store))
        real = sum(float(artifact.record["seconds"]) for artifact in records)
        size = sum(file.size for artifact in records for file in artifact.files.values())
        ratio = stage.work_seconds / real if real else None
        judged = max(real, stage.work_seconds) >= LEAST_SECONDS
        rows.append(
            {
                "stage": stage.stage,
                "artifacts": len(records),
                "predicted": stage.work_seconds,
                "real": round(real, 2),
                "ratio": ratio and round(ratio, 2),
                "within": abs(stage.work_seconds - real) <= WITHIN * real if judged else None,
                "predicted_mb": round(1000 * stage.disk_gb, 1),
                "real_mb": round(size / 1e6, 1),
                "peak_mb": max(float(each.record["peak_mb"]) for each in records),
                "predicted_peak_gb": stage.memory_gb,
            }
        )
    return rows


def _made(kind: str, plan: Plan, store: ArtifactStore) -> Iterable[Artifact]:
    legs = plan.legs
    if kind == "pairs":
        return [store.get(vectors.ref.address) for vectors in legs[0].vectors]
    of: dict[str, list[Iterable[Stage]]] = {
        "shards": [each.shards for leg in legs for each in leg.vectors],
        "embeddings": [leg.vectors for leg in legs],
        "ranks": [leg.ranks for leg in legs],
        "graph": [leg.graphs for leg in legs],
        "communities": [leg.communities for leg in legs],
        "manifest": [leg.manifests.values() for leg in legs],
        "student": [leg.students.values() for leg in legs],
        "evaluation": [plan.evaluations.values()],
        "results": [[plan.results]],
    }
    stages = itertools.chain.from_iterable(of[kind])
    return [store.get(stage.address) for stage in stages]
