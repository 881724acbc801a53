"""Exact search on a CPU that multiplies tiles of bf16 (AMX): many scores, of which few are kept.

    query_BD, positive_ND in bf16 -> tile of scores -> those above the least kept -> Proposal

Scores are picked by their bits, as whole numbers in the floats' order: a tile is read once, 16
scores at a time, and only where the largest of them is above the least kept one by one.

Legend: N positives, D width of a vector, B queries of one block, C candidates a query; b queries
and T positives of one tile, X places for what was picked, W wanted.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from b3_core import bf16
from b3_core.bf16 import Bits
from b3_core.search import Faiss, Proposal, Search, Torch, lengths

_QUERIES, _POSITIVES = 1024, 8192  # of a tile: 16 MB of scores
_WIDER = 1.5  # times as many are picked as asked for: more are close in bf16 than in fp32
_TOGETHER = 16
_VALUES = 1024  # of bf16 below the largest: four octaves and more
_LEAST = np.int16(-(1 << 15))  # below every score; a NaN may have it too, and is never sure
_SMALLEST = 2.0**-126  # what is smaller, these units take for nothing
_LARGEST = 2.0**120  # products above it may be sums of infinities


class MatrixUnits(Torch):
    """Search in bf16 on the CPU; rows that bf16 leaves unsure go to :class:`Faiss`.

    Parameters
    ----------
    positive_ND
        Finite, contiguous; held once more in bf16.
    memory_mb
        For the rounding of positives; a tile takes 16 MB, whatever this is.
    """

    def __init__(self, positive_ND: npt.NDArray[np.float32], *, memory_mb: int) -> None:
        super().__init__(positive_ND, device="cpu", dtype="bfloat16", memory_mb=memory_mb)
        self.better: Callable[[], Search] | None = lambda: Faiss(positive_ND)

    def propose(
        self, query_BD: npt.NDArray[np.float32], candidates: int, row_B: npt.NDArray[np.intp]
    ) -> Proposal:
        """Pick half as many again as asked for, where there are so many."""
        query = self.torch.from_numpy(query_BD)
        low_BD = query.to(self.dtype)
        wanted = min(math.ceil(_WIDER * candidates), len(self.positive_ND))
        score_BW = np.empty((len(query_BD), wanted), np.float32)
        row_BW = np.empty((len(query_BD), wanted), np.int64)
        for start in range(0, len(query_BD), _QUERIES):
            b = slice(start, start + _QUERIES)
            key_bW, row_BW[b] = self._pick(low_BD[b], wanted)
            score_BW[b] = self.torch.from_numpy(bf16.keys(key_bW)).view(self.dtype).float().numpy()
        error_B = self._error(query_BD, query, score_BW)
        return Proposal(score_BW, row_BW, error_B, score_BW[:, -1] + error_B)

    def _error(
        self, query_BD: npt.NDArray[np.float32], query: Any, score_BC: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float64]:
        length_B = lengths(query_BD)
        error_B = super()._error(query_BD, query, score_BC)
        error_B += query_BD.shape[1] * _SMALLEST * (1 + length_B + self.longest)
        return np.where(length_B * self.longest < _LARGEST, error_B, np.inf)

    def _pick(self, query_bD: Any, wanted: int) -> tuple[Bits, npt.NDArray[np.int32]]:
        """Return the largest scores, as keys, and their rows: (b, W), best first."""
        queries = len(query_bD)
        key_bX = np.full((queries, 2 * wanted), _LEAST)
        row_bX = np.full((queries, 2 * wanted), -1, np.int32)
        count_b, least_b = np.zeros(queries, np.int64), np.full(queries, _LEAST)
        score = self.torch.empty(queries * _POSITIVES, dtype=self.dtype)
        for start in range(0, len(self.positive_ND), _POSITIVES):
            part_TD = self.positive_ND[start : start + _POSITIVES]
            score_bT = score[: queries * len(part_TD)].view(queries, len(part_TD))
            self.torch.mm(query_bD, part_TD.T, out=score_bT)
            bits_bT = score_bT.view(self.torch.int16).numpy()
            _keep(bits_bT, start, (key_bX, row_bX), (count_b, least_b))
        _finish(key_bX, row_bX, count_b)
        return key_bX[:, :wanted], row_bX[:, :wanted]


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _keep(
    bits_bT: Bits,
    start: int,
    picked: tuple[Bits, npt.NDArray[np.int32]],
    state: tuple[npt.NDArray[np.int64], Bits],
) -> None:
    """Put scores above the least that is kept beside those kept before."""
    for b in prange(len(bits_bT)):
        row = picked[0][b], picked[1][b]
        kept = _keep_of_query(bits_bT[b], start, row, (state[0][b], state[1][b]))
        state[0][b] = kept[0]
        state[1][b] = kept[1]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _keep_of_query(
    bits_T: Bits,
    start: int,
    picked: tuple[Bits, npt.NDArray[np.int32]],
    state: tuple[int, np.int16],
) -> tuple[int, np.int16]:
    key_X, row_X = picked
    count, least = state
    for first in range(0, len(bits_T), _TOGETHER):
        last = min(first + _TOGETHER, len(bits_T))
        most = _LEAST
        if least > 0:  # bits of positive floats are keys, those of others are less than any
            for t in range(first, last):
                most = max(most, bits_T[t])
        else:
            for t in range(first, last):
                most = max(most, bf16.key(bits_T[t]))
        if most <= least:
            continue
        for t in range(first, last):
            key = bf16.key(bits_T[t])
            if key > least:
                key_X[count], row_X[count] = key, start + t
                count += 1
                if count == len(key_X):
                    count = len(key_X) // 2
                    least = _cut(key_X, row_X)
    return count, least


@njit(cache=True)  # type: ignore[untyped-decorator]
def _cut(key_X: Bits, row_X: npt.NDArray[np.int32]) -> np.int16:
    """Move the larger half to the front; return the least of it. Of equal ones any stay."""
    half = len(key_X) // 2
    least: np.int16
    least, above = _middle(key_X, half)
    equal = half - above
    kept = 0
    for x in range(len(key_X)):
        if key_X[x] > least or (key_X[x] == least and equal > 0):
            equal -= key_X[x] == least
            key_X[kept], row_X[kept] = key_X[x], row_X[x]
            kept += 1
    return least


@njit(cache=True)  # type: ignore[untyped-decorator]
def _middle(key_X: Bits, half: int) -> tuple[np.int16, int]:
    """Return the key of which as many are larger or equal as are wanted, and how many are larger.

    By counting values: a few hundred differ. Where they lie too far apart, by partition.
    """
    largest = np.int64(key_X.max())
    count_V = np.zeros(_VALUES, np.int64)
    for x in range(len(key_X)):
        below = largest - key_X[x]
        if below < _VALUES:
            count_V[below] += 1
    above = 0
    for value in range(_VALUES):
        if above + count_V[value] >= half:
            return np.int16(largest - value), above
        above += count_V[value]
    least: np.int16 = np.partition(key_X, half)[half]
    return least, int(np.sum(key_X > least))


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _finish(key_bX: Bits, row_bX: npt.NDArray[np.int32], count_b: npt.NDArray[np.int64]) -> None:
    """Sort what was picked, best first."""
    for b in prange(len(key_bX)):
        count = count_b[b]
        order = np.argsort(key_bX[b, :count])[::-1]
        key_bX[b, :count], row_bX[b, :count] = key_bX[b, order], row_bX[b, order]
