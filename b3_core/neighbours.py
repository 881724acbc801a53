"""The best positives of every query, exactly, own row and own group excluded.

    fp32 search, C candidates a row -> own group out -> exact scores in fp64 -> best M
    rows whose candidates may not hold the best M: once more with 2C, at most N

The search only proposes; scores and order come from fp64, so neither the block size, nor the
number of threads, nor CPU or GPU can change a rank. N x N scores are never held.

Legend: N rows, D width of a vector, M ranks kept, B rows of one block, C candidates a row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from b3_core.artifacts import Artifact, Draft
from b3_core.errors import InputError
from b3_core.progress import Progress, silent

VERSION = 1

_SLACK = 32  # candidates beyond M: room for the own group and for near ties at rank M
_CELLS = 1 << 22  # candidates of one block, B x C: about 200 MB of temporaries
_GPU_CANDIDATES = 2048  # faiss finds no more than this on a GPU
_LEAST_MARGIN = 1e-5

# (query_BD, positive_ND, C) -> scores and rows, both (B, C), best first
_Knn = Callable[
    [npt.NDArray[np.float32], npt.NDArray[np.float32], int],
    tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
]


@dataclass(frozen=True, eq=False)
class RankTable:
    """Each row's positives, best first, without its own row and group.

    Sorted by exact score, ties by smaller row; scores that differ by less than float32 shows are
    equal here but still in their exact order.

    Raises
    ------
    ValueError
        Shapes or types differ from those below, or a row is not sorted, names itself, names a
        row twice or names one that is not there.
    """

    neighbour_NM: npt.NDArray[np.int32]
    """Rows; -1 after the last where the own group leaves fewer than M."""
    score_NM: npt.NDArray[np.float32]
    """Inner products; -inf beside -1."""

    def __post_init__(self) -> None:
        row_NM, score_NM = self.neighbour_NM, self.score_NM
        if row_NM.ndim != 2 or row_NM.shape != score_NM.shape:
            raise ValueError(f"shapes {row_NM.shape} and {score_NM.shape} are not one (N, M)")
        if row_NM.dtype != np.int32 or score_NM.dtype != np.float32:
            raise ValueError(f"types {row_NM.dtype}, {score_NM.dtype} are not int32, float32")
        rows = len(row_NM)
        if row_NM.min(initial=-1) < -1 or row_NM.max(initial=-1) >= rows:
            raise ValueError(f"a neighbour is none of the {rows} rows")
        if (row_NM == np.arange(rows)[:, None]).any():
            raise ValueError("a row is its own neighbour")
        if ((row_NM == -1) != np.isneginf(score_NM)).any() or np.isnan(score_NM).any():
            raise ValueError("a score is NaN, or -1 and -inf do not stand side by side")
        if (score_NM[:, 1:] > score_NM[:, :-1]).any():
            raise ValueError("scores are not sorted, best first")
        sorted_NM = np.sort(row_NM, axis=1)
        if ((sorted_NM[:, 1:] == sorted_NM[:, :-1]) & (sorted_NM[:, 1:] >= 0)).any():
            raise ValueError("a neighbour is ranked twice")

    def save(self, draft: Draft) -> None:
        """Write ``neighbour.npy`` and ``score.npy``."""
        np.save(draft.path("neighbour.npy"), self.neighbour_NM)
        np.save(draft.path("score.npy"), self.score_NM)

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Read both files back."""
        neighbour_NM, score_NM = (
            np.load(artifact.path(name), allow_pickle=False)
            for name in ("neighbour.npy", "score.npy")
        )
        return cls(neighbour_NM, score_NM)


def rank(
    query_ND: npt.NDArray[np.float32],
    positive_ND: npt.NDArray[np.float32],
    *,
    group_N: npt.NDArray[np.int32],
    width: int,
    progress: Progress = silent,
) -> RankTable:
    """Rank the best ``width`` positives of every query by inner product.

    Parameters
    ----------
    query_ND, positive_ND
        Finite vectors, row by row; of unit norm, and of values that float16 holds, their fp64
        products carry no rounding at all.
    group_N
        No row ranks a row of its own group, and so never itself.
    width
        Ranks wanted, p + m; at most N - 1 are kept.
    progress
        Told how many rows are final.

    Returns
    -------
    RankTable
        (N, min(width, N - 1)).

    Raises
    ------
    InputError
        A vector is not finite (the row is named), or faiss is not installed.
    ValueError
        The three arrays are not of N rows, or ``width`` is negative.
    """
    rows = len(query_ND)
    if query_ND.shape != positive_ND.shape or group_N.shape != (rows,) or width < 0:
        raise ValueError(
            f"cannot rank queries {query_ND.shape}, positives {positive_ND.shape}, "
            f"groups {group_N.shape} at width {width}"
        )
    search = _Search(_finite(query_ND, "query"), _finite(positive_ND, "positive"), group_N, _knn())
    ranks = min(width, max(rows - 1, 0))
    neighbour_NM = np.empty((rows, ranks), np.int32)
    score_NM = np.empty((rows, ranks), np.float32)
    pending = np.arange(rows if ranks else 0)
    candidates, done = min(ranks + _SLACK, rows), 0
    while pending.size:
        unsure = []
        for row_B in _blocks(pending, candidates):
            neighbour_NM[row_B], score_NM[row_B], sure_B = search.best(
                row_B, candidates=candidates, ranks=ranks
            )
            unsure.append(row_B[~sure_B])
            done += int(sure_B.sum())
            progress(done, rows)
        pending = np.concatenate(unsure)
        candidates = min(2 * candidates, rows)  # at N every row is sure, so this ends
    return RankTable(neighbour_NM, score_NM)


