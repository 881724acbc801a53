"""Every partitioner on the same ranks: what it keeps, what it costs.

    ranks, vectors -> for each method, in a process of its own:
        link, find_communities, balance      timed, graph building included
        -> window, mutual, too-hard partners a row; teacher similarity; digest; seconds; peak memory

A method is a few settings of ``MiningSpec``; all others are equal. The process that runs it first
works on a small graph, untimed, so that imports and compilation are not counted.

Legend: N rows, K rows of a community.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from b3_core import balance, communities, graph, quality
from b3_core.bench.machine import machine
from b3_core.config import MiningSpec
from b3_core.errors import InputError, reason
from b3_core.neighbours import RankTable
from b3_core.pairs import PairTable
from b3_core.progress import Progress, silent
from b3_core.stage import generator
from b3_core.store import open_artifact
from b3_core.teacher import Embeddings
from b3_core.usage import peak_mb

#: The published recipe, peers at their best, and ours; ``-union`` is the graph, not the algorithm.
METHODS: dict[str, dict[str, Any]] = {
    "random": {"partitioner": "random", "swap_rounds": 0},
    "rcm": {"partitioner": "rcm", "swap_rounds": 0},
    "metis-paper": {"partitioner": "metis-paper", "swap_rounds": 0},
    "metis": {"partitioner": "metis", "graph": "union", "swap_rounds": 0},
    "kaminpar": {"partitioner": "kaminpar", "swap_rounds": 0},
    "kaminpar-union": {"partitioner": "kaminpar", "graph": "union", "swap_rounds": 0},
    "leidenalg": {"partitioner": "leidenalg", "evenness": 0.0},
    "leiden": {"partitioner": "leiden", "evenness": 0.0},
    "leiden-even": {"partitioner": "leiden", "evenness": 1.0},
    "leiden-union": {
        "partitioner": "leiden",
        "graph": "union",
        "repulsion": 1.0,
        "evenness": 0.0,
    },
}
#: Of the frontier: too-hard partners and window partners a row.
AXES = ("too_hard", "window")
#: Repulsions of the frontier of ``leiden-union``.
FRONTIER = (0.0, 0.25, 0.5, 2.0, 3.0, 5.0)


def bench_partition(
    *,
    pairs: str,
    ranks: str,
    vectors: str,
    mining: MiningSpec,
    seeds: Sequence[int] = (0,),
    only: Sequence[str] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run every method on one dataset's ranks, each in a process of its own.

    Parameters
    ----------
    pairs, ranks, vectors
        URIs of the dataset's artifacts.
    mining
        p, m and k; its other fields are the methods'.
    seeds
        Each runs every method once.
    only
        Methods to run; all of them, and the frontier, if empty.
    progress
        Told the runs done.

    Returns
    -------
    dict
        ``rows``: for each run ``method, seed, window, mutual, too_hard, similarity,
        similarity_spread, exact_k, seconds, peak_mb, digest``; ``above``, the peers that are
        above our curve (:func:`above_the_curve`); ``machine``.
    """
    methods = dict(METHODS)
    for repulsion in FRONTIER:
        methods[f"leiden-union-{repulsion:g}"] = METHODS["leiden-union"] | {"repulsion": repulsion}
    chosen = {name: methods[name] for name in only or methods}
    runs = [(name, seed) for seed in seeds for name in chosen]
    rows = []
    for done, (name, seed) in enumerate(runs):
        progress(done, len(runs))
        job = {"pairs": pairs, "ranks": ranks, "vectors": vectors, "seed": seed}
        spec = MiningSpec.model_validate(mining.model_dump() | chosen[name])
        rows.append({"method": name, "seed": seed} | _in_a_process(job | {"mining": spec}))
    progress(len(runs), len(runs))
    return {
        "rows": rows,
        "above": above_the_curve(rows),
        "k": mining.k,
        "p": mining.p,
        "m": mining.m,
        "machine": machine(),
    }


