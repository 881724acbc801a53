"""What a flow returns, read from the store: the same whether it ran now or long ago.

No Prefect here. A command whose work is all there answers from these without starting anything.
"""

from collections.abc import Callable, Iterable
from typing import Any

from b3_core.benchmarks import read_table
from b3_core.config import PipelineSpec
from b3_core.mine import ManifestOf
from b3_core.plan import Plan
from b3_core.promote import Promotion
from b3_core.report.advice import gravest
from b3_core.results import read_results
from b3_core.stage import Stage, missing
from b3_core.store import ArtifactStore

Outcome = dict[str, Any]


def mined(plan: Plan, store: ArtifactStore) -> Outcome:
    """Return the URIs of the first leg's ``manifests``, arms first; and ``warnings``, if any."""
    return {"manifests": _uris(plan.legs[0].manifests.values(), store), **_warned(plan, store)}


def trained(plan: Plan, store: ArtifactStore) -> Outcome:
    """Return the URIs of the final ``students``, arms first, and of all legs' ``manifests``.

    And ``warnings``, if any.
    """
    final = [evaluation.student for evaluation in plan.evaluations.values()]
    found = {"manifests": _uris(plan.manifests, store), "students": _uris(final, store)}
    return {**found, **_warned(plan, store)}


def evaluated(plan: Plan, store: ArtifactStore) -> Outcome:
    """Return ``arms``, a row each, and ``differences`` between them; and ``warnings``, if any."""
    return {**read_results(store.get(plan.results.address)), **_warned(plan, store)}


def whole(plan: Plan, store: ArtifactStore) -> Outcome:
    """Return everything the three flows return."""
    return {**evaluated(plan, store), **trained(plan, store)}


OF_FLOW: dict[str, Callable[[Plan, ArtifactStore], Outcome]] = {
    "mine": mined,
    "train": trained,
    "evaluate": evaluated,
    "pipeline": whole,
}


def if_done(flow: str, spec: PipelineSpec) -> Outcome | None:
    """Return what ``flow`` would return if the store holds all its work, else None."""
    store = ArtifactStore(spec.store.root)
    plan = Plan.in_store(spec, store)
    if plan is None:
        return None
    needed: dict[str, Iterable[Stage]] = {
        "mine": plan.legs[0].manifests.values(),
        "train": [*plan.manifests, *plan.students],
        "evaluate": [plan.results],
        "pipeline": [*plan.manifests, *plan.students, plan.results],
    }
    if missing(needed[flow], store):
        return None
    judged = flow in ("evaluate", "pipeline")
    table = plan.benchmarks(spec) if judged else None
    if table is not None and missing([table], store):
        return None
    promoted: Outcome = {}
    if spec.promote is not None and judged:
        candidate = plan.evaluations[spec.promote.arm, spec.seeds[0]]
        promotion = Promotion(store, spec.name, spec.promote)
        if not promotion.decided(candidate):
            return None
        promoted = {"promotion": promotion.last(candidate)}
    found = {**OF_FLOW[flow](plan, store), **promoted}
    return found if table is None else {**found, **read_table(store.get(table.address))}


def _warned(plan: Plan, store: ArtifactStore) -> Outcome:
    """Return what to know of the datasets and batches before figures are believed, if anything."""
    first: dict[str, ManifestOf] = {}
    for (arm, _), made in plan.legs[0].manifests.items():
        first.setdefault(arm, made)
    refs = next(iter(first.values())).refs
    found = [said for ref in refs for said in ref.warnings(store)]
    for arm, made in first.items():
        found += [f"{said} (arm {arm})" for said in _gravest(made, store)]
    return {"warnings": found} if found else {}


def _gravest(made: ManifestOf, store: ArtifactStore) -> list[str]:
    """Return of what `b3 report` advises what says that an arm mined next to nothing."""
    if not made.mining.mines(made.batching):
        return []
    found = []
    for variants in made.partitions:
        part = variants[made.variant_of[-1]]
        graph, communities = store.find(part.graph.address), store.find(part.address)
        if graph is None or communities is None:  # only manifests are needed to be up to date
            continue
        figures = {
            "name": part.dataset,
            "rows": part.ref.rows,
            "labelled": part.ref.spec.task == "classification",
            "p": part.graph.cutoff,
            "m": made.mining.m,
            "partitioner": made.mining.partitioner,
            "edges": {"isolated": graph.counts["isolated"] / part.ref.rows},
            "communities": communities.figures,
        }
        found += gravest(figures)
    return found


def _uris(stages: Iterable[Stage], store: ArtifactStore) -> list[str]:
    return [store.get(stage.address).uri for stage in stages]
