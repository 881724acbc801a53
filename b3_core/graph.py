"""From ranks to graphs: who may share a community with whom, and who should not.

    RankTable -> ranks [p, p + m), either way round -> link:     rows that attract
              -> ranks [0, p),     either way round -> too_hard: rows that repel

Legend: N rows, M ranks, E directed edges (twice the pairs).
"""

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from b3_core.artifacts import Artifact, Draft
from b3_core.neighbours import RankTable

VERSION = 3

_LEAST = 1e-3  # weight of an edge whose score is not positive: it is in the window all the same

Mode = Literal["mutual", "union"]
Weights = Literal["count", "score"]


@dataclass(frozen=True, eq=False)
class CsrGraph:
    """A weighted undirected graph, each edge stored once a direction.

    Raises
    ------
    ValueError
        The arrays are no compressed sparse rows of the types below, a row's neighbours are not in
        strictly ascending order, a row is its own neighbour, a weight is not positive, or the two
        directions of an edge differ.
    """

    indptr: npt.NDArray[np.int64]
    """N + 1 offsets: the neighbours of row i are ``indices[indptr[i]:indptr[i + 1]]``."""
    indices: npt.NDArray[np.int32]
    """Neighbours, E, ascending in each row."""
    weight: npt.NDArray[np.float32]
    """Weights, E, positive."""

    def __post_init__(self) -> None:
        parts: dict[str, npt.NDArray[Any]] = {
            "int64": self.indptr,
            "int32": self.indices,
            "float32": self.weight,
        }
        for expected, part in parts.items():
            if part.dtype != expected or part.ndim != 1:
                raise ValueError(f"{part.dtype} of shape {part.shape} is no 1-d {expected}")
        count_N = np.diff(self.indptr)
        edges = len(self.indices)
        if not len(self.indptr) or self.indptr[0] != 0 or (count_N < 0).any():
            raise ValueError("offsets do not rise from 0")
        if not self.indptr[-1] == edges == len(self.weight):
            raise ValueError(f"{edges} neighbours, but {len(self.weight)} weights or other offsets")
        if self.indices.min(initial=0) < 0 or self.indices.max(initial=-1) >= self.rows:
            raise ValueError(f"a neighbour is none of the {self.rows} rows")
        row_E = np.repeat(np.arange(self.rows, dtype=np.int32), count_N)
        if (self.indices == row_E).any():
            raise ValueError("a row is its own neighbour")
        if ((np.diff(self.indices) <= 0) & (np.diff(row_E) == 0)).any():
            raise ValueError("the neighbours of a row are not strictly ascending")
        if not (self.weight > 0).all():
            raise ValueError("a weight is not positive")
        matrix = self.to_scipy()
        if (matrix != matrix.T).nnz:
            raise ValueError("the two directions of an edge differ")

    @property
    def rows(self) -> int:
        """N."""
        return len(self.indptr) - 1

    @classmethod
    def of(cls, matrix: Any) -> Self:
        """Take over a symmetric scipy sparse matrix with an empty diagonal."""
        csr = csr_array(matrix)
        csr.sum_duplicates()  # sorts each row too
        return cls(
            csr.indptr.astype(np.int64),
            csr.indices.astype(np.int32),
            csr.data.astype(np.float32),
        )

    @classmethod
    def empty(cls, rows: int) -> Self:
        """Return a graph without an edge."""
        return cls.of(csr_array((rows, rows), dtype=np.float32))

    def to_scipy(self) -> Any:
        """Return the adjacency matrix, a ``csr_array`` of (N, N)."""
        return _square(self.indptr, self.indices, self.weight)

    def save(self, draft: Draft, name: str = "graph") -> None:
        """Write ``<name>/indptr.npy``, ``indices.npy`` and ``weight.npy``."""
        for part in ("indptr", "indices", "weight"):
            np.save(draft.path(f"{name}/{part}.npy"), getattr(self, part))

    @classmethod
    def load(cls, artifact: Artifact, name: str = "graph") -> Self:
        """Read the three files back."""
        return cls(
            *(
                np.load(artifact.path(f"{name}/{part}.npy"), allow_pickle=False)
                for part in ("indptr", "indices", "weight")
            )
        )


