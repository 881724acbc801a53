"""Choosing how to mine: candidates, and who is left after each round of short trainings.

    CONFIG -> candidates: arms that differ in hardness, partition and curriculum
    a round: all that are left, trained on the same seeds beside the random arm
    MRR over seeds -> survivors: the better half goes on, to more seeds
    the winner, beside itself mined again with the student after an epoch -> CONFIG

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) with seeds as the resource: every
training sees the same number of examples, and what differs between rounds is how surely an arm is
known. The default is among the candidates and never drops out before the last round, so that the
table says what choosing was worth. Mining again embeds all rows once more, with every student: it
is tried on the winner alone.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from b3_core.config import ArmSpec, BatchSpec, Phase, PipelineSpec
from b3_core.errors import InputError

DEFAULT = "default"
_SLIVER = 1e-9  # of an epoch, which sums of fractions may be off

#: What is tried for each key; a candidate takes one of each. Whole numbers of random epochs first.
SPACE: dict[str, tuple[Any, ...]] = {
    "p": (0, 10, 30),
    "m": (30, 100),
    "k": (8, 16, 32),
    "graph": ("mutual", "union"),
    "partitioner": ("leiden", "metis"),
    "repulsion": (0.0, 1.0),
    "evenness": (0.0, 1.0),
    "random_epochs": (0, 1),
    "random_share": (0.0, 0.5),
}


def trials_of(spec: PipelineSpec, *, held_in: bool) -> PipelineSpec:
    """Return CONFIG as candidates are tried with it: for their MRR, and for nothing else.

    ``held_in``: they are judged on rows of the training files, whatever ``eval_uri`` names. What
    CONFIG itself keeps back or holds out of such files is kept back: it is for the report.
    """
    datasets = spec.datasets
    if held_in:
        datasets = tuple(each.model_copy(update={"eval_uri": None}) for each in datasets)
    changed: dict[str, Any] = {"benchmarks": ()}
    if any(each.eval_uri is None for each in spec.datasets):
        # One share of both would be rounded once where a run rounds twice: a group too many or few.
        changed["trial"] = True
    judged = spec.evaluate.model_copy(update=changed)
    return spec.model_copy(update={"datasets": datasets, "evaluate": judged, "promote": None})


def candidates(spec: PipelineSpec, count: int, *, rng: np.random.Generator) -> list[ArmSpec]:
    """Draw ``count`` arms from ``SPACE`` without repeating one; CONFIG's own comes first.

    Those whose communities do not fit into batches, or whose random share is less than a
    community of a batch, are left out, and so are those that CONFIG's own arms cannot go with.

    Raises
    ------
    InputError
        None fits beside the default.
    """
    size, epochs = spec.batches.batch_size, spec.batches.epochs
    if spec.batches.mixing == "across":
        raise InputError(
            "batches.mixing is across: batches across datasets are random ones, and there is "
            "nothing to choose",
            remedy="set batches.mixing to proportional, round-robin or weighted",
        )
    points = [
        dict(zip(SPACE, values, strict=True)) for values in itertools.product(*SPACE.values())
    ]
    fitting = [
        point
        for point in points
        if size % point["k"] == 0
        and point["random_epochs"] < epochs
        and not 0 < point["random_share"] * size < point["k"]
    ]
    asked = max(count - 1, 0)
    drawn = (_arm(fitting[i], epochs) for i in rng.permutation(len(fitting)))
    found = list(itertools.islice((arm for arm in drawn if _differs(spec, arm)), asked))
    if asked and not found:
        raise InputError(
            f"no candidate fits into batches.batch_size: {size} and the arms of CONFIG",
            expected=f"a multiple of k, of which {', '.join(map(str, SPACE['k']))} are tried",
            remedy="change batches.batch_size, or the mining and batches of own arms",
        )
    return [ArmSpec(name=DEFAULT), *found]


def _differs(spec: PipelineSpec, arm: ArmSpec) -> bool:
    """Say whether CONFIG can have an arm's keys as its own, and is another with them."""
    try:
        made = PipelineSpec.model_validate(chosen(spec, arm))
    except ValidationError:
        return False
    return any(_means(made, task) != _means(spec, task) for task in {d.task for d in spec.datasets})


def _means(spec: PipelineSpec, task: str) -> tuple[Any, ...]:
    """Return what CONFIG comes to for datasets of a task: p has a default for each."""
    mining = spec.mining.model_copy(update={"p": spec.mining.cutoff(task)})
    return mining, spec.batches


def _arm(point: Mapping[str, Any], epochs: int) -> ArmSpec:
    mining = {key: point[key] for key in SPACE if not key.startswith("random_")}
    first = point["random_epochs"]
    phases = [{"epochs": first, "random_share": 1.0}] if first else []
    phases.append({"epochs": epochs - first, "random_share": point["random_share"]})
    name = "-".join(
        [
            f"p{point['p']}m{point['m']}k{point['k']}",
            point["graph"],
            point["partitioner"],
            f"l{point['repulsion']:g}e{point['evenness']:g}",
            f"r{first}s{point['random_share']:g}",
        ]
    )
    return ArmSpec(name=name, mining=mining, batches={"curriculum": phases})


def rounds(arms: int, seeds: int) -> list[tuple[int, int]]:
    """Return (arms, seeds) of each round: half the arms, twice the seeds, to ``seeds`` at last.

    At least two arms meet in the last round, the default being one of them.
    """
    plan = [(arms, 1)]
    while plan[-1][1] < seeds:
        left, used = plan[-1]
        plan.append((max(-(-left // 2), 2), min(2 * used, seeds)))
    return plan


def survivors(table: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Name the ``count`` best arms of a table by MRR, the default among them; random apart."""
    ordered = sorted((row for row in table if row["arm"] != "random"), key=lambda row: -row["mrr"])
    names = [row["arm"] for row in ordered]
    best = names[:count]
    if DEFAULT in names and DEFAULT not in best:
        best[-1] = DEFAULT
    return best


def refreshed(batches: BatchSpec) -> BatchSpec | None:
    """Return a curriculum that mines again after its first epoch; None if it does, or cannot.

    It cannot if it is one epoch long, or only random after that.
    """
    if any(phase.refresh for phase in batches.curriculum):
        return None
    before: list[Phase] = []
    after: list[Phase] = []
    start = 0.0
    for phase in batches.curriculum:
        first = min(phase.epochs, max(1.0 - start, 0.0))  # of it, in the first epoch
        for part, epochs in ((before, first), (after, phase.epochs - first)):
            if epochs > _SLIVER:
                part.append(phase.model_copy(update={"epochs": epochs}))
        start += phase.epochs
    if all(phase.random_share == 1 for phase in after):
        return None
    after[0] = after[0].model_copy(update={"refresh": True})
    return BatchSpec.model_validate(batches.model_dump() | {"curriculum": before + after})


def chosen(spec: PipelineSpec, arm: ArmSpec) -> dict[str, Any]:
    """Return CONFIG as plain data with an arm's keys in place of its own: ready for YAML."""
    mining, batches = spec.model_copy(update={"arms": (arm,)}).arm(arm.name)
    tuned = spec.model_copy(update={"mining": mining, "batches": batches})
    data: dict[str, Any] = tuned.model_dump(mode="json", exclude_defaults=True)
    return data
