"""The best positives of every query, own row and own group excluded.

    search -> C candidates a row -> own group out -> exact scores in fp64 -> best M
    rows whose candidates may not hold the best M: a better search, or 2C, 4C ... all N

The search only proposes (:mod:`b3_core.search`); scores and order come from fp64, so neither the
block size, nor the number of threads, nor CPU or GPU can change a rank. An approximate search may
leave a positive out; how many it leaves out, :func:`window_recall` measures. N x N scores are
never held.

Legend: N rows, R rows that are ranked, D width of a vector, M ranks kept, B rows of one block,
C candidates a row.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from b3_core import search
from b3_core.artifacts import Artifact, Draft
from b3_core.errors import InputError
from b3_core.progress import Progress, silent

VERSION = 2

_SLACK = 15  # candidates beyond M and the own group: room for near ties at rank M
_BLOCK = 1 << 14  # most rows of one block: whole blocks of faiss, and progress every few seconds
_CHECKED = 1 << 16  # rows of a table looked at together
_ALIKE = 1 << 12  # rows compared with one vector together
_CELL = 40  # bytes a candidate costs: score and row (12), and twice that in faiss's reservoir


@dataclass(frozen=True, eq=False)
class RankTable:
    """Each row's positives, best first, without its own row and group.

    Sorted by exact score, ties by smaller row; scores that differ by less than float32 shows are
    equal here but still in their exact order. Beyond the ranks asked for there may be spare ones,
    as far down as the search could be sure of: a later table is made from them.

    Raises
    ------
    ValueError
        Shapes or types differ from those below, or a row is not sorted, names itself, names a
        row twice or names one that is not there.
    """

    neighbour_NM: npt.NDArray[np.int32]
    """Rows; -1 after the last where the own group leaves fewer than M, or no spare one is sure."""
    score_NM: npt.NDArray[np.float32]
    """Inner products; -inf beside -1."""

    def __post_init__(self) -> None:
        row_NM, score_NM = self.neighbour_NM, self.score_NM
        if row_NM.ndim != 2 or row_NM.shape != score_NM.shape:
            raise ValueError(f"shapes {row_NM.shape} and {score_NM.shape} are not one (N, M)")
        if row_NM.dtype != np.int32 or score_NM.dtype != np.float32:
            raise ValueError(f"types {row_NM.dtype}, {score_NM.dtype} are not int32, float32")
        for start in range(0, len(row_NM), _CHECKED):
            self._check(start, row_NM[start : start + _CHECKED], score_NM[start : start + _CHECKED])

    def _check(
        self, start: int, row_XM: npt.NDArray[np.int32], score_XM: npt.NDArray[np.float32]
    ) -> None:
        rows = len(self.neighbour_NM)
        if row_XM.min(initial=-1) < -1 or row_XM.max(initial=-1) >= rows:
            raise ValueError(f"a neighbour is none of the {rows} rows")
        if (row_XM == np.arange(start, start + len(row_XM))[:, None]).any():
            raise ValueError("a row is its own neighbour")
        if ((row_XM == -1) != np.isneginf(score_XM)).any() or np.isnan(score_XM).any():
            raise ValueError("a score is NaN, or -1 and -inf do not stand side by side")
        if (score_XM[:, 1:] > score_XM[:, :-1]).any():
            raise ValueError("scores are not sorted, best first")
        sorted_XM = np.sort(row_XM, axis=1)
        if ((sorted_XM[:, 1:] == sorted_XM[:, :-1]) & (sorted_XM[:, 1:] >= 0)).any():
            raise ValueError("a neighbour is ranked twice")

    def save(self, draft: Draft) -> None:
        """Write ``neighbour.npy`` and ``score.npy``."""
        np.save(draft.path("neighbour.npy"), self.neighbour_NM)
        np.save(draft.path("score.npy"), self.score_NM)

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Map both files into memory."""
        return cls(artifact.array("neighbour.npy"), artifact.array("score.npy"))


