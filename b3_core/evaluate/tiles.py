"""Ranks of positives, tile by tile: neither the Q x C scores nor a sorted list is ever held.

    the whole corpus competes   tile of b x c scores       -> surely ahead: counted
                                (fp32; bf16 by AMX)        -> too close:    compared in fp64
    each query has its list     fp64 products of the query with its own candidates

A tile's scores only count who is ahead by more than they can be off; who is closer is compared by
fp64 products, summed in one order for every pair. So equal vectors have equal scores, and neither
the tile's size, nor the number of threads, nor CPU, its kind, or GPU can change a rank. Ties go to
the smaller index.

Legend: Q queries, C corpus entries, D width, P entries of all queries' parts, b queries and c
corpus entries of one tile.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from b3_core import bf16
from b3_core.errors import InputError
from b3_core.precision import full_precision
from b3_core.progress import Progress, silent
from b3_core.usage import torch_on_amx, torch_on_gpu

_ROUNDING = 2.0**-24  # half the distance from 1 to the next float32
_SMALLEST = 2.0**-126  # what is smaller, a product may take for nothing
_LONGEST = 2.0**60  # of vectors whose products bf16 holds
_CLOSE = 0.02  # of a tile's scores to be compared: from here on fp32 costs less
_QUERIES = 512  # of a tile, if its size allows
_ENTRIES = 8192  # most corpus entries of a tile
_CPU_SCORES, _GPU_SCORES = 1 << 23, 1 << 27  # of a tile

_Vectors = npt.NDArray[np.float32]
_Scores = npt.NDArray[np.float64]
_Rows = npt.NDArray[np.int64]


class Parts(NamedTuple):
    """Some corpus entries for each query: query q's are ``row_P[start_Q[q]:end_Q[q]]``."""

    start_Q: _Rows
    end_Q: _Rows
    row_P: _Rows


def ranks_of_best(
    query_QD: _Vectors,
    corpus_CD: _Vectors,
    positives: Parts,
    *,
    block: int | None = None,
    gpu: bool | None = None,
    progress: Progress = silent,
) -> _Rows:
    """Rank the best positive of each query among the whole corpus, by inner product.

    A query's positives do not compete with one another. A competitor is ahead if its exact score
    is higher, or equal and its index smaller.

    Parameters
    ----------
    query_QD, corpus_CD
        Vectors; of unit length where cosine is meant.
    positives
        Of each query at least one, ascending.
    block
        Scores of a tile, at 4 bytes each, 2 in bf16; by default as suits the CPU's caches, or a
        GPU's width.
    gpu
        Whether tiles are scored by torch on a GPU; None: where torch is in use and sees one.
    progress
        Told how many scores of all have been looked at.

    Returns
    -------
    numpy.ndarray
        int64, Q; 1 is first.

    Raises
    ------
    InputError
        A vector is not finite.
    ValueError
        The widths differ, or a query has no positive in the corpus.
    """
    query_QD, corpus_CD = _checked(query_QD, corpus_CD, positives)
    query_length_Q = _lengths(query_QD, "query")
    corpus_length_C = _lengths(corpus_CD, "corpus entry")
    best_Q, score_Q = _best(query_QD, corpus_CD, positives)
    # A sum of D products in fp32, in any order (Higham 2002, section 3.1), twice: the second time
    # for the thresholds' own rounding.
    width = query_QD.shape[1]
    off_Q = 2 * (width + 2) * _ROUNDING * query_length_Q
    ahead_Q = np.zeros(len(query_QD), np.int64)
    on_gpu = _torch_sees_gpu() if gpu is None else gpu
    longest = max(query_length_Q.max(initial=0), corpus_length_C.max(initial=0))
    count = _Gpu() if on_gpu else _Amx(torch) if (torch := _amx(longest)) else _Cpu()
    block = block or (_GPU_SCORES if on_gpu else _CPU_SCORES)
    step_b, step_c = _steps(len(query_QD), len(corpus_CD), block)
    for from_c in range(0, len(corpus_CD), step_c):
        c = slice(from_c, from_c + step_c)
        longest = corpus_length_C[c].max()
        count.hold(corpus_CD[c])
        for from_b in range(0, len(query_QD), step_b):
            b = slice(from_b, from_b + step_b)
            error_b = off_Q[b] * longest + width * _SMALLEST
            tile = _Tile(query_QD[b], corpus_CD[c], score_Q[b], error_b, best_Q[b] - from_c)
            count.add(tile, ahead_Q[b])
        progress(min(c.stop, len(corpus_CD)) * len(query_QD), len(corpus_CD) * len(query_QD))
    return 1 + ahead_Q


