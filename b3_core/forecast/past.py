"""What a store's records say: how long the same stages took before, of more or fewer rows."""

from collections.abc import Iterable, Mapping
from typing import Any

from b3_core.artifacts import Artifact
from b3_core.forecast.jobs import Work, key_of
from b3_core.forecast.rates import Timing
from b3_core.learn import Evaluation, Student
from b3_core.mine import ManifestOf
from b3_core.plan import Plan
from b3_core.stage import Past, Stage, cost_of

#: Records of fewer rows than this part of what is asked for say too little of growth.
_LEAST_SHARE = 0.5


def timings_of(plan: Plan, works: Mapping[str, tuple[str, Work]], past: Past) -> list[Timing]:
    """Return timings from records of the same stages with the same settings.

    Parameters
    ----------
    plan
        What is to be made; of the store's own pairs.
    works
        Key of a job -> its kind, and the work that it will be.
    """
    found: list[Timing] = []
    for stage in _stages(plan):
        kind_work = works.get(key_of(stage))
        if kind_work is None:
            continue
        kind, wanted = kind_work
        # What began with an earlier state of a dataset says little of what it takes from scratch.
        records = [
            each
            for each in past.like(stage)
            if _rows(each, stage, past) and "earlier" not in each.record["lineage"]
        ]
        last = records[-1:]  # of several the machine and the code are likest to those of now
        for artifact in last:
            rows = _rows(artifact, stage, past)
            work = _scaled(wanted, rows / max(_whole(stage), 1))
            if work is not None:
                found.append(
                    timing_of(artifact, kind=kind, key=key_of(stage), work=work, source="records")
                )
    return list({(each.key, each.seconds): each for each in found}.values())


def _stages(plan: Plan) -> Iterable[Stage]:
    for leg in plan.legs:
        yield from (*leg.vectors, *leg.ranks, *leg.graphs, *leg.communities)
        yield from leg.manifests.values()
        yield from leg.students.values()
    yield from plan.evaluations.values()


def _whole(stage: Stage) -> int:
    """Return the training rows that a stage is of."""
    if isinstance(stage, Evaluation):
        stage = stage.student
    if isinstance(stage, Student):
        stage = stage.manifest
    if isinstance(stage, ManifestOf):
        return sum(ref.rows for ref in stage.refs)
    return int(stage.ref.rows)  # type: ignore[attr-defined]


def _rows(artifact: Artifact, stage: Stage, past: Past) -> int:
    """Return the training rows that a finished artifact was of; 0 if that cannot be told."""
    counts = artifact.counts
    if "rows" in counts:
        return int(counts["rows"])
    if "steps" in counts:  # whole batches, of all epochs
        made = stage if isinstance(stage, Student) else None
        return int(counts["examples_seen"] / made.manifest.batching.epochs) if made else 0
    digest = artifact.record["lineage"].get("pairs")
    for pairs in past.artifacts(stage.dataset, "pairs"):
        if pairs.counts["digest"] == digest:
            return int(pairs.counts["rows"])
    return 0


def _scaled(work: Work, share: float) -> Work | None:
    """Return the work of a part of the rows; None where it is too small a part to say much."""
    if share < _LEAST_SHARE:
        return None
    grown = {"square": share**2}
    return {
        term: amount * (1.0 if term == "once" else grown.get(term, share))
        for term, amount in work.items()
    }


def timing_of(artifact: Artifact, *, kind: str, key: str, work: Work, **known: Any) -> Timing:
    """Read what the record of a finished stage says it took, its parts included.

    Parameters
    ----------
    known
        ``source`` and ``cold`` of the :class:`Timing`.
    """
    cost = cost_of(artifact)
    return Timing(
        kind,
        key,
        work,
        cost["seconds"],
        peak_mb=cost["peak_mb"],
        bytes=int(cost["bytes"]),
        **known,
    )
