"""What is to be made, and how much work it is.

    plan, rows of each dataset -> Job: a kind of stage, the amount of work, whether it is done

Work is counted in terms that do not depend on the machine: rows, pairs of rows, steps, texts.

Legend: N rows of a dataset.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from b3_core.artifacts import canonical_json
from b3_core.cells import LIST_ROWS
from b3_core.config import BatchSpec, MiningSpec, PipelineSpec
from b3_core.learn import Evaluation, Student
from b3_core.mine import Communities, Graph, ManifestOf
from b3_core.plan import Leg, Plan
from b3_core.ranking import LabelRanks, Ranking
from b3_core.stage import Stage
from b3_core.store import ArtifactStore

#: Kinds in the order of their making; what a person reads of each.
KINDS = (
    *("pairs", "shards", "embeddings", "ranks", "graph", "communities", "manifest"),
    *("student", "evaluation", "results"),
)

Work = Mapping[str, float]
"""Term -> amount: ``once`` (1 of each), ``rows``, ``square`` (pairs of rows that are scored),
``steps``, ``texts`` (to be embedded), ``scores`` (queries times entries)."""


@dataclass(frozen=True)
class Rows:
    """How many rows a dataset has."""

    train: int
    heldout: int


@dataclass(frozen=True)
class Job:
    """One artifact that a run makes, or has made."""

    kind: str
    key: str
    """What decides the cost beside the amount of work: kind, dataset, settings without the seed."""
    dataset: str
    work: Work
    done: bool
    held: float = math.inf
    """Rows that a process holds at once, at most: those of two cells where it is mined in cells."""


def jobs_of(
    plan: Plan, spec: PipelineSpec, totals: Mapping[str, Rows], store: ArtifactStore | None
) -> list[Job]:
    """List what a plan makes after its pairs, in the order of its making.

    Parameters
    ----------
    totals
        Rows of each dataset: those of the plan's own, or of the data that it stands for.
    store
        Where some of it may be done; None: nothing is.
    """
    found: list[Job] = []
    for leg in plan.legs:
        found += _mined(leg, totals, store, spec.mining)
        found += _manifests(leg.manifests.values(), totals, store)
        found += [_student(each, totals, store) for each in leg.students.values()]
    found += [_evaluation(each, spec, totals, store) for each in plan.evaluations.values()]
    found.append(Job("results", "results", spec.name, {"once": 1}, _done(plan.results, store)))
    return found


def key_of(stage: Stage) -> str:
    """Say what decides the cost of a stage beside the amount of work.

    Names of datasets stay in it, for their texts are of different lengths; seeds do not.
    """
    settings = json.loads(canonical_json(stage.settings))
    settings.pop("seed", None)
    if isinstance(stage, Student | Evaluation):
        # A step costs what its batch does, whichever rows are in it.
        made = stage if isinstance(stage, Student) else stage.student
        settings["batch"] = [made.manifest.batching.batch_size, made.manifest.batching.negatives]
        settings.pop("span", None)
    if isinstance(stage, ManifestOf):
        settings["arm"] = stage.mining.partitioner
    kind = getattr(stage, "student", None) if stage.name == "shard" else None
    return canonical_json(
        [stage.name, stage.dataset, settings, "student" if kind is not None else ""]
    ).decode()


def _mined(
    leg: Leg,
    totals: Mapping[str, Rows],
    store: ArtifactStore | None,
    mining: MiningSpec,
) -> Iterable[Job]:
    cell_rows = mining.cell_rows
    held = math.inf if cell_rows is None else 2.0 * cell_rows
    for vectors in leg.vectors:
        done = _done(vectors, store)
        rows = totals[vectors.dataset].train
        shards = vectors.shards
        lacking = [shard for shard in shards if not (done or _done(shard, store))]
        cut = sum(shard.stop - shard.start for shard in shards)
        # A plan of a sample has fewer: all of them stand for all of the rows.
        scale = rows / cut if cut and store is None else 1.0
        todo = scale * sum(shard.stop - shard.start for shard in lacking)
        if shards:
            work = {"rows": todo or float(rows)}
            yield Job("shards", key_of(shards[0]), vectors.dataset, work, not lacking)
        yield _of_rows("embeddings", vectors, rows, done=done)
    for ranks in leg.ranks:
        rows = totals[ranks.dataset].train
        celled = cell_rows is not None and rows > cell_rows and not isinstance(ranks, LabelRanks)
        among = min(rows, mining.cell_lists * LIST_ROWS) if celled else rows
        job = _ranks(ranks, rows, among, done=_done(ranks, store))
        yield replace(job, held=held) if celled else job
    stages: Iterable[Graph | Communities] = (*leg.graphs, *leg.communities)
    for stage in stages:
        kind = "graph" if isinstance(stage, Graph) else "communities"
        rows = totals[stage.dataset].train
        celled = cell_rows is not None and rows > cell_rows
        made = _of_rows(kind, stage, rows, done=_done(stage, store))
        in_cells = celled and stage.ref.spec.task != "classification"
        yield replace(made, held=held) if in_cells else made


def _ranks(stage: Ranking, rows: int, among: int, *, done: bool) -> Job:
    work = {"once": 1.0, "rows": float(rows), "square": float(rows) * among}
    if isinstance(stage, LabelRanks) or getattr(stage, "method", "exact") != "exact":
        del work["square"]
    return Job("ranks", key_of(stage), stage.dataset, work, done)


def _of_rows(kind: str, stage: Stage, rows: float, *, done: bool) -> Job:
    return Job(kind, key_of(stage), stage.dataset, {"once": 1, "rows": float(rows)}, done)


def _manifests(
    stages: Iterable[ManifestOf], totals: Mapping[str, Rows], store: ArtifactStore | None
) -> Iterable[Job]:
    for stage in stages:
        rows = sum(totals[ref.spec.name].train for ref in stage.refs)
        yield _of_rows("manifest", stage, rows, done=_done(stage, store))


def steps_of(batching: BatchSpec, rows: Iterable[int]) -> int:
    """Count the batches of a manifest: of one dataset each, unless they are drawn across all."""
    sizes = [sum(rows)] if batching.mixing == "across" else rows
    return batching.epochs * sum(each // batching.batch_size for each in sizes)


def _student(stage: Student, totals: Mapping[str, Rows], store: ArtifactStore | None) -> Job:
    each = [totals[ref.spec.name].train for ref in stage.manifest.refs]
    steps = steps_of(stage.manifest.batching, each)
    return Job(
        "student", key_of(stage), stage.dataset, {"once": 1, "steps": steps}, _done(stage, store)
    )


def _evaluation(
    stage: Evaluation,
    spec: PipelineSpec,
    totals: Mapping[str, Rows],
    store: ArtifactStore | None,
) -> Job:
    each = [totals[ref.spec.name] for ref in stage.student.manifest.refs]
    ways = 2 if spec.evaluate.reverse else 1
    work = {
        "once": 1.0,
        "texts": float(sum(ways * (rows.train + 2 * rows.heldout) for rows in each)),
        "scores": float(sum(ways * rows.heldout * (rows.train + rows.heldout) for rows in each)),
    }
    return Job("evaluation", key_of(stage), stage.dataset, work, _done(stage, store))


def _done(stage: Stage, store: ArtifactStore | None) -> bool:
    return store is not None and store.find(stage.address) is not None