def ranks_in_lists(
    query_QD: _Vectors,
    candidate_CD: _Vectors,
    lists: Parts,
) -> _Rows:
    """Rank the first candidate of each query's own list among that list.

    Parameters
    ----------
    query_QD
        Vectors of the queries.
    candidate_CD
        Vectors of the candidates of all lists, each once.
    lists
        Each query's own candidates, the positive first. Another candidate with its score is ahead
        of it: a model to which all are alike would be right everywhere else.

    Returns
    -------
    numpy.ndarray
        int64, Q; 1 is first.

    Raises
    ------
    InputError
        A vector is not finite.
    ValueError
        The widths differ, a list is empty, or a candidate is not there.
    """
    query_QD, candidate_CD = _checked(query_QD, candidate_CD, lists)
    _lengths(query_QD, "query")
    _lengths(candidate_CD, "candidate")
    rank_Q: _Rows = _list_ranks(query_QD, candidate_CD, lists)
    return rank_Q


class _Tile(NamedTuple):
    query_bD: _Vectors
    corpus_cD: _Vectors
    score_b: _Scores
    """Exact, of each query's best positive."""
    error_b: _Scores
    """How far a score of the tile can be from the exact one."""
    best_b: _Rows
    """The best positive, counted from the tile's first entry; may lie outside."""


class _Cpu:
    """Scores a tile by numpy, in one buffer for all tiles, and counts in numba."""

    def __init__(self) -> None:
        self._score_bc = np.empty(0, np.float32)
        self._corpus_Dc = np.empty((0, 0), np.float32)

    def hold(self, corpus_cD: _Vectors) -> None:
        self._corpus_Dc = corpus_cD.T

    def add(self, tile: _Tile, ahead_b: _Rows) -> None:
        shape = (len(tile.query_bD), len(tile.corpus_cD))
        if self._score_bc.size < shape[0] * shape[1]:
            self._score_bc = np.empty(shape[0] * shape[1], np.float32)
        out = self._score_bc[: shape[0] * shape[1]].reshape(shape)
        _count(np.matmul(tile.query_bD, self._corpus_Dc, out=out), tile, ahead_b)


class _Gpu:
    """Scores and counts by torch; what is too close comes back to be compared."""

    def __init__(self, device: str = "cuda") -> None:
        import torch  # noqa: PLC0415 - seconds to import

        self._torch: Any = torch
        self._device = device
        self._corpus_cD: Any = None

    def hold(self, corpus_cD: _Vectors) -> None:
        self._corpus_cD = self._torch.tensor(corpus_cD, device=self._device)

    def add(self, tile: _Tile, ahead_b: _Rows) -> None:
        score_b, error_b = tile.score_b, tile.error_b
        query_bD, low_b1, high_b1 = (
            self._torch.tensor(array, device=self._device)
            for array in (
                tile.query_bD,
                (score_b - error_b).astype(np.float32)[:, None],
                (score_b + error_b).astype(np.float32)[:, None],
            )
        )
        with full_precision(self._torch):
            score_bc = query_bD @ self._corpus_cD.T
        ahead_b += (score_bc > high_b1).sum(1).cpu().numpy()
        close = ((score_bc >= low_b1) & (score_bc <= high_b1)).nonzero().cpu().numpy()
        _compare(close, tile, ahead_b)