@dataclass(frozen=True, eq=False)
class Excerpt:
    """Ranks of some rows of a table, numbered anew; -1 is also a row that is not among them."""

    neighbour_NM: npt.NDArray[np.int32]
    score_NM: npt.NDArray[np.float32]


def link(
    ranks: RankTable | Excerpt,
    *,
    p: int,
    m: int,
    mode: Mode,
    weights: Weights = "count",
    unit: float | None = None,
) -> CsrGraph:
    """Build the window graph: row i's window is its ranks [p, p + m).

    Parameters
    ----------
    p, m
        Ranks dropped, and ranks kept after them (arXiv 2505.11293).
    mode
        ``mutual``: an edge of weight 1 where each row is in the other's window, as published.
        ``union``: an edge where either is, of weight 1, or 2 where both are.
    weights
        ``count`` as above. ``score``: each direction that is there weighs the teacher's score of
        it, in units of the mean score of all windows; a mutual edge then the mean of both.
    unit
        That mean, where these ranks are an excerpt of a larger table.

    Returns
    -------
    CsrGraph
        N rows, possibly without an edge.

    Raises
    ------
    ValueError
        ``ranks`` ends inside the window although there are more rows, or ``mode`` or ``weights``
        is none of the above.
    """
    for value, known in ((mode, get_args(Mode)), (weights, get_args(Weights))):
        if value not in known:
            raise ValueError(f"{value!r} is neither {known[0]!r} nor {known[1]!r}")
    window_NN = _directed(ranks, p, p + m)
    if weights == "count":
        both_NN = window_NN.multiply(window_NN.T) if mode == "mutual" else window_NN + window_NN.T
        return CsrGraph.of(both_NN)
    scored_NN = _directed(ranks, p, p + m, scored=True)
    unit = _unit_score(scored_NN.data) if unit is None else unit
    scored_NN.data = np.maximum(scored_NN.data / np.float32(unit), _LEAST)
    if mode == "union":
        return CsrGraph.of(scored_NN + scored_NN.T)
    here_NN = scored_NN.multiply(window_NN.T)
    return CsrGraph.of((here_NN + here_NN.T) / 2)


def _unit_score(score_E: npt.NDArray[np.float32]) -> float:
    """Return the mean of what scores are above 0, as :func:`edges.mean_score` does; else 1."""
    return float(np.maximum(score_E, 0).mean(dtype=np.float64)) or 1.0 if score_E.size else 1.0


def too_hard(ranks: RankTable | Excerpt, *, p: int) -> CsrGraph:
    """Link rows where either ranks the other before p: probable false negatives.

    Returns
    -------
    CsrGraph
        N rows; weight 1, or 2 where each ranks the other so.

    Raises
    ------
    ValueError
        ``ranks`` ends before p although there are more rows.
    """
    near_NN = _directed(ranks, 0, p)
    return CsrGraph.of(near_NN + near_NN.T)


def _directed(ranks: RankTable | Excerpt, first: int, stop: int, *, scored: bool = False) -> Any:
    """Return a (N, N) matrix of the rows that each row ranks in [first, stop): 1, or the score."""
    rows, width = ranks.neighbour_NM.shape
    if not 0 <= first <= stop or width < min(stop, rows - 1):
        raise ValueError(f"ranks [{first}, {stop}) are not in a table of {width} ranks")
    window_NW = ranks.neighbour_NM[:, first:stop]
    held_NW = window_NW >= 0
    indptr = np.concatenate([[0], held_NW.sum(axis=1).cumsum()])
    indices = window_NW[held_NW]
    score_E = ranks.score_NM[:, first:stop][held_NW] if scored else None
    return _square(
        indptr, indices, np.ones(len(indices), np.float32) if score_E is None else score_E
    )


def _square(
    indptr: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int32],
    data: npt.NDArray[np.float32],
) -> Any:
    # scipy brings both index arrays to one type: with int64 offsets it would copy every neighbour.
    offset = np.int32 if len(indices) <= np.iinfo(np.int32).max else np.int64
    rows = len(indptr) - 1
    return csr_array((data, indices, indptr.astype(offset)), shape=(rows, rows))
