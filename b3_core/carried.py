"""What an earlier table of ranks still says after rows came and went.

    RankTable of then, which rows are still there -> Carried -> neighbours.rank(ahead=...)

Legend: N rows, O rows of then, F rows that came since, D width of a vector, M ranks of the table,
B queries of one block, C candidates a query.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from b3_core import search
from b3_core.neighbours import RankTable


@dataclass(frozen=True, eq=False)
class Carried:
    """An earlier table of mostly the same rows, and where those rows are now.

    What it held is proposed again, beside the best of the rows that came since. A row that lost
    more ranks than were spare, or was not there, is left to a search of all.

    The vectors of rows that are still there must be the same bits, query and positive.
    """

    table: RankTable
    """Of the O rows."""
    width: int
    """Its ranks that are surely there; -1 among them says that no more were left."""
    before_N: npt.NDArray[np.int64]
    """The earlier row of every row; -1 where it is fresh."""
    parted_N: npt.NDArray[np.bool_]
    """Rows that were in one group with a row which is in another now: it was never ranked."""
    memory_mb: int = 1024
    """For the search among fresh rows."""

    def __call__(
        self, positive_ND: npt.NDArray[np.float32], fallback: search.Search
    ) -> search.Search:
        """Return a search of the rows of now; what it cannot tell, ``fallback`` will."""
        return _Carrying(self, positive_ND, fallback)


class _Carrying:
    def __init__(
        self,
        carried: Carried,
        positive_ND: npt.NDArray[np.float32],
        fallback: search.Search,
    ) -> None:
        self.better: Callable[[], search.Search] | None = lambda: fallback
        self.fresh_F = np.flatnonzero(carried.before_N < 0)
        self.fresh: search.Search | None = None
        if self.fresh_F.size:
            self.fresh = search.exact(positive_ND[self.fresh_F], memory_mb=carried.memory_mb)
        self.table = carried.table
        rows = len(carried.table.neighbour_NM)
        now_O = np.full(rows + 1, -1, np.int64)  # the last for the -1 in a table
        kept_N = carried.before_N >= 0
        now_O[carried.before_N[kept_N]] = np.flatnonzero(kept_N)
        self.now_O = now_O
        self.before_N = np.where(carried.parted_N, -1, carried.before_N)
        self.width = min(carried.width, rows - 1)

    def propose(
        self, query_BD: npt.NDArray[np.float32], candidates: int, row_B: npt.NDArray[np.intp]
    ) -> search.Proposal:
        """Name what was ranked then and is still there, and the best C of the fresh rows."""
        before_B = self.before_N[row_B]
        then_BM = self.table.neighbour_NM[before_B]
        row_BC, score_BC = self.now_O[then_BM], self.table.score_NM[before_B]
        last_B = np.where(np.isneginf(score_BC), np.float32(np.inf), score_BC).min(axis=1)
        # Rounded to float32, by less than to the next above.
        ceiling_B = np.nextafter(last_B, np.float32(np.inf)).astype(np.float64)
        ceiling_B[(then_BM[:, : self.width] < 0).any(axis=1)] = -np.inf
        ceiling_B[before_B < 0] = np.inf
        error_B = np.abs(score_BC.astype(np.float64), where=row_BC >= 0, out=np.zeros(row_BC.shape))
        error_B = error_B.max(axis=1) * 2.0**-23
        if self.fresh is not None:
            asked = min(candidates, len(self.fresh_F))
            found = self.fresh.propose(query_BD, asked, row_B)
            error_B = np.maximum(error_B, found.error_B)
            if asked < len(self.fresh_F):
                ceiling_B = np.maximum(ceiling_B, found.ceiling_B)
            fresh_BC = np.where(found.row_BC >= 0, self.fresh_F[found.row_BC], -1)
            row_BC = np.concatenate([row_BC, fresh_BC], axis=1)
            score_BC = np.concatenate([score_BC, found.score_BC], axis=1)
        score_BC = np.where(row_BC >= 0, score_BC, np.float32(-np.inf))
        order_BC = np.argsort(-score_BC, axis=1, kind="stable")
        row_BC = np.take_along_axis(row_BC, order_BC, axis=1)
        score_BC = np.take_along_axis(score_BC, order_BC, axis=1)
        return search.Proposal(score_BC, row_BC, error_B, ceiling_B)


def parted(
    group_O: npt.NDArray[np.int32],
    group_N: npt.NDArray[np.int32],
    before_N: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Say which rows were in one group with a row that is still there, but in another group now.

    Groups are joined by the rows between them, so where rows are gone they may fall apart.
    """
    kept_X = np.flatnonzero(before_N >= 0)
    then_X = group_O[before_N[kept_X]]
    both = np.unique(np.stack([then_X, group_N[kept_X]]), axis=1)
    group, times = np.unique(both[0], return_counts=True)
    parted_N = np.zeros(len(group_N), bool)
    parted_N[kept_X] = np.isin(then_X, group[times > 1])
    return parted_N