def rank(
    query_ND: npt.NDArray[np.float32],
    positive_ND: npt.NDArray[np.float32],
    *,
    group_N: npt.NDArray[np.int32],
    width: int,
    spare: int = 0,
    ahead: Callable[[npt.NDArray[np.float32], search.Search], search.Search] | None = None,
    method: search.Method = "exact",
    memory_mb: int = 1024,
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
    spare
        Further ranks to keep where the search is sure of them.
    ahead
        Makes a search that is asked first, from the positives and the search of all of them, which
        it leaves to do what it cannot (:class:`b3_core.carried.Carried`).
    method
        ``exact``; or ``ivf`` or ``hnsw``, which may miss positives (:class:`b3_core.search.Index`)
        and cost more than ``exact`` below about 200,000 rows. All three give exact scores.
    memory_mb
        Bound on the temporaries of one block of rows, on the CPU or the GPU. It bounds neither
        the vectors, nor the table, nor an index, which holds the positives once more.
    progress
        Told how many rows are final.

    Returns
    -------
    RankTable
        (N, min(width + spare, N - 1)). Whatever was asked first, the best ``width`` are the same.

    Raises
    ------
    InputError
        A vector is not finite (the row is named), or faiss is not installed.
    ValueError
        The three arrays are not of N rows, ``width`` is negative, ``memory_mb`` is not positive,
        or ``method`` is none of the three.
    """
    if width < 0 or memory_mb < 1 or method not in {"exact", "ivf", "hnsw"}:
        raise ValueError(f"cannot rank at width {width} by {method!r} in {memory_mb} MB")
    pairs = _Pairs.of(query_ND, positive_ND, group_N)
    rows = len(query_ND)
    ranks = min(width, max(rows - 1, 0))
    spare = min(spare, rows - 1 - ranks) if ranks else 0
    first = (
        pairs.exact(ranks + spare, memory_mb=memory_mb)
        if method == "exact"
        else search.approximate(pairs.positive_ND, method=method, memory_mb=memory_mb)
    )
    if ahead is not None:
        first = ahead(pairs.positive_ND, first)
    found = _rank_rows(
        pairs,
        np.arange(rows),
        ranks=ranks,
        spare=spare,
        first=first,
        memory_mb=memory_mb,
        progress=progress,
    )
    del first
    search.let_go()
    return RankTable(*found)


def window_recall(
    table: RankTable,
    query_ND: npt.NDArray[np.float32],
    positive_ND: npt.NDArray[np.float32],
    *,
    group_N: npt.NDArray[np.int32],
    p: int,
    m: int,
    rng: np.random.Generator,
    sample: int = 1000,
    memory_mb: int = 1024,
) -> float:
    """Measure which share of the exact ranks [p, p + m) the table's own [p, p + m) hold.

    Parameters
    ----------
    table
        Ranked by an approximate search of the same vectors and groups.
    p, m
        First ranks dropped, and ranks kept after them.
    rng
        Draws the rows that are ranked exactly.
    sample
        How many; at most N.

    Returns
    -------
    float
        Between 0 and 1; 1 where no sampled row has an exact window at all.

    Raises
    ------
    InputError
        As :func:`rank`.
    ValueError
        The arrays do not fit together, or the table ends before rank p + m.
    """
    pairs, rows = _Pairs.of(query_ND, positive_ND, group_N), len(query_ND)
    ranks = min(p + m, max(rows - 1, 0))
    if len(table.neighbour_NM) != rows or table.neighbour_NM.shape[1] < ranks:
        raise ValueError(f"a table {table.neighbour_NM.shape} ends before rank {ranks} of {rows}")
    row_R = np.sort(rng.choice(rows, min(sample, rows), replace=False))
    first = pairs.exact(ranks, memory_mb=memory_mb)
    exact_RM, _ = _rank_rows(pairs, row_R, ranks=ranks, first=first, memory_mb=memory_mb)
    return share_held(exact_RM[:, p:], table.neighbour_NM[row_R, p : p + m])


def share_held(wanted_RW: npt.NDArray[np.integer], found_RW: npt.NDArray[np.integer]) -> float:
    """Return which share of the rows wanted were found, row for row; -1 is none. 1 of nothing."""
    held = wanted = 0
    for wanted_W, found_W in zip(wanted_RW, found_RW, strict=True):
        asked = wanted_W[wanted_W >= 0]
        held += int(np.isin(asked, found_W).sum())
        wanted += len(asked)
    return held / wanted if wanted else 1.0


@dataclass(frozen=True, eq=False)
class _Pairs:
    """What is ranked: contiguous float32 vectors that are finite, and groups."""

    query_ND: npt.NDArray[np.float32]
    positive_ND: npt.NDArray[np.float32]
    group_N: npt.NDArray[np.int32]

    @classmethod
    def of(
        cls,
        query_ND: npt.NDArray[np.float32],
        positive_ND: npt.NDArray[np.float32],
        group_N: npt.NDArray[np.int32],
    ) -> Self:
        if query_ND.shape != positive_ND.shape or group_N.shape != (len(query_ND),):
            raise ValueError(
                f"cannot rank queries {query_ND.shape}, positives {positive_ND.shape}, "
                f"groups {group_N.shape}"
            )
        return cls(finite(query_ND, "query"), finite(positive_ND, "positive"), group_N)

    @cached_property
    def size_N(self) -> npt.NDArray[np.int64]:
        """How many rows each row's group has."""
        _, code_N, size_G = np.unique(self.group_N, return_inverse=True, return_counts=True)
        sizes: npt.NDArray[np.int64] = size_G[code_N]
        return sizes

    def exact(self, columns: int, *, memory_mb: int) -> search.Search:
        """Search exactly, without the rows that can be at no query's first ``columns`` ranks.

        With them, a positive that a thousand rows share would be a thousand candidates of equal
        score for every query near it, whether they are one group or not.
        """
        row_A = np.flatnonzero(self._may_rank(columns))
        if len(row_A) == len(self.positive_ND):
            return search.exact(self.positive_ND, memory_mb=memory_mb)
        return search.Among(search.exact(self.positive_ND[row_A], memory_mb=memory_mb), row_A)

    def _may_rank(self, columns: int) -> npt.NDArray[np.bool_]:
        """Tell which positives can be at some query's first ``columns`` ranks, so far as ties say.

        Of rows with one positive the smaller comes first, whatever is asked, and a query leaves out
        those of its own group. So a row is behind all of them that are before it, but those of one
        group other than its own (no query of its own asks for it): at best for it, of that which
        most of them are of. Where these are ``columns`` or more, no query ranks it so high.
        """
        may_N = np.ones(len(self.group_N), bool)
        for row_E in _equal(self.positive_ND, beyond=columns):
            count: Counter[int] = Counter()
            leader, most, next_most = -1, 0, 0  # the group of most rows so far, theirs, another's
            for before, (row, group) in enumerate(zip(row_E, self.group_N[row_E], strict=True)):
                may_N[row] = before - (next_most if group == leader else most) < columns
                count[group] += 1
                if group == leader:
                    most = count[group]
                elif count[group] > most:
                    leader, most, next_most = group, count[group], most
                else:
                    next_most = max(next_most, count[group])
        return may_N

    def slack(self, ranks: int) -> int:
        """Choose how many candidates to ask for beyond M: faiss slows down by 10 % for 16 more.

        Room for the own group of all rows but the twentieth with the largest; where that is more
        than M, most of a group lies far off, and to double C costs less.
        """
        return _SLACK + min(int(np.quantile(self.size_N, 0.95)), ranks)

    def best(
        self,
        row_B: npt.NDArray[np.intp],
        using: search.Search,
        *,
        candidates: int,
        ranks: int,
        spare: int,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return rows and scores, (B, M + spare), and which rows' M are sure to be right."""
        query_BD, whole = self.query_ND[row_B], candidates == len(self.positive_ND)
        if whole:  # nothing to propose: all N are candidates
            none_B, empty_B0 = np.zeros(len(row_B)), np.empty((len(row_B), 0), np.int64)
            found = search.Proposal(empty_B0.astype(np.float32), empty_B0, none_B, none_B)
        else:
            found = using.propose(query_BD, candidates, row_B)
        best_BM, score_BM, last_B = settle(
            (query_BD, self.positive_ND), (self.group_N, row_B), found[:3], (ranks, spare)
        )
        # A positive that was not proposed scores at most the ceiling. Rank M must score more, not
        # as much: at equal scores the smaller row comes first. Too few survivors leave -inf here.
        sure_B = (last_B > found.ceiling_B) | whole
        # A spare rank must score more too; its score was rounded, by less than to the next below.
        below_BS = np.nextafter(score_BM[:, ranks:], np.float32(-np.inf)).astype(np.float64)
        unsure_BS = ~((below_BS > found.ceiling_B[:, None]) | whole)
        best_BM[:, ranks:][unsure_BS], score_BM[:, ranks:][unsure_BS] = -1, -np.inf
        return best_BM, score_BM, sure_B


def _rank_rows(
    pairs: _Pairs,
    row_R: npt.NDArray[np.intp],
    *,
    ranks: int,
    first: search.Search,
    memory_mb: int,
    spare: int = 0,
    progress: Progress = silent,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Rank some rows: neighbours and scores, both (R, M + spare)."""
    rows = len(pairs.query_ND)
    neighbour_RM = np.empty((len(row_R), ranks + spare), np.int32)
    score_RM = np.empty((len(row_R), ranks + spare), np.float32)
    if not ranks:
        return neighbour_RM, score_RM
    pending = np.arange(len(row_R))
    using, candidates, done = first, min(ranks + pairs.slack(ranks), rows), 0
    while pending.size:
        unsure = []
        for at_B in _blocks(pending, candidates, memory_mb):
            neighbour_RM[at_B], score_RM[at_B], sure_B = pairs.best(
                row_R[at_B], using, candidates=candidates, ranks=ranks, spare=spare
            )
            unsure.append(at_B[~sure_B])
            done += int(sure_B.sum())
            progress(done, len(row_R))
            if using.better and sure_B.mean() < 0.5:  # it would only be tried in vain
                using = using.better()
        pending = np.concatenate(unsure)
        if using.better and pending.size:
            using = using.better()
        else:
            candidates = min(2 * candidates, rows)  # at N every row is sure, so this ends
    return neighbour_RM, score_RM


def _blocks(
    pending: npt.NDArray[np.intp], candidates: int, memory_mb: int
) -> Iterator[npt.NDArray[np.intp]]:
    size = min(max((memory_mb << 20) // (_CELL * candidates), 1), _BLOCK)
    for start in range(0, len(pending), size):
        yield pending[start : start + size]


def finite(vector_ND: npt.NDArray[np.float32], side: str) -> npt.NDArray[np.float32]:
    """Return vectors as contiguous float32.

    Raises
    ------
    InputError
        One is not finite; the row is named, and the ``side``: query or positive.
    """
    bad = np.flatnonzero(~np.isfinite(search.lengths(vector_ND)))
    if bad.size:
        raise InputError(
            f"the embedding of the {side} in row {bad[0]} is not finite ({bad.size} such rows)",
            expected="finite vectors",
            remedy="try teacher.precision: fp32, or look at that row's text",
        )
    return np.ascontiguousarray(vector_ND, dtype=np.float32)


def _equal(vector_ND: npt.NDArray[np.float32], *, beyond: int) -> Iterator[npt.NDArray[np.intp]]:
    """Give the rows, ascending, of each vector that more than so many rows have bit for bit."""
    bits_ND = vector_ND.view(np.uint32)
    _, code_N, times_H = np.unique(_digest(bits_ND), return_inverse=True, return_counts=True)
    row_X = np.flatnonzero(times_H[code_N] > beyond)
    row_X = row_X[np.argsort(code_N[row_X], kind="stable")]
    for row_E in np.split(row_X, np.flatnonzero(np.diff(code_N[row_X])) + 1):
        # Chance may give other vectors the digest of the first: of these, all rows are kept.
        same = [
            (bits_ND[row_E[start : start + _ALIKE]] == bits_ND[row_E[0]]).all(axis=1)
            for start in range(0, len(row_E), _ALIKE)
        ]
        yield row_E[np.concatenate([np.ones(0, bool), *same])]


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _digest(bits_ND: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """Return 64 bits of each vector, FNV-1a by words of 32 bits, as good as sure to differ."""
    digest_N = np.empty(len(bits_ND), np.uint64)
    for n in prange(len(bits_ND)):
        digest = np.uint64(0xCBF29CE484222325)
        for bits in bits_ND[n]:
            digest = (digest ^ np.uint64(bits)) * np.uint64(0x100000001B3)
        digest_N[n] = digest
    return digest_N


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def settle(
    vectors: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    owner: tuple[npt.NDArray[np.int32], npt.NDArray[np.intp]],
    found: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float64]],
    ranks: tuple[int, int],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Score candidates exactly and sort them: rows and scores (B, M + spare), and exact score M.

    ``vectors`` are the block's queries and all positives, ``owner`` all groups and the rows of the
    block, ``found`` the first three parts of a proposal; one without a candidate stands for all N.
    ``ranks`` are M and the spare ones.
    """
    kept_M, columns = ranks[0], ranks[0] + ranks[1]
    query_BD, positive_ND = vectors
    group_N, row_B = owner
    near_BC, found_BC, error_B = found
    best_BM = np.full((len(row_B), columns), -1, np.int32)
    score_BM = np.full((len(row_B), columns), -np.inf, np.float32)
    last_B = np.full(len(row_B), -np.inf)
    for b in prange(len(row_B)):
        whole = found_BC.shape[1] == 0
        size = len(positive_ND) if whole else found_BC.shape[1]
        row_C, exact_C = np.empty(size, np.int64), np.empty(size)
        kept, floor = 0, -np.inf
        for c in range(size):
            row = c if whole else found_BC[b, c]
            if row < 0 or group_N[row] == group_N[row_B[b]]:
                continue
            if not whole:
                # As many survivors as there are columns score floor or more; from here on less.
                if near_BC[b, c] + error_B[b] < floor:
                    break
                if kept == columns - 1:
                    floor = near_BC[b, c] - error_B[b]
            row_C[kept] = row
            kept += 1
        query_D = query_BD[b].astype(np.float64)
        for c in range(0, kept, 4):  # the last four may hold one row more than once
            d, e, f = min(c + 1, kept - 1), min(c + 2, kept - 1), min(c + 3, kept - 1)
            exact_C[c], exact_C[d], exact_C[e], exact_C[f] = _inner(
                query_D,
                (positive_ND[row_C[c]], positive_ND[row_C[d]]),
                (positive_ND[row_C[e]], positive_ND[row_C[f]]),
            )
        _sort(row_C[:kept], exact_C[:kept])
        for r in range(min(kept, columns)):
            best_BM[b, r], score_BM[b, r] = row_C[r], exact_C[r]
        if kept >= kept_M:
            last_B[b] = exact_C[kept_M - 1]
    return best_BM, score_BM, last_B


# Four at a time, for the time goes into waiting for rows. A product of two float32 is exact in
# fp64, so to fuse it with its sum ("contract") changes nothing. Nor does it to sum in any order
# ("reassoc") where no sum rounds, as with stored teachers' vectors; with others the order is the
# CPU's choice, but the same for all of its rows.
@njit(cache=True, fastmath={"contract", "reassoc"})  # type: ignore[untyped-decorator]
def _inner(
    query_D: npt.NDArray[np.float64],
    ab: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    cd: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
) -> tuple[float, float, float, float]:
    a_D, b_D = ab
    c_D, d_D = cd
    a = b = c = d = 0.0
    for i in range(len(query_D)):
        a += query_D[i] * np.float64(a_D[i])
        b += query_D[i] * np.float64(b_D[i])
        c += query_D[i] * np.float64(c_D[i])
        d += query_D[i] * np.float64(d_D[i])
    return a, b, c, d


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sort(row_C: npt.NDArray[np.int64], exact_C: npt.NDArray[np.float64]) -> None:
    """Sort in place: best first, ties by smaller row."""
    for c in range(1, len(row_C)):
        if exact_C[c] > exact_C[c - 1] or (
            exact_C[c] == exact_C[c - 1] and row_C[c] < row_C[c - 1]
        ):
            break
    else:
        return  # most rows come sorted
    order_C = np.argsort(-exact_C, kind="mergesort")
    row_C[:], exact_C[:] = row_C[order_C], exact_C[order_C]
    start = 0
    for c in range(1, len(row_C) + 1):
        if c == len(row_C) or exact_C[c] != exact_C[start]:
            row_C[start:c].sort()
            start = c
