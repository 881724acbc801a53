"""The probe of mining: everything between a teacher's vectors and manifests, at several sizes.

Legend: N rows, D width, R queries.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.core.event import RecordingListener, install_recorder
from scipy.sparse import coo_array

from b3_core import kernels
from b3_core.balance import balance
from b3_core.communities import find_communities
from b3_core.config import PipelineSpec
from b3_core.embed import Vectors
from b3_core.forecast.jobs import Rows, jobs_of, key_of
from b3_core.forecast.probing import read, sample_of, stretched, timing_of
from b3_core.forecast.rates import Timing
from b3_core.graph import CsrGraph
from b3_core.mine import Communities
from b3_core.plan import Plan
from b3_core.stage import Stage
from b3_core.store import ArtifactStore
from b3_core.teacher import Embeddings

_SEARCHED = 4096  # queries whose search is timed
_AMONG = 1 << 17  # positives that they are searched among, at most
_TILED = 1 << 16  # rows of a graph made of copies of the sample's, at most


def mine(request: Mapping[str, Any]) -> dict[str, Any]:
    """Mine the sample at several sizes; the first size is the cold one.

    Unless it ``compiles`` for lack of a cache, it ends when it finds out that it did, and says so.
    """
    with install_recorder("numba:compile") as recorder:
        timings = _at_sizes(request, recorder)
    kernels.compile_ranking()  # evaluations are probed by other processes, all at once
    compiled = bool(recorder.buffer) and not request["compiles"]
    return {"timings": timings, "compiled": compiled}


def _at_sizes(request: Mapping[str, Any], recorder: RecordingListener) -> list[Timing]:
    sample = sample_of(request)
    timings: list[Timing] = []
    for number, rows in enumerate(request["sizes"]):
        spec = sample.cut(Path(request["folder"], str(rows)), rows)
        store, plan, pairs, totals = read(spec)
        cold = number == 0
        timings += [replace(each, cold=cold) for each in pairs]
        leg = plan.legs[0]
        for vectors in leg.vectors:
            _put_vectors(vectors, store, request["vectors"])
        timings += _mined(plan, spec, totals, store, cold=cold)
        if recorder.buffer and not request["compiles"]:
            break
        if rows == request["sizes"][-1]:
            for ranks in leg.ranks:
                among = min(request["rows"][ranks.dataset], _AMONG)
                if getattr(ranks, "method", "") == "exact":
                    timings.append(_searched(ranks, store, among))
            for part in leg.communities:
                whole = min(request["rows"][part.dataset], _TILED)
                timings = _grown(part, store, whole, timings)
    return timings


def _mined(
    plan: Plan,
    spec: PipelineSpec,
    totals: Mapping[str, Rows],
    store: ArtifactStore,
    *,
    cold: bool,
) -> list[Timing]:
    """Make everything of the first leg after its vectors' shards, up to the manifests."""
    leg = plan.legs[0]
    stages: list[Stage] = [
        *leg.vectors,
        *leg.ranks,
        *leg.graphs,
        *leg.communities,
        *leg.manifests.values(),
    ]
    work_of = {job.key: job for job in jobs_of(plan, spec, totals, None)}
    seen: set[str] = set()
    found = []
    for stage in stages:
        stage.run(store)
        job = work_of[key_of(stage)]
        # Other settings take other code: each has its own first time.
        first = cold and job.key not in seen
        seen.add(job.key)
        if not cold or first:
            found.append(timing_of(job, stage, store, cold=first))
    return found


def _put_vectors(vectors: Vectors, store: ArtifactStore, folder: str) -> None:
    """Write the shards of a dataset from vectors of its teacher, copied with noise as need be."""
    query_eD, positive_eD = (
        np.load(Path(folder, f"{vectors.dataset}-{side}.npy")) for side in ("query", "positive")
    )
    for shard in vectors.shards:
        rows = np.arange(shard.start, shard.stop)
        with store.draft(shard.address, lineage={}, settings={}) as draft:
            Embeddings(stretched(query_eD, rows), stretched(positive_eD, rows)).save(draft)


def _grown(
    stage: Communities, store: ArtifactStore, rows: int, timings: Sequence[Timing]
) -> list[Timing]:
    """Put what communities of a larger graph take in the place of what those of the sample took.

    A graph that outgrows the caches takes longer an edge. The larger one is the sample's, side by
    side with itself, rows shuffled: as many edges a row, as far from one another as in real data.
    """
    known = [each for each in timings if each.key == key_of(stage) and not each.cold]
    rest = [each for each in timings if each not in known]
    edges = store.get(stage.graph.address)
    graphs = [CsrGraph.load(edges, name) for name in ("attract", "repel")]
    copies = round(rows / max(stage.ref.rows, 1))
    if copies < 2 or not known:
        return list(timings)
    group_N = stage.ref.group_N(store)
    mining = stage.graph.ranks.partitioning(stage.mining, graphs[0])
    took = []
    for count in (1, copies):
        order = np.random.default_rng(0).permutation(count * stage.ref.rows).astype(np.int32)
        attract, repel = (tiled(each, order) for each in graphs)
        many_N = np.empty(len(order), np.int32)
        many_N[order] = np.arange(len(order)) // len(group_N) * len(group_N) + np.tile(
            group_N, count
        )
        rng = np.random.default_rng(0)
        began = time.perf_counter()
        label_N = find_communities(attract, mining, rng=rng, repel=repel)
        balance(label_N, attract=attract, repel=repel, group_N=many_N, spec=mining, rng=rng)
        took.append(time.perf_counter() - began)
    largest = max(known, key=lambda each: each.work["rows"])
    work = {"once": 1.0, "rows": copies * largest.work["rows"]}
    more = replace(largest, work=work, seconds=largest.seconds * took[1] / took[0], bytes=0)
    return [*rest, more]


def tiled(one: CsrGraph, order_N: npt.NDArray[np.int32]) -> CsrGraph:
    """Repeat a graph beside itself; ``order_N`` is where each row goes, copy after copy."""
    copies = len(order_N) // one.rows
    row_E = np.repeat(np.arange(one.rows), np.diff(one.indptr))
    first = np.repeat(np.arange(copies) * one.rows, len(row_E))
    rows, columns = (order_N[first + np.tile(each, copies)] for each in (row_E, one.indices))
    weights = np.tile(one.weight, copies)
    return CsrGraph.of(coo_array((weights, (rows, columns)), (len(order_N),) * 2).tocsr())


def _searched(ranks: Any, store: ArtifactStore, among: int) -> Timing:
    """Time the search alone: what grows with pairs of rows."""
    from b3_core import search  # noqa: PLC0415

    vectors = Embeddings.load(store.get(ranks.vectors))
    positive_ND = np.concatenate(
        [
            stretched(vectors.positive_ND, np.arange(start, min(start + 8192, among)))
            for start in range(0, among, 8192)
        ]
    )
    using = search.exact(np.ascontiguousarray(positive_ND), memory_mb=1024)
    row_R = np.arange(min(_SEARCHED, len(vectors.query_ND)))
    query_RD = np.ascontiguousarray(vectors.query_ND[row_R])
    candidates = min(ranks.width + 32, among)
    using.propose(query_RD[:64], candidates, row_R[:64])
    began = time.perf_counter()
    using.propose(query_RD, candidates, row_R)
    took = time.perf_counter() - began
    return Timing("ranks", key_of(ranks), {"square": float(len(row_R)) * among}, took)
