"""Communities of any size in the window graph, by one of several partitioners.

    CsrGraph -> find_communities -> a label a row -> balance (next module) -> Partition

A partitioner sees the two graphs, the settings and a random generator, and nothing else. Making
the sizes exact is not its business: METIS misses them, Leiden does not aim at them.

Legend: N rows, E directed edges, C communities.
"""

import contextlib
import importlib
import itertools
import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import reverse_cuthill_mckee

from b3_core import metis
from b3_core.artifacts import Artifact, Draft
from b3_core.config import MiningSpec
from b3_core.errors import InputError
from b3_core.graph import CsrGraph

VERSION = 3

# Tolerances tried for METIS when none is given: below 1 / k there is no room for one row more,
# and beyond 30 % the parts are so unequal that making them exact undoes them.
TOLERANCES = (0.05, 0.1, 0.2, 0.3)

# More do not pay, for swaps follow: on the mutual graph of 60,000 demo rows 1, 2, 3 and 10 end at
# 1.563, 1.572, 1.579 and 1.586 mutual partners a row (with evenness 1.367, 1.363 and 1.371), on the
# union graph 1 and 3 at 5.61 and 5.62 window partners; each costs as much as the first.
LEIDEN_ITERATIONS = 1

# The CPM resolution in units of strength / (k - 1): see ``resolution``. The union graph holds many
# weak edges that no community can keep. Of 0.005 to 1, what kept most after packing and swaps.
RESOLUTION_SHARE = {"mutual": 0.1, "union": 0.02}

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Partition:
    """Communities of exactly ``k`` rows, all but a declared remainder.

    Raises
    ------
    ValueError
        A community that is not the last has more or fewer than ``k`` rows, or labels do not run
        from 0 to ceil(N / k) - 1.
    """

    label_N: Labels
    """Community of every row; the last one is short where ``k`` does not divide N."""
    k: int
    """Rows in a community."""
    moved: int
    """Rows that are not where most of the community found for them went."""
    objective: float
    """Attraction less repulsion inside communities, each edge once (``balance.objective``)."""

    def __post_init__(self) -> None:
        if self.label_N.dtype != np.int32 or self.label_N.ndim != 1 or not self.label_N.size:
            raise ValueError(f"labels are {self.label_N.dtype} of shape {self.label_N.shape}")
        if self.label_N.min() < 0:
            raise ValueError(f"label {self.label_N.min()} is negative")
        size_C = np.bincount(self.label_N)
        expected_C = community_sizes(len(self.label_N), self.k)
        if len(size_C) != len(expected_C):
            raise ValueError(f"{len(size_C)} communities, expected {len(expected_C)}")
        wrong = np.flatnonzero(size_C != expected_C)
        if wrong.size:
            raise ValueError(
                f"community {wrong[0]} has {size_C[wrong[0]]} rows, expected {expected_C[wrong[0]]}"
            )

    def save(self, draft: Draft) -> None:
        """Write ``label.npy`` and ``partition.json``."""
        np.save(draft.path("label.npy"), self.label_N)
        draft.write_json(
            "partition.json", {"k": self.k, "moved": self.moved, "objective": self.objective}
        )

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Read both files back."""
        label_N = np.load(artifact.path("label.npy"), allow_pickle=False)
        return cls(label_N, **json.loads(artifact.path("partition.json").read_bytes()))


def community_sizes(rows: int, k: int) -> npt.NDArray[np.int64]:
    """Return the sizes of ceil(N / k) communities: ``k`` each, the last one what is left."""
    size_C = np.full(-(-rows // k), k)
    size_C[-1:] += rows - size_C.sum()
    return size_C


class Partitioner(Protocol):
    """Finds communities; the labels it gives need not be consecutive."""

    def __call__(
        self,
        attract: CsrGraph,
        spec: MiningSpec,
        *,
        rng: np.random.Generator,
        repel: CsrGraph | None,
    ) -> npt.ArrayLike:
        """Return a non-negative integer label for each of the N rows."""


def find_communities(
    attract: CsrGraph,
    spec: MiningSpec,
    *,
    rng: np.random.Generator,
    repel: CsrGraph | None = None,
) -> Labels:
    """Find communities with ``spec.partitioner``.

    Parameters
    ----------
    attract, repel
        Rows that belong together, and rows that should not meet. Only ``leidenalg`` looks at the
        latter, and only if ``spec.repulsion`` is not 0; the others leave it to the swaps.

    Returns
    -------
    numpy.ndarray
        int32, N: labels from 0 to C - 1, none of them empty; communities of any size.

    Raises
    ------
    InputError
        The partitioner's package is not installed.
    """
    found_N = np.asarray(PARTITIONERS[spec.partitioner](attract, spec, rng=rng, repel=repel))
    if found_N.shape != (attract.rows,):
        raise ValueError(f"{spec.partitioner} labelled {found_N.shape} of {attract.rows} rows")
    return np.unique(found_N, return_inverse=True)[1].astype(np.int32)


def _leiden(
    attract: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator, repel: CsrGraph | None
) -> npt.ArrayLike:
    """Leiden in igraph's C: the sum over communities of inner weight - resolution * pairs of rows.

    Objective: the constant Potts model, Traag, Van Dooren and Nesterov 2011, arXiv 1104.3083.
    """
    igraph = _require("igraph")
    network, weight = _igraph_graph(igraph, attract)
    with _seeded(igraph, _seed(rng)):
        clustering = network.community_leiden(
            objective_function="CPM",
            weights=weight,
            resolution=resolution(attract, spec),
            n_iterations=LEIDEN_ITERATIONS,
        )
    return np.array(clustering.membership)


def _leidenalg(
    attract: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator, repel: CsrGraph | None
) -> npt.ArrayLike:
    """Leiden in its authors' package: the reference for ``leiden``, and with a layer that repels.

    With ``spec.repulsion`` the objective is multiplex: inner weight - resolution * pairs -
    repulsion * inner weight of ``repel``, the negative layer without a resolution of its own.
    """
    leidenalg, igraph = _require("leidenalg"), _require("igraph")
    layers = [(attract, resolution(attract, spec), 1.0)]
    if repel is not None and spec.repulsion:
        layers.append((repel, 0.0, -spec.repulsion))
    parts = []
    for graph, gamma, _ in layers:
        network, weight = _igraph_graph(igraph, graph)
        parts.append(
            leidenalg.CPMVertexPartition(network, weights=weight, resolution_parameter=gamma)
        )
    optimiser = leidenalg.Optimiser()
    optimiser.set_rng_seed(_seed(rng))
    optimiser.optimise_partition_multiplex(
        parts, layer_weights=[sign for *_, sign in layers], n_iterations=LEIDEN_ITERATIONS
    )
    return np.array(parts[0].membership)


def resolution(attract: CsrGraph, spec: MiningSpec) -> float:
    """Return the CPM resolution: the one given, else one that suits the graph and ``spec.k``.

    A community pays off while its inner density is above the resolution. Where k rows of mean
    strength s kept all of their weight among themselves, that density would be s / (k - 1). The
    share of it that serves best was measured (docs/decisions.md, "The resolution of Leiden").
    """
    if spec.resolution is not None:
        return spec.resolution
    strength = float(attract.weight.sum(dtype=np.float64)) / max(attract.rows, 1)
    return max(RESOLUTION_SHARE[spec.graph] * strength / (spec.k - 1), 1e-6)


def _metis_paper(
    attract: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator, repel: CsrGraph | None
) -> npt.ArrayLike:
    """METIS at its defaults in N // k parts, as published (arXiv 2505.11293, section 4)."""
    return _metis_cuts(attract, spec, [None], rng=rng)[0]


