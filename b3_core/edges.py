"""Edges counted in a table of ranks, without building a graph of them.

What ``graph.link`` would hold as a matrix is here walked through row by row: a table may be
mapped from disk, and nothing but a few numbers a row is in memory.

Legend: N rows, W ranks of a window.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, prange


class Edges(NamedTuple):
    """Undirected edges of a window graph."""

    mutual: int
    """Pairs of rows that are in each other's window."""
    union: int
    """Pairs of which one is in the other's window."""
    alone_mutual: int
    """Rows without a mutual edge."""
    alone_union: int
    """Rows without any."""


def count_edges(window_NW: npt.NDArray[np.int32]) -> Edges:
    """Count the edges of windows; -1 is no row."""
    mutual_N = _mutual(window_NW, np.zeros(len(window_NW), np.int32))[0]
    asked_N, held_N = np.zeros(len(window_NW), bool), np.zeros(len(window_NW), np.int32)
    for start in range(0, len(window_NW), 1 << 16):
        asked_X = np.asarray(window_NW[start : start + (1 << 16)])
        asked_N[asked_X[asked_X >= 0]] = True
        held_N[start : start + len(asked_X)] = (asked_X >= 0).sum(axis=1)
    mutual, directed = int(mutual_N.sum()) // 2, int(held_N.sum())
    return Edges(
        mutual,
        directed - mutual,
        int((mutual_N == 0).sum()),
        int(((held_N == 0) & ~asked_N).sum()),
    )


def mean_score(window_NW: npt.NDArray[np.int32], score_NW: npt.NDArray[np.float32]) -> float:
    """Return the mean of what scores of rows in windows are above 0; 1 where none is.

    ``graph._unit_score`` is the same mean, of scores in memory, added up in another order: to call
    one from the other would move the last bits of weights.
    """
    total, count = 0.0, 0
    for start in range(0, len(window_NW), 1 << 16):
        here = slice(start, start + (1 << 16))
        held_XW = np.asarray(window_NW[here]) >= 0
        total += float(np.maximum(score_NW[here][held_XW], 0).sum(dtype=np.float64))
        count += int(held_XW.sum())
    return total / count if total else 1.0


def count_mutual(
    window_NW: npt.NDArray[np.int32], label_N: npt.NDArray[np.int32]
) -> tuple[int, int]:
    """Count ordered pairs of rows that are in each other's window: all, and of one label.

    A label of -1 is none.
    """
    all_N, inside_N = _mutual(window_NW, label_N)
    return int(all_N.sum()), int(inside_N.sum())


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _mutual(
    window_NW: npt.NDArray[np.int32], label_N: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Count for each row the rows of its window that have it in theirs: all, of its label."""
    rows, width = window_NW.shape
    all_N, inside_N = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for i in prange(rows):
        for w in range(width):
            j = window_NW[i, w]
            if j < 0:
                continue
            for v in range(width):
                if window_NW[j, v] == i:
                    all_N[i] += 1
                    if label_N[i] >= 0 and label_N[i] == label_N[j]:
                        inside_N[i] += 1
                    break
    return all_N, inside_N