@dataclass(frozen=True, eq=False)
class _Search:
    query_ND: npt.NDArray[np.float32]
    positive_ND: npt.NDArray[np.float32]
    group_N: npt.NDArray[np.int32]
    knn: _Knn

    @cached_property
    def margin_N(self) -> npt.NDArray[np.float64]:
        """How far an fp32 score can be from the exact one, for each query.

        D u |q| |p| with u = 2^-24 bounds any order of summation (Higham, Accuracy and Stability
        of Numerical Algorithms, 2002, section 3.1, to first order in u); never below 1e-5 |q| |p|.
        """
        bound = max(_LEAST_MARGIN, self.query_ND.shape[1] * 2.0**-24)
        longest = np.linalg.norm(self.positive_ND, axis=1).max()
        margin_N: npt.NDArray[np.float64] = (
            bound * longest * np.linalg.norm(self.query_ND, axis=1).astype(np.float64)
        )
        return margin_N

    def best(
        self, row_B: npt.NDArray[np.intp], *, candidates: int, ranks: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return rows and scores, (B, M), and which of the B rows are sure to be right."""
        rows = len(self.positive_ND)
        query_BD = self.query_ND[row_B]
        if candidates == rows:
            found_BC = np.broadcast_to(np.arange(rows), (len(row_B), rows))
            ceiling_B = np.full(len(row_B), -np.inf)
        else:
            near_BC, found_BC = self.knn(query_BD, self.positive_ND, candidates)
            ceiling_B = near_BC[:, -1] + self.margin_N[row_B]
        own_BC = self.group_N[found_BC] == self.group_N[row_B, None]
        candidate_BC = np.where(own_BC, -1, found_BC)
        exact_BC = _exact_scores(query_BD, self.positive_ND, candidate_BC)
        order_BM = np.lexsort((candidate_BC, -exact_BC))[:, :ranks]
        best_BM = np.take_along_axis(candidate_BC, order_BM, axis=1)
        score_BM = np.take_along_axis(exact_BC, order_BM, axis=1)
        # A positive that was not proposed scores at most the ceiling. Rank M must score more, not
        # as much: at equal scores the smaller row comes first. Too few survivors leave -inf here.
        sure_B = (score_BM[:, -1] > ceiling_B) | (candidates == rows)
        return best_BM, score_BM, sure_B


@njit(parallel=True)  # type: ignore[untyped-decorator]
def _exact_scores(
    query_BD: npt.NDArray[np.float32],
    positive_ND: npt.NDArray[np.float32],
    candidate_BC: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Inner products in fp64, summed in order; -inf where the candidate is -1."""
    exact_BC = np.full(candidate_BC.shape, -np.inf)
    for b in prange(candidate_BC.shape[0]):
        for c in range(candidate_BC.shape[1]):
            row = candidate_BC[b, c]
            if row >= 0:
                total = 0.0
                for d in range(query_BD.shape[1]):
                    total += np.float64(query_BD[b, d]) * np.float64(positive_ND[row, d])
                exact_BC[b, c] = total
    return exact_BC


def _blocks(pending: npt.NDArray[np.intp], candidates: int) -> Iterator[npt.NDArray[np.intp]]:
    size = max(_CELLS // candidates, 1)
    for start in range(0, len(pending), size):
        yield pending[start : start + size]


def _finite(vector_ND: npt.NDArray[np.float32], side: str) -> npt.NDArray[np.float32]:
    bad = np.flatnonzero(~np.isfinite(vector_ND).all(axis=1))
    if bad.size:
        raise InputError(
            f"the embedding of the {side} in row {bad[0]} is not finite ({bad.size} such rows)",
            expected="finite vectors",
            remedy="try teacher.precision: fp32, or look at that row's text",
        )
    return np.ascontiguousarray(vector_ND, dtype=np.float32)


def _knn() -> _Knn:
    """Return faiss's exact search: on its GPU where it has one and C is small enough."""
    try:
        import faiss  # noqa: PLC0415 - an extra: CPU or GPU build, the user's choice
    except ImportError as error:
        raise InputError(
            "ranking needs faiss, which is not installed",
            remedy="pip install 'b3-batches[cpu]'",
        ) from error
    inner = faiss.METRIC_INNER_PRODUCT
    gpus = getattr(faiss, "get_num_gpus", lambda: 0)()  # some CPU builds lack the function
    gpu = faiss.StandardGpuResources() if gpus else None

    def knn(query_BD: Any, positive_ND: Any, candidates: int) -> Any:
        if gpu is not None and candidates <= _GPU_CANDIDATES:
            return faiss.knn_gpu(gpu, query_BD, positive_ND, candidates, metric=inner)
        return faiss.knn(query_BD, positive_ND, candidates, metric=inner)

    return knn