def _metis(
    attract: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator, repel: CsrGraph | None
) -> npt.ArrayLike:
    """METIS with room to work in: at its default of 3 % no part of k <= 33 rows can take one more.

    Without ``spec.tolerance`` the best of ``TOLERANCES`` is taken, by the weight inside parts.
    """
    if spec.tolerance is not None:
        return _metis_cuts(attract, spec, [spec.tolerance], rng=rng)[0]
    cuts = _metis_cuts(attract, spec, TOLERANCES, rng=rng)
    return max(cuts, key=lambda label_N: _kept(label_N, attract, spec.k))


def _metis_cuts(
    attract: CsrGraph,
    spec: MiningSpec,
    tolerances: Sequence[float | None],
    *,
    rng: np.random.Generator,
) -> list[npt.NDArray[np.int64]]:
    """Cut with each tolerance.

    METIS's own seed hardly changes the outcome; the order of the rows does, so that is drawn.
    """
    _require("pymetis")
    order_N = rng.permutation(attract.rows)
    shuffled = attract.to_scipy()[order_N][:, order_N]
    found_CN = metis.part_graph(
        shuffled.indptr.astype(np.int64),
        shuffled.indices.astype(np.int64),
        _whole_weights(shuffled.data),
        parts=max(attract.rows // spec.k, 1),
        tolerances=tolerances,
    )
    label_CN = np.empty_like(found_CN)
    label_CN[:, order_N] = found_CN
    return list(label_CN)


def _kept(label_N: npt.NDArray[np.int64], attract: CsrGraph, k: int) -> float:
    """Estimate the weight that is left inside when every part is cut down to k rows.

    Of a part of s > k rows, k keep (k (k - 1)) / (s (s - 1)) of the pairs.
    """
    size_C = np.bincount(label_N)
    share_C = np.minimum(k * (k - 1.0) / np.maximum(size_C * (size_C - 1.0), 1.0), 1.0)
    row_E = np.repeat(np.arange(attract.rows), np.diff(attract.indptr))
    inside_E = label_N[row_E] == label_N[attract.indices]
    return float(attract.weight[inside_E] @ share_C[label_N[row_E[inside_E]]])


def _kaminpar(
    attract: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator, repel: CsrGraph | None
) -> npt.ArrayLike:
    """KaMinPar (Gottesbueren et al. 2021, arXiv 2105.02022), told the exact size of every part.

    On one thread, the only number at which it gives the same parts again.
    """
    kaminpar = _require("kaminpar")
    size_C = community_sizes(attract.rows, spec.k)
    if len(size_C) == 1 or not attract.indices.size:
        return _random(attract, spec, rng=rng, repel=repel)
    order_N = rng.permutation(attract.rows)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.metis"  # it reads graphs from files only
        _write_metis(attract.to_scipy()[order_N][:, order_N], file)
        kaminpar.reseed(_seed(rng))
        graph = kaminpar.load_graph(str(file), kaminpar.GraphFileFormat.METIS)
        engine = kaminpar.KaMinPar(num_threads=1, ctx=kaminpar.default_context())
        found = engine.compute_partition(graph, max_block_weights=size_C.tolist())
    label_N = np.empty(attract.rows, np.int64)
    label_N[order_N] = np.asarray(found)
    return label_N


def _write_metis(graph: Any, file: Path) -> None:
    """Write METIS's text format: rows, edges and "weighted", then a line a row, counted from 1."""
    pair_2E = np.empty(2 * graph.nnz, np.int64)
    pair_2E[::2], pair_2E[1::2] = graph.indices + 1, _whole_weights(graph.data)
    words = pair_2E.astype(str)
    with file.open("w", encoding="ascii") as stream:
        stream.write(f"{graph.shape[0]} {graph.nnz // 2} 1\n")
        for start, stop in itertools.pairwise(2 * graph.indptr.astype(np.int64)):
            stream.write(" ".join(words[start:stop]) + "\n")


def _whole_weights(weight_E: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Round weights to whole numbers, as METIS wants them; small ones in hundredths."""
    scale = 1 if (weight_E == np.rint(weight_E)).all() else 100
    whole_E: npt.NDArray[np.int64] = np.maximum(np.rint(scale * weight_E), 1).astype(np.int64)
    return whole_E


def _rcm(
    attract: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator, repel: CsrGraph | None
) -> npt.ArrayLike:
    """Rows in reverse Cuthill-McKee order, cut every k.

    A small bandwidth puts neighbours close in the order: the idea of GCBS (Sachidananda, Yang and
    Zhu 2023, arXiv 2210.12874). Cuthill and McKee 1969, 10.1145/800195.805928.
    """
    order_N = rng.permutation(attract.rows)  # ties, and where each component starts
    shuffled = attract.to_scipy()[order_N][:, order_N]
    label_N = np.empty(attract.rows, np.int64)
    band_N = reverse_cuthill_mckee(shuffled, symmetric_mode=True)
    label_N[order_N[band_N]] = np.arange(attract.rows) // spec.k
    return label_N


def _random(
    attract: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator, repel: CsrGraph | None
) -> npt.ArrayLike:
    """Rows in random order, cut every k: exact already, and blind to the graph."""
    label_N = np.empty(attract.rows, np.int64)
    label_N[rng.permutation(attract.rows)] = np.arange(attract.rows) // spec.k
    return label_N


PARTITIONERS: Mapping[str, Partitioner] = {
    "leiden": _leiden,
    "leidenalg": _leidenalg,
    "metis": _metis,
    "metis-paper": _metis_paper,
    "kaminpar": _kaminpar,
    "rcm": _rcm,
    "random": _random,
}


def _igraph_graph(igraph: Any, graph: CsrGraph) -> tuple[Any, list[float]]:
    """Return the undirected graph and its weights, edge by edge."""
    row_E = np.repeat(np.arange(graph.rows), np.diff(graph.indptr))
    once_E = row_E < graph.indices
    # An array goes through a memoryview; a list of tuples costs more than Leiden itself.
    edges = np.column_stack([row_E[once_E], graph.indices[once_E]])
    return igraph.Graph(n=graph.rows, edges=edges), graph.weight[once_E].tolist()


@contextlib.contextmanager
def _seeded(igraph: Any, seed: int) -> Iterator[None]:
    """Seed igraph's generator, which is global, and give it back ``random``, its default."""
    igraph.set_random_number_generator(random.Random(seed))
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"this partitioner needs {package}, which is not installed",
            remedy=f"pip install {package}, or set mining.partitioner to another one",
        ) from error
