"""What batches are held against: the same rows at random, and the paper's partition of them.

    N rows                       -> a permutation, cut into batches
    the store, the ranks of all  -> manifest of an arm `paper`, else METIS at its defaults, dealt

Legend: N rows, S batches, B rows of a batch.
"""

from typing import Any, NamedTuple

import numpy as np

from b3_core import balance, batches, communities, graph
from b3_core.artifacts import Artifact
from b3_core.config import PAPER_MINING, BatchSpec, MiningSpec, Phase
from b3_core.errors import B3Error, reason
from b3_core.manifest import Manifest
from b3_core.neighbours import RankTable
from b3_core.report.meetings import Rows
from b3_core.report.stored import Upstream

MOST_ROWS = 200_000  # of a dataset that is partitioned for a report: minutes beyond


class Control(NamedTuple):
    """Batches to compare with, and where they come from in words."""

    row_SB: Rows
    community_SB: Rows
    says: str


def drawn(rows: int, batch_size: int, *, batches: int, rng: np.random.Generator) -> Control:
    """Cut a permutation of the rows into batches, at most ``batches`` of them."""
    many = min(rows // batch_size, batches)
    row_SB = rng.permutation(rows)[: many * batch_size].reshape(many, batch_size).astype(np.int32)
    return Control(row_SB, np.full_like(row_SB, -1), "rows of the dataset drawn at random")


def paper(
    own: Artifact, head: dict[str, Any], upstream: Upstream, *, rng: np.random.Generator | None
) -> Control | str:
    """Return batches by the paper's recipe on the same ranks, or why there are none.

    A manifest of an arm `paper` in the same store is taken if there is one, with its k and batch
    size; else its partition is made here, from the same ranks, unless ``rng`` is None.
    """
    if upstream.labelled:
        return "its rule for classification is this project's own: there is no other partition"
    if head["settings"]["mining"]["partitioner"] == PAPER_MINING["partitioner"]:
        return "this manifest is mined by its recipe"
    return _stored(own, head, upstream) or _made(head, upstream, rng=rng)


def _stored(own: Artifact, head: dict[str, Any], upstream: Upstream) -> Control | None:
    """Find a manifest of the same pipeline, rows, ranks and sizes by the paper's partitioner."""
    for artifact in upstream.store.artifacts(own.address.dataset, "manifest"):
        try:
            other = Manifest.read_head(artifact)
        except B3Error:
            continue
        mining = other["settings"]["mining"]
        named = {entry["name"]: entry for entry in other["datasets"]}
        entry = named.get(upstream.name)
        if (
            entry is not None
            and all(entry[key] == upstream.entry[key] for key in ("ranks", "p", "m"))
            and mining["partitioner"] == PAPER_MINING["partitioner"]
            and (other["k"], other["batch_size"]) == (head["k"], head["batch_size"])
        ):
            plan = Manifest.load(artifact).plan
            if plan.is_across:
                continue
            mine_S = plan.dataset_S == list(named).index(upstream.name)
            mine_S &= (plan.community_SB >= 0).any(axis=1)
            seed = other["settings"]["seed"]
            says = f"manifest {artifact.fingerprint} of the same store, seed {seed}"
            return Control(plan.row_SB[mine_S], plan.community_SB[mine_S], says)
    return None


def _made(
    head: dict[str, Any], upstream: Upstream, *, rng: np.random.Generator | None
) -> Control | str:
    if rng is None:
        return "no manifest of an arm `paper` is in the store"
    if upstream.ranks is None:
        return "no manifest of an arm `paper` is in the store, nor are the ranks"
    if upstream.rows > MOST_ROWS:
        return (
            f"no manifest of an arm `paper` is in the store, and {upstream.rows:,} rows are more "
            f"than the {MOST_ROWS:,} that a report partitions: mine with arms: [paper, b3]"
        )
    alone_N = np.arange(upstream.rows, dtype=np.int32)
    try:
        ranks = RankTable.load(upstream.find("ranks")[0])
        window = graph.link(ranks, p=upstream.entry["p"], m=upstream.entry["m"], mode="mutual")
        spec = MiningSpec.model_validate({**head["settings"]["mining"], **PAPER_MINING})
        partition = balance.balance(
            communities.find_communities(window, spec, rng=rng),
            attract=window,
            repel=graph.CsrGraph.empty(window.rows),
            group_N=alone_N,
            spec=spec,
            rng=rng,
        )
    except (B3Error, ValueError) as error:
        return f"its partition could not be made: {reason(error)}"
    spec_of = BatchSpec(batch_size=head["batch_size"], curriculum=(Phase(),))
    plan = batches.plan_batches([[partition]], group_of=[alone_N], spec=spec_of, rng=rng)
    return Control(plan.row_SB, plan.community_SB, "METIS at its defaults on the same ranks, here")
