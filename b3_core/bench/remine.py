"""What it costs to mine a dataset again after a few of its rows changed, and what it gives.

table -> before_and_after: two tables; a share of the rows new, gone or edited
the plans of both, mined -> compare: seconds of each stage, and communities beside those that a
                                     search from scratch finds in the same graph
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from b3_core.communities import Partition
from b3_core.diff import compare_partitions
from b3_core.pairs import rows_before
from b3_core.plan import Leg
from b3_core.stage import Stage
from b3_core.store import ArtifactStore


def changed(
    table: pa.Table,
    others: pa.Table,
    *,
    share: float,
    where: Literal["together", "scattered"],
    rng: np.random.Generator,
) -> pa.Table:
    """Return a table with some rows gone, as many edited, and as many new ones at its end.

    Parameters
    ----------
    table, others
        Columns ``query`` and ``positive``; new rows are the first of ``others``.
    share
        Of the rows, how many differ in all.
    where
        What is gone and edited. ``together``: rows that follow one another, as when a package or a
        product line is renewed; ``scattered``: drawn from all.
    """
    rows = len(table)
    each = max(round(share * rows / 3), 1)
    if where == "together":
        start = int(rng.integers(rows - 2 * each + 1))
        chosen = start + rng.permutation(2 * each)
    else:
        chosen = rng.choice(rows, 2 * each, replace=False)
    gone, edited = chosen[:each], chosen[each:]
    stays, other = np.ones((2, rows), bool)
    stays[gone] = other[edited] = False
    query = pc.if_else(
        pa.array(other), table["query"], pc.binary_join_element_wise(table["query"], "revised", " ")
    )
    after = table.set_column(table.column_names.index("query"), "query", query).filter(stays)
    return pa.concat_tables([after, others.slice(0, each)])


def compare(before: Leg, after: Leg, store: ArtifactStore) -> dict[str, Any]:
    """Read the records of two minings of one dataset with one arm, the second incremental.

    What the second made is deleted, for the next comparison is to begin with the first again.

    Returns
    -------
    dict
        ``stages``: a row a stage, seconds of the whole mining ``before`` and of ``after``;
        ``rows`` of now, those ``fresh``, ``embedded``; ``communities`` and how many of them were
        ``touched``; ``window``: partners a row has in its window, ``from_scratch`` those it has in
        communities found anew in the same graph; ``partners_kept``: share of the pairs of rows that
        shared a community before, of those where both are still there, and the same for
        communities found anew.
    """
    (vectors,), (part,) = after.vectors, after.communities
    scratch = replace(part, earlier=None).run(store)
    then = Partition.load(store.get(before.communities[0].address)).label_N.astype(np.int64)
    before_N = rows_before(part.ref.table(store), before.vectors[0].ref.table(store))
    found = {
        name: Partition.load(store.get(address)).label_N.astype(np.int64)
        for name, address in (("mended", part.address), ("anew", scratch.address))
    }
    kept_N = before_N >= 0
    kept = {
        name: compare_partitions(then[before_N[kept_N]], label_N[kept_N])["partners_kept"]
        for name, label_N in found.items()
    }
    counts = store.get(part.address).counts
    stages = _stages(before, after, store)
    for made in (vectors, *after.ranks, *after.graphs, part, *after.manifests.values()):
        store.discard(made.address)
    store.discard(scratch.address)
    return {
        "rows": part.ref.rows,
        "fresh": int((~kept_N).sum()),
        "embedded": sum(shard.stop - shard.start for shard in vectors.shards)
        if vectors.earlier
        else part.ref.rows,
        "communities": len(np.unique(found["mended"])),
        "touched": counts.get("touched"),
        "window": counts["window"],
        "window_from_scratch": scratch.counts["window"],
        "partners_kept": kept["mended"],
        "partners_kept_from_scratch": kept["anew"],
        "stages": stages,
    }


def _stages(before: Leg, after: Leg, store: ArtifactStore) -> list[dict[str, Any]]:
    def seconds(stages: Sequence[Stage]) -> float:
        return round(sum(float(store.get(each.address).record["seconds"]) for each in stages), 3)

    def of(leg: Leg) -> dict[str, Sequence[Stage]]:
        return {
            "shards": leg.vectors[0].shards,
            "embeddings": leg.vectors,
            "ranks": leg.ranks,
            "graph": leg.graphs,
            "communities": leg.communities,
            "manifest": list(leg.manifests.values()),
        }

    whole, again = (
        {stage: seconds(made) for stage, made in of(leg).items()} for leg in (before, after)
    )
    rows = [(stage, whole[stage], again[stage]) for stage in whole]
    rows.append(("all", round(sum(whole.values()), 3), round(sum(again.values()), 3)))
    return [dict(zip(("stage", "whole", "again"), row, strict=True)) for row in rows]