def above_the_curve(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the methods that keep more of the window than ours do with as many too-hard partners.

    Our curve goes through nothing (0, 0) and ``leiden-union`` at every repulsion that was run;
    between two points it is a line, for a half of each partition has half of what each keeps.
    """
    means = {
        name: [
            float(np.mean([row[axis] for row in rows if row["method"] == name])) for axis in AXES
        ]
        for name in dict.fromkeys(row["method"] for row in rows)
    }
    ours = sorted([(0.0, 0.0), *(tuple(at) for name, at in means.items() if is_ours(name))])
    if len(ours) < 3:  # noqa: PLR2004 - no curve was run
        return []
    hard, kept = zip(*ours, strict=True)
    return [
        name
        for name, (x, y) in means.items()
        if not is_ours(name) and x <= hard[-1] and y > np.interp(x, hard, kept)
    ]


def is_ours(method: str) -> bool:
    """Tell whether a method is a point of the frontier of ``leiden-union``."""
    return method.startswith("leiden-union")


def draw_frontier(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw window partners over too-hard partners: our curve, and every other method.

    Raises
    ------
    InputError
        matplotlib is not installed, or the file's ending is no format it knows.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            "a plot needs matplotlib, which is not installed", remedy="pip install matplotlib"
        ) from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="too-hard partners a row", ylabel="window partners a row")
    ours = sorted((row["too_hard"], row["window"]) for row in rows if is_ours(row["method"]))
    axes.plot(*zip(*ours, strict=True), "o-", label="leiden-union, repulsion 5 to 0")
    peers = {row["method"]: row for row in rows if not is_ours(row["method"])}
    most = [max(row[axis] for row in rows) for axis in AXES]
    touching = [each / 100 for each in most]
    named: dict[str, list[str]] = {}  # by the first of those that lie on one another
    for name, row in peers.items():
        first = next((other for other in named if _near(peers[other], row, touching)), name)
        named.setdefault(first, []).append(name)
    for first, names in named.items():
        x, y = (peers[first][axis] for axis in AXES)
        axes.plot(x, y, "s", color="0.45", markersize=5)
        beside = [
            other
            for other in named
            if peers[other]["too_hard"] > x
            and _near(peers[first], peers[other], (most[0] / 8, most[1] / 30))
        ]
        side = {"xytext": (-5, -4), "ha": "right"} if beside else {"xytext": (5, -4)}
        axes.annotate(", ".join(names), (x, y), textcoords="offset points", fontsize=8, **side)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=-0.25)  # room for the name of random communities, at the origin
    axes.legend(loc="lower right")
    try:
        figure.savefig(file, dpi=150)
    except ValueError as error:
        raise InputError(
            f"{file} cannot be drawn: {reason(error)}", remedy="name it *.png, *.svg or *.pdf"
        ) from error


def _near(a: Mapping[str, Any], b: Mapping[str, Any], within: Sequence[float]) -> bool:
    """Say whether two points are no further apart than that, axis by axis."""
    return all(abs(a[axis] - b[axis]) < most for axis, most in zip(AXES, within, strict=True))


def _in_a_process(job: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps({**job, "mining": job["mining"].model_dump()})
    done = subprocess.run(
        [sys.executable, "-m", "b3_core.bench.partition"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{job['mining'].partitioner} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(job: Mapping[str, Any]) -> dict[str, Any]:
    mining = MiningSpec.model_validate(job["mining"])
    ranks = RankTable.load(open_artifact(job["ranks"]))
    group_N = PairTable.load(open_artifact(job["pairs"]), "train").group_N
    _partition(_head(ranks, 2000), mining, group_N[:2000], seed=0)
    if mining.partitioner == "metis" and mining.tolerance is None:
        # The search is not METIS's own work: the run with the tolerance it found is what counts.
        best = _best_tolerance(ranks, mining, group_N, seed=job["seed"])
        mining = mining.model_copy(update={"tolerance": best})
    started = time.perf_counter()
    partition = _partition(ranks, mining, group_N, seed=job["seed"])
    seconds = time.perf_counter() - started
    peak = peak_mb()
    cutoff = mining.cutoff("retrieval")
    figures = quality.describe(partition, ranks, p=cutoff, m=mining.m)
    vectors = Embeddings.load(open_artifact(job["vectors"]))
    alike = quality.similarity(partition, vectors.query_ND, vectors.positive_ND)
    sizes = np.bincount(partition.label_N)
    return {
        **{name: round(figures[name], 4) for name in ("window", "mutual", "too_hard")},
        "similarity": round(alike["similarity"], 4),
        "similarity_spread": round(alike["spread"], 4),
        "exact_k": float((sizes[: len(partition.label_N) // mining.k] == mining.k).mean()),
        "seconds": round(seconds, 3),
        "peak_mb": round(peak),
        "digest": hashlib.sha256(partition.label_N.tobytes()).hexdigest()[:16],
        "tolerance": mining.tolerance,
    }


def _partition(
    ranks: RankTable, mining: MiningSpec, group_N: Any, *, seed: int
) -> communities.Partition:
    cutoff = mining.cutoff("retrieval")
    attract = graph.link(ranks, p=cutoff, m=mining.m, mode=mining.graph, weights=mining.weights)
    repel = graph.too_hard(ranks, p=cutoff) if mining.repulsion else None
    label_N = communities.find_communities(
        attract, mining, rng=generator(seed, "communities"), repel=repel
    )
    return balance.balance(
        label_N,
        attract=attract,
        repel=repel,
        group_N=group_N,
        spec=mining,
        rng=generator(seed, "balance"),
    )


def _best_tolerance(ranks: RankTable, mining: MiningSpec, group_N: Any, *, seed: int) -> float:
    """Try METIS's tolerances, each to the end: what counts is what exact communities keep."""
    kept = {}
    for tolerance in communities.TOLERANCES:
        spec = mining.model_copy(update={"tolerance": tolerance})
        kept[tolerance] = _partition(ranks, spec, group_N, seed=seed).objective
    return max(kept, key=lambda tolerance: kept[tolerance])


def _head(ranks: RankTable, rows: int) -> RankTable:
    """Return some rows' ranks among themselves, as if drawn at random: to warm up with."""
    rows = min(rows, len(ranks.neighbour_NM))
    width = min(ranks.neighbour_NM.shape[1], rows - 1)
    step_M = np.arange(1, width + 1)
    neighbour_NM = ((np.arange(rows)[:, None] + step_M) % rows).astype(np.int32)
    score_NM = np.broadcast_to(np.linspace(0.9, 0.1, width, dtype=np.float32), (rows, width))
    return RankTable(neighbour_NM, np.ascontiguousarray(score_NM))


if __name__ == "__main__":
    print(json.dumps(_measure(json.load(sys.stdin))))  # noqa: T201 - read by _in_a_process
