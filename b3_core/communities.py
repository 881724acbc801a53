"""Communities of any size in the window graph, by one of four partitioners.

    CsrGraph -> find_communities -> a label a row -> balance (next module) -> Partition

A partitioner sees the graph, the settings and a random generator, and nothing else. Making the
sizes exact is not its business: METIS misses them, Leiden does not aim at them.

Legend: N rows, E directed edges, C communities.
"""

import contextlib
import importlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from b3_core.artifacts import Artifact, Draft
from b3_core.config import MiningSpec
from b3_core.errors import InputError
from b3_core.graph import CsrGraph

VERSION = 1

# Where Leiden's gains level off: on a made-up graph of 68,000 rows, 3 iterations reached 97 % of
# the quality that iterating to the end did, in an eighth of the time.
LEIDEN_ITERATIONS = 3

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
        self, graph: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator
    ) -> npt.ArrayLike:
        """Return a non-negative integer label for each of the N rows."""


def find_communities(graph: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator) -> Labels:
    """Find communities with ``spec.partitioner``.

    Returns
    -------
    numpy.ndarray
        int32, N: labels from 0 to C - 1, none of them empty; communities of any size.

    Raises
    ------
    InputError
        The partitioner's package is not installed.
    """
    found_N = np.asarray(PARTITIONERS[spec.partitioner](graph, spec, rng=rng))
    if found_N.shape != (graph.rows,):
        raise ValueError(f"{spec.partitioner} labelled {found_N.shape} of {graph.rows} rows")
    return np.unique(found_N, return_inverse=True)[1].astype(np.int32)


def _leiden(graph: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator) -> npt.ArrayLike:
    """Leiden in igraph's C: the sum over communities of inner weight - resolution * pairs of rows.

    Objective: the constant Potts model, Traag, Van Dooren and Nesterov 2011, arXiv 1104.3083.
    """
    igraph = _require("igraph")
    network, weight = _igraph_graph(igraph, graph)
    with _seeded(igraph, _seed(rng)):
        clustering = network.community_leiden(
            objective_function="CPM",
            weights=weight,
            resolution=spec.resolution,
            n_iterations=LEIDEN_ITERATIONS,
        )
    return np.array(clustering.membership)


def _leidenalg(graph: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator) -> npt.ArrayLike:
    """Leiden in its authors' package, on the same objective: the reference for ``leiden``."""
    leidenalg = _require("leidenalg")
    network, weight = _igraph_graph(_require("igraph"), graph)
    found = leidenalg.find_partition(
        network,
        leidenalg.CPMVertexPartition,
        weights=weight,
        resolution_parameter=spec.resolution,
        n_iterations=LEIDEN_ITERATIONS,
        seed=_seed(rng),
    )
    return np.array(found.membership)


def _metis(graph: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator) -> npt.ArrayLike:
    """METIS at its defaults in N // k parts, as published (arXiv 2505.11293, section 4).

    Its own seed hardly changes the outcome; the order of the rows does, so that is what is drawn.
    """
    pymetis = _require("pymetis")
    order_N = rng.permutation(graph.rows)
    shuffled = graph.to_scipy()[order_N][:, order_N]
    found = pymetis.part_graph(
        max(graph.rows // spec.k, 1),
        pymetis.CSRAdjacency(shuffled.indptr.astype(np.int64), shuffled.indices.astype(np.int64)),
        eweights=np.maximum(np.rint(shuffled.data), 1).astype(np.int64),
    )
    label_N = np.empty(graph.rows, np.int64)
    label_N[order_N] = np.asarray(found.vertex_part)
    return label_N


def _random(graph: CsrGraph, spec: MiningSpec, *, rng: np.random.Generator) -> npt.ArrayLike:
    """Rows in random order, cut every k: exact already, and blind to the graph."""
    label_N = np.empty(graph.rows, np.int64)
    label_N[rng.permutation(graph.rows)] = np.arange(graph.rows) // spec.k
    return label_N


PARTITIONERS: Mapping[str, Partitioner] = {
    "leiden": _leiden,
    "leidenalg": _leidenalg,
    "metis": _metis,
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
