"""The flow ``scale``: drawn rows, mined in cells and, where that fits, exactly or in one piece."""

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from b3_core import quality, usage
from b3_core.artifacts import Address
from b3_core.bench import scale as bench
from b3_core.celled import CelledRanks, ranking_of
from b3_core.communities import Partition
from b3_core.config import DatasetSpec, MiningSpec, PipelineSpec
from b3_core.dataset_stage import PairsRef
from b3_core.neighbours import RankTable
from b3_core.ranking import Ranking
from b3_core.ray_session import TASKS_AT_ONCE, session
from b3_core.seams import CelledCommunities, communities_of
from b3_core.stage import Stage
from b3_core.store import ArtifactStore
from flows.mine import make_stage


@flow(
    name="scale", task_runner=ThreadPoolTaskRunner(max_workers=TASKS_AT_ONCE), persist_result=False
)
def scale(
    spec: PipelineSpec, real: Address, rows: Sequence[int], *, exact_up_to: int, whole_up_to: int
) -> list[Any]:
    """Mine drawn rows of each size; return a row a size."""
    store = ArtifactStore(spec.store.root)
    found = []
    for size in rows:
        ways = {"cells": spec.mining}
        if size <= exact_up_to:
            ways["exact"] = spec.mining.model_copy(update={"cell_lists": size})
        if size <= whole_up_to:
            ways["whole"] = spec.mining.model_copy(update={"cell_rows": None})
        found.append(_one(spec, real, size, ways, store=store))
    return found


def _one(
    spec: PipelineSpec,
    real: Address,
    size: int,
    ways: Mapping[str, MiningSpec],
    *,
    store: ArtifactStore,
) -> dict[str, Any]:
    drawn = bench.DrawnPairs(size)
    dataset = DatasetSpec(name=drawn.dataset, uri="drawn", query="query", positive="positive")
    ref = PairsRef.of(dataset, drawn.run(store))
    vectors = bench.DrawnVectors(ref, real)
    vectors.run(store)
    made = store.get(vectors.address)
    sides = made.array("query.npy"), made.array("positive.npy")
    p, mining = spec.mining.cutoff("retrieval"), spec.mining
    sample = bench.sample_exactly(sides, group_N=ref.group_N(store), width=p + mining.m)
    found: dict[str, Any] = {"rows": size, "width": sides[0].shape[1]}
    made_by: dict[str, Partition] = {}
    for name, how in ways.items():
        found[name] = _mined(spec, ranking_of(ref, vectors.address, how), how, store)
        made_by[name] = Partition.load(store.get(found[name].pop("address")))
        found[name] |= bench.partners(made_by[name], *sample, p=p)
    *_, best = ways  # of all ranks are exact, but those of cells
    if best != "cells":
        exact = ranking_of(ref, vectors.address, ways[best]).address
        ranks = RankTable.load(store.get(exact))
        for name, partition in made_by.items():
            counted = quality.describe(partition, ranks, p=p, m=mining.m)
            found[name] |= {each: counted[each] for each in ("window", "too_hard")}
        found["window_loss"] = round(1 - found["cells"]["window"] / found[best]["window"], 4)
    return found


def _mined(
    spec: PipelineSpec, table: Ranking, mining: MiningSpec, store: ArtifactStore
) -> dict[str, Any]:
    communities = communities_of(table, mining, spec.seeds[0])
    started = time.monotonic()
    with session(spec.compute) as ray, usage.tree_peak() as peak:
        for stage in (table, communities.graph, communities):
            make_stage(stage, ray, store)
    return {
        "stages": bench.stage_rows(_parts(table, communities, store), store),
        "wall_seconds": round(time.monotonic() - started, 1),
        "peak_mb": round(peak.mb),
        "address": communities.address,
    }


def _parts(table: Ranking, communities: Any, store: ArtifactStore) -> dict[str, list[Stage]]:
    found: dict[str, list[Stage]] = {}
    if isinstance(table, CelledRanks) and isinstance(communities, CelledCommunities):
        waves = itertools.chain(table.waves(store), communities.own_waves(store))
        for part in itertools.chain.from_iterable(waves):
            found.setdefault(part.name, []).append(part)
    whole: tuple[Stage, ...] = (table, communities.graph, communities)
    return found | {stage.name: [stage] for stage in whole}
