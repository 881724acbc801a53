"""What communities are worth before anything is trained on them.

Figures describe; they are never the target: past an optimum, harder batches train worse.

Legend: N rows, M ranks, K community size.
"""

import numpy as np
import numpy.typing as npt

from b3_core.communities import Partition
from b3_core.neighbours import RankTable


def describe(
    partition: Partition,
    ranks: RankTable,
    *,
    p: int,
    m: int,
    group_N: npt.NDArray[np.int32],
) -> dict[str, float]:
    """Count, for the average row, its partners by rank.

    Returns
    -------
    dict
        ``window``: partners at rank [p, p + m), the in-batch negatives that mining is for.
        ``too_hard``: partners at rank < p, probably false negatives.
        ``mutual``: partners in each other's window.
        ``window_random``, ``too_hard_random``: what a random partition gives on average.
        ``duplicates``: partners of the row's own group, which are no negatives at all.
        ``moved``: share of rows that left the community they were found in.
    """
    label_N = partition.label_N
    column_NM = ranks.neighbour_NM
    there_NM = column_NM >= 0
    together_NM = there_NM & (label_N[column_NM] == label_N[:, None])
    window_NM = together_NM[:, p : p + m]
    rows = len(label_N)
    size_C = np.bincount(label_N)
    chance = float((size_C * (size_C - 1)).sum()) / (rows * (rows - 1))
    return {
        "window": float(window_NM.sum() / rows),
        "too_hard": float(together_NM[:, :p].sum() / rows),
        "mutual": _mutual(column_NM[:, p : p + m], window_NM),
        "window_random": float(there_NM[:, p : p + m].sum() / rows) * chance,
        "too_hard_random": float(there_NM[:, :p].sum() / rows) * chance,
        "duplicates": _duplicates(label_N, group_N),
        "moved": partition.moved / rows,
        "objective": partition.objective,
    }


def _mutual(column_NW: npt.NDArray[np.int32], together_NW: npt.NDArray[np.bool_]) -> float:
    """Average the partners that are in the row's window and have the row in theirs."""
    rows = len(column_NW)
    row_E, _ = np.nonzero(together_NW)
    to_E = column_NW[together_NW].astype(np.int64)
    there_E = row_E * rows + to_E
    back_E = to_E * rows + row_E
    return float(np.isin(there_E, back_E).sum() / rows)


def _duplicates(label_N: npt.NDArray[np.int32], group_N: npt.NDArray[np.int32]) -> float:
    pair_N = label_N.astype(np.int64) * (int(group_N.max()) + 1) + group_N
    _, count = np.unique(pair_N, return_counts=True)
    return float((count * (count - 1)).sum() / len(label_N))
