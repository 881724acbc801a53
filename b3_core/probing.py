"""The best positives of a cell's queries, looked for in the lists that each query asks for.

    queries of a block -> the T lists whose mean positive they score highest
                       -> list by list: a matrix product with all queries that ask for it
                       -> C candidates a query -> exact scores in fp64 -> best M

Lists come from any cell. A list that is asked for by many queries is read once for all of them, so
this is a few large products where an inverted index answers query by query. What is held at once
is a block of queries, their candidates and one list: nothing grows with N but the order of rows.

Legend: N rows, D width of a vector, L lists, R rows of a cell, B queries of a block, T lists asked
for, G queries that ask for one list, H rows of that list, C candidates a query, M ranks kept.
"""

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from b3_core import search
from b3_core.cells import Cells, Sides
from b3_core.neighbours import settle, share_held
from b3_core.progress import Progress, silent

VERSION = 3

_SLACK = 15  # candidates beyond M: room for near ties at rank M
_BLOCK = 1 << 13  # queries
_PART = 1 << 13  # positives that are scored together


def rank_cell(
    sides: Sides,
    cells: Cells,
    cell: int,
    *,
    group_N: npt.NDArray[np.int32],
    width: int,
    lists: int,
    progress: Progress = silent,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Rank the best ``width`` positives of the queries of one cell.

    Parameters
    ----------
    group_N
        No row ranks a row of its own group, and so never itself.
    lists
        How many are looked into for each query. Where they are all there are, ranks are exact.
    progress
        Told how many rows are final.

    Returns
    -------
    neighbour_RM, score_RM
        In the order of ``cells.own(cell)``; -1 and -inf where lists held fewer than M.
    """
    row_R = cells.own(cell)
    neighbour_RM = np.full((len(row_R), width), -1, np.int32)
    score_RM = np.full((len(row_R), width), -np.inf, np.float32)
    for start in range(0, len(row_R), _BLOCK):
        at = slice(start, start + _BLOCK)
        query_BD = sides[0][row_R[at]].astype(np.float32)
        list_BT = search.nearest(query_BD, cells.mean_LD, min(lists, len(cells.mean_LD)))
        found_BC, near_BC = _candidates(
            (query_BD, sides[1]), (cells, list_BT), (row_R[at], group_N), width + _SLACK
        )
        neighbour_RM[at], score_RM[at] = _exact(
            (query_BD, sides[1]), (found_BC, near_BC), (row_R[at], group_N), width
        )
        progress(min(start + _BLOCK, len(row_R)), len(row_R))
    return neighbour_RM, score_RM


def _candidates(
    sides: Sides,
    lists: tuple[Cells, npt.NDArray[np.int64]],
    owner: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]],
    most: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return the best C rows of the lists asked for, in no order, and their rounded scores."""
    query_BD, positive_ND = sides
    cells, list_BT = lists
    row_B, group_N = owner
    block, group_B = len(query_BD), group_N[row_B]
    # Twice as many as are wanted: when a query's are full, the lesser half goes.
    found_BC = np.full((block, 2 * most), -1, np.int32)
    near_BC = np.full((block, 2 * most), -np.inf, np.float32)
    held_B, floor_B = np.zeros(block, np.int64), np.full(block, -np.inf, np.float32)
    by_list = np.argsort(list_BT, axis=None, kind="stable")
    asked = list_BT.ravel()[by_list]
    numbers, first = np.unique(asked, return_index=True)
    asking = np.split(by_list // list_BT.shape[1], first[1:])
    for number, query_G in zip(numbers, asking, strict=True):
        listed = cells.listed(number)
        # What many rows share is in one list, however many they are.
        for start in range(0, len(listed), _PART):
            row_H = listed[start : start + _PART]
            score_GH = query_BD[query_G] @ positive_ND[row_H].astype(np.float32).T
            _keep(
                (score_GH, row_H, group_N[row_H]),
                (query_G, group_B),
                (found_BC, near_BC, held_B, floor_B),
            )
    return found_BC, near_BC


@njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _keep(
    scored: tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32]],
    asking: tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]],
    kept: tuple[
        npt.NDArray[np.int32],
        npt.NDArray[np.float32],
        npt.NDArray[np.int64],
        npt.NDArray[np.float32],
    ],
) -> None:
    """Add the rows of a list to what each query that asks for it has found, in place."""
    score_GH, row_H, group_H = scored
    query_G, group_B = asking
    found_BC, near_BC, held_B, floor_B = kept
    room = found_BC.shape[1]
    for g in prange(len(query_G)):
        b = query_G[g]
        held, floor, group = held_B[b], floor_B[b], group_B[b]
        for h in range(len(row_H)):
            if score_GH[g, h] <= floor or group_H[h] == group:
                continue
            if held == room:
                floor = np.partition(near_BC[b], room // 2)[room // 2]
                # The same positive in many rows has the same score: so many of them stay as there
                # is room for, those that came first.
                equal = room // 2 - np.sum(near_BC[b] > floor)
                held = 0
                for c in range(room):
                    if near_BC[b, c] == floor:
                        equal -= 1
                    if near_BC[b, c] > floor or (near_BC[b, c] == floor and equal >= 0):
                        near_BC[b, held], found_BC[b, held] = near_BC[b, c], found_BC[b, c]
                        held += 1
                near_BC[b, held:] = -np.inf
                found_BC[b, held:] = -1
                if score_GH[g, h] <= floor:
                    continue
            near_BC[b, held], found_BC[b, held] = score_GH[g, h], row_H[h]
            held += 1
        held_B[b], floor_B[b] = held, floor


def _exact(
    sides: Sides,
    found: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]],
    owner: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]],
    width: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Score candidates exactly and sort them: rows and scores, (B, M)."""
    query_BD, positive_ND = sides
    found_BC, near_BC = found
    row_B, group_N = owner
    order_BC = np.argsort(-near_BC, axis=1, kind="stable")[:, : width + _SLACK]
    found_BC = np.take_along_axis(found_BC, order_BC, axis=1)
    near_BC = np.take_along_axis(near_BC, order_BC, axis=1)
    row_X = np.unique(np.append(found_BC, row_B))  # ascending: ties go to the smaller row still
    row_X = row_X[row_X >= 0]
    local_BC = np.where(found_BC >= 0, np.searchsorted(row_X, found_BC), -1)
    error_B = np.full(len(row_B), search.rounding(query_BD.shape[1]) * 1.01)
    best_BM, score_BM, _ = settle(
        (query_BD, positive_ND[row_X].astype(np.float32)),
        (group_N[row_X], np.searchsorted(row_X, row_B)),
        (near_BC, local_BC, error_B),
        (width, 0),
    )
    return np.where(best_BM >= 0, row_X[best_BM], -1).astype(np.int32), score_BM


def window_recall(
    neighbour_NM: npt.NDArray[np.int32],
    sides: Sides,
    *,
    group_N: npt.NDArray[np.int32],
    window: slice,
    rng: np.random.Generator,
    sample: int = 1000,
) -> float:
    """Measure which share of exact windows a table of ranks holds in its own, for some rows.

    As :func:`b3_core.neighbours.window_recall`, with vectors that are read part by part.

    Returns
    -------
    float
        Between 0 and 1; 1 where no sampled row has an exact window at all.
    """
    row_R = np.sort(rng.choice(len(neighbour_NM), min(sample, len(neighbour_NM)), replace=False))
    exact_RM = exact_ranks(sides, row_R, group_N=group_N, width=window.stop)
    return share_held(exact_RM[:, window], neighbour_NM[row_R, window])


def exact_ranks(
    sides: Sides, row_R: npt.NDArray[np.integer], *, group_N: npt.NDArray[np.int32], width: int
) -> npt.NDArray[np.int64]:
    """Rank the positives of all rows for the queries of a few: (R, width), -1 after the last.

    By scores in float32: near ties may be in either order.
    """
    query_RD = sides[0][row_R].astype(np.float32)
    best_RM = np.full((len(row_R), width), -1)
    score_RM = np.full((len(row_R), width), -np.inf, np.float32)
    for start in range(0, len(sides[1]), _PART):
        part_XD = sides[1][start : start + _PART].astype(np.float32)
        score_RX = query_RD @ part_XD.T
        score_RX[group_N[row_R][:, None] == group_N[start : start + _PART]] = -np.inf
        at_RX = np.broadcast_to(np.arange(start, start + len(part_XD)), score_RX.shape)
        both_RX = np.concatenate([score_RM, score_RX], axis=1)
        row_RX = np.concatenate([best_RM, at_RX], axis=1)
        if both_RX.shape[1] > width:
            kept_RM = np.argpartition(-both_RX, width - 1, axis=1)[:, :width]
            both_RX = np.take_along_axis(both_RX, kept_RM, axis=1)
            row_RX = np.take_along_axis(row_RX, kept_RM, axis=1)
        order_RM = np.lexsort((row_RX, -both_RX), axis=1)
        score_RM = np.take_along_axis(both_RX, order_RM, axis=1)
        best_RM = np.take_along_axis(row_RX, order_RM, axis=1)
    return np.where(np.isneginf(score_RM), -1, best_RM)