class _Amx:
    """Scores by torch in bf16, which the matrix units of a CPU multiply many times as fast as fp32.

    How far a score is off is the sum of what the rounding of either vector changes, by
    Cauchy-Schwarz, and of what sums in fp32 do. The rounding of the score itself needs no margin:
    it keeps order, so it is done to the thresholds, too. Where that leaves too many too close, as
    with a student to which all texts are much alike, the tiles after it are scored in fp32.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._score_bc: Any = None
        self._corpus_Dc: Any = None
        self._longest = self._corpus_off = 0.0
        self._fine, self._is_fine = _Cpu(), False

    def hold(self, corpus_cD: _Vectors) -> None:
        self._fine.hold(corpus_cD)
        if self._is_fine:
            return
        rounded_cD, off_c, length_c = self._rounded(corpus_cD)
        self._corpus_Dc = rounded_cD.T
        self._corpus_off, self._longest = float(off_c.max()), float(length_c.max())

    def add(self, tile: _Tile, ahead_b: _Rows) -> None:
        if self._is_fine:
            self._fine.add(tile, ahead_b)
            return
        query_bD, off_b, length_b = self._rounded(tile.query_bD)
        shape = (len(query_bD), self._corpus_Dc.shape[1])
        if self._score_bc is None or self._score_bc.numel() < shape[0] * shape[1]:
            self._score_bc = self._torch.empty(shape[0] * shape[1], dtype=self._torch.bfloat16)
        score_bc = self._score_bc[: shape[0] * shape[1]].view(shape)
        self._torch.mm(query_bD, self._corpus_Dc, out=score_bc)
        error_b = (
            # A norm of a rounded vector is at most 1 + 2^-8 times that of the vector; what is
            # smaller than fp32's smallest is none to these units.
            1.01 * tile.error_b
            + 1.01 * (off_b * self._longest + length_b * self._corpus_off)
            + tile.query_bD.shape[1] * _SMALLEST * (self._longest + length_b)
        )
        low_b, high_b = self._keys(tile.score_b - error_b), self._keys(tile.score_b + error_b)
        # Zeros of either sign are one.
        between_b2 = np.stack([low_b - (low_b == 0), high_b + (high_b == -1)], axis=1)
        close = _count_keys(score_bc.view(self._torch.int16).numpy(), between_b2, tile, ahead_b)
        self._is_fine = close > _CLOSE * shape[0] * shape[1]

    def _rounded(self, vector_ND: _Vectors) -> tuple[Any, _Scores, _Scores]:
        """Return vectors in bf16, the length of what was lost of each, and its own length."""
        vector = self._torch.from_numpy(vector_ND)
        rounded = vector.bfloat16()
        lost, length = (
            # In fp64: squares of what was lost may be less than fp32 has.
            self._torch.linalg.vector_norm(each, dim=1, dtype=self._torch.float64).numpy()
            for each in (vector - rounded.float(), vector)
        )
        return rounded, lost, length

    def _keys(self, score_b: _Scores) -> bf16.Bits:
        """Return whole numbers in the order of scores rounded to bf16."""
        bits_b = self._torch.from_numpy(score_b).float().bfloat16().view(self._torch.int16).numpy()
        return bf16.keys(bits_b)


def _amx(longest: float) -> Any:
    """Return torch if it is in use where there are matrix units, for vectors that bf16 can hold."""
    return torch_on_amx() if longest < _LONGEST else None


def _torch_sees_gpu() -> bool:
    """Ask torch if it is in use: an encoder on a GPU has imported it."""
    return torch_on_gpu() is not None


def _steps(queries: int, entries: int, block: int) -> tuple[int, int]:
    """Return how many queries and corpus entries make a tile of at most ``block`` scores."""
    step_c = max(1, min(entries, _ENTRIES, block // max(1, min(queries, _QUERIES))))
    return max(1, min(queries, block // step_c)), step_c


def _checked(query_QD: _Vectors, corpus_CD: _Vectors, parts: Parts) -> tuple[_Vectors, _Vectors]:
    start_Q, end_Q, row_P = parts
    if query_QD.ndim != 2 or corpus_CD.ndim != 2 or query_QD.shape[1] != corpus_CD.shape[1]:
        raise ValueError(f"shapes {query_QD.shape} and {corpus_CD.shape} have no width in common")
    if not len(query_QD) == len(start_Q) == len(end_Q) or (start_Q >= end_Q).any():
        raise ValueError("a query has no entry that is its own")
    if len(query_QD) and not 0 <= start_Q.min() <= end_Q.max() <= len(row_P):
        raise ValueError(f"a query's part is not within {len(row_P)} rows")
    if len(row_P) and not 0 <= row_P.min() <= row_P.max() < len(corpus_CD):
        raise ValueError(f"a row is none of the {len(corpus_CD)} entries")
    query, corpus = (np.ascontiguousarray(each, np.float32) for each in (query_QD, corpus_CD))
    return query, corpus


def _lengths(vector_ND: _Vectors, what: str) -> _Scores:
    """Return the norms of finite vectors."""
    length_N: _Scores = _norms(vector_ND)
    bad = np.flatnonzero(~np.isfinite(length_N))
    if bad.size:  # NaN compares as false with everything: it would rank first
        raise InputError(
            f"the vector of {what} {bad[0]} is not finite ({bad.size} such vectors)",
            remedy="look at that row's text: a text without a known token has no vector",
        )
    return length_N


# Eight sums, one order wherever it is inlined: equal vectors must have equal scores to the last
# bit. A product of two float32 is exact in fp64, so it makes no difference whether it is fused.
@njit(cache=True)  # type: ignore[untyped-decorator]
def _inner(a_D: _Vectors, b_D: _Vectors) -> float:
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = len(a_D) & ~7
    for d in range(0, whole, 8):
        s0 += np.float64(a_D[d]) * np.float64(b_D[d])
        s1 += np.float64(a_D[d + 1]) * np.float64(b_D[d + 1])
        s2 += np.float64(a_D[d + 2]) * np.float64(b_D[d + 2])
        s3 += np.float64(a_D[d + 3]) * np.float64(b_D[d + 3])
        s4 += np.float64(a_D[d + 4]) * np.float64(b_D[d + 4])
        s5 += np.float64(a_D[d + 5]) * np.float64(b_D[d + 5])
        s6 += np.float64(a_D[d + 6]) * np.float64(b_D[d + 6])
        s7 += np.float64(a_D[d + 7]) * np.float64(b_D[d + 7])
    for d in range(whole, len(a_D)):
        s0 += np.float64(a_D[d]) * np.float64(b_D[d])
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _norms(vector_ND: _Vectors) -> _Scores:
    length_N = np.empty(len(vector_ND), np.float64)
    for n in prange(len(vector_ND)):
        length_N[n] = np.sqrt(_inner(vector_ND[n], vector_ND[n]))
    return length_N


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _best(query_QD: _Vectors, corpus_CD: _Vectors, positives: Parts) -> tuple[_Rows, _Scores]:
    start_Q, end_Q, row_P = positives
    best_Q = np.empty(len(query_QD), np.int64)
    score_Q = np.empty(len(query_QD), np.float64)
    for q in prange(len(query_QD)):
        best, most = row_P[start_Q[q]], -np.inf
        for p in range(start_Q[q], end_Q[q]):
            score = _inner(query_QD[q], corpus_CD[row_P[p]])
            if score > most:  # of equal ones the first
                best, most = row_P[p], score
        best_Q[q], score_Q[q] = best, most
    return best_Q, score_Q


# A query's other positives need no care: they score less than the best, or as much but stand later.
@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _count(score_bc: _Vectors, tile: _Tile, ahead_b: _Rows) -> None:
    query_bD, corpus_cD, score_b, error_b, best_b = tile
    for b in prange(len(score_bc)):
        low, high = np.float32(score_b[b] - error_b[b]), np.float32(score_b[b] + error_b[b])
        above = close = 0
        for c in range(score_bc.shape[1]):
            above += score_bc[b, c] > high
            close += score_bc[b, c] >= low
        ahead_b[b] += above
        if close > above:
            for c in range(score_bc.shape[1]):
                if low <= score_bc[b, c] <= high:
                    exact = _inner(query_bD[b], corpus_cD[c])
                    ahead_b[b] += exact > score_b[b] or (exact == score_b[b] and c < best_b[b])


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _count_keys(
    bits_bc: bf16.Bits,
    between_b2: bf16.Bits,
    tile: _Tile,
    ahead_b: _Rows,
) -> np.int64:
    """Count who is ahead, and return how many had to be compared."""
    query_bD, corpus_cD, score_b, _, best_b = tile
    compared = np.int64(0)
    for b in prange(len(bits_bc)):
        low, high = between_b2[b]
        above = close = np.int32(0)
        for c in range(bits_bc.shape[1]):
            key = bf16.key(bits_bc[b, c])
            above += key > high
            close += key >= low
        ahead_b[b] += above
        compared += close - above
        if close > above:
            for c in range(bits_bc.shape[1]):
                if low <= bf16.key(bits_bc[b, c]) <= high:
                    exact = _inner(query_bD[b], corpus_cD[c])
                    ahead_b[b] += exact > score_b[b] or (exact == score_b[b] and c < best_b[b])
    return compared


@njit(cache=True)  # type: ignore[untyped-decorator]
def _compare(close: _Rows, tile: _Tile, ahead_b: _Rows) -> None:
    query_bD, corpus_cD, score_b, _, best_b = tile
    for at in range(len(close)):
        b, c = close[at]
        exact = _inner(query_bD[b], corpus_cD[c])
        ahead_b[b] += exact > score_b[b] or (exact == score_b[b] and c < best_b[b])


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _list_ranks(query_QD: _Vectors, candidate_CD: _Vectors, lists: Parts) -> _Rows:
    start_Q, end_Q, row_L = lists
    rank_Q = np.ones(len(query_QD), np.int64)
    for q in prange(len(query_QD)):
        own = row_L[start_Q[q]]
        positive = _inner(query_QD[q], candidate_CD[own])
        for at in range(start_Q[q] + 1, end_Q[q]):
            other = row_L[at]
            rank_Q[q] += other != own and _inner(query_QD[q], candidate_CD[other]) >= positive
    return rank_Q
