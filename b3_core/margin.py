"""Candidates that the teacher takes for answers are no negatives: a positive-aware mask.

    teacher's vectors of a batch's rows -> scores of every query with every candidate
            -> those above a share of the score of the query's own positive are left out

The share is NV-Retriever's (Moreira et al., arXiv 2407.15831: 0.95 of the positive's score), but
for in-batch negatives as well as for hard ones. It is the teacher that judges, not the student: a
student that finds a negative better than the positive is to learn from it.

Legend: B rows of a batch, b of those asked for, X columns of candidates (the positive, the negative
that rows came with if any, mined ones), C = B X candidates, D width, T tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from b3_core.pairs import NOBODY
from b3_core.slots import Slots

Vectors = npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class PositiveMargin:
    """Says which pairs of a batch are negatives, by groups and by the teacher's scores.

    Parameters
    ----------
    share
        Of the score of a query with its own positive; above it, a candidate is left out. Where the
        teacher finds a positive unlike its query (a cosine of 0 or less), it judges nothing.
    query_of, positive_of
        The teacher's unit vectors of each table's rows: N x D, memory-mapped if need be.
    """

    slots: Slots
    share: float
    query_of: Sequence[Vectors]
    positive_of: Sequence[Vectors]

    def __call__(self, slot_x: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Return which candidates are contrasted with each row.

        Returns
        -------
        ndarray
            bool, x C: columns of candidates one after another, rows of the whole batch in each.

        Raises
        ------
        ValueError
            The slots are not of one batch.
        """
        size = self.slots.position_SB.shape[1]
        batch, own_b = np.divmod(np.asarray(slot_x, np.int64), size)
        if (batch != batch[0]).any():
            raise ValueError(f"slots of batches {batch.min()} to {batch.max()}, not of one")
        every = range(int(batch[0]) * size, int(batch[0] + 1) * size)
        row_BH, group_BX = self.slots.rows(every), self.slots.groups(every)
        group_C = group_BX.T.ravel()
        masked_bC = (group_BX[own_b, :1] == group_C) | (group_C == NOBODY)
        masked_bC |= self._too_near(own_b, row_BH, columns=group_BX.shape[1])
        masked_bC[np.arange(len(own_b)), own_b] = False
        return np.asarray(~masked_bC)

    def _too_near(
        self, own_b: npt.NDArray[np.int64], row_BH: npt.NDArray[np.int64], *, columns: int
    ) -> npt.NDArray[np.bool_]:
        """Return which candidates score above the share of the own positive's score, b x C."""
        query_bD = self._gathered(self.query_of, row_BH[own_b, 0])
        near = [query_bD @ self._gathered(self.positive_of, row_B).T for row_B in row_BH.T]
        own = near[0][np.arange(len(own_b)), own_b]
        limit_b1 = np.where(own > 0, self.share * own, np.inf)[:, None]
        above = [score_bB > limit_b1 for score_bB in near]
        if columns > len(above):  # the negatives that rows came with, which no teacher has seen
            above.insert(1, np.zeros_like(above[0]))
        return np.concatenate(above, axis=1)

    def _gathered(
        self, vectors_of: Sequence[Vectors], position_X: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Return the vectors at positions in all tables, one after another: float32, X x D."""
        table_X = np.searchsorted(self._start_T, position_X, side="right") - 1
        found_XD = np.empty((len(position_X), vectors_of[0].shape[1]), np.float32)
        for table in np.unique(table_X):
            mine_X = table_X == table
            found_XD[mine_X] = vectors_of[table][position_X[mine_X] - self._start_T[table]]
        return found_XD

    @cached_property
    def _start_T(self) -> npt.NDArray[np.int64]:
        """Position that each table begins at."""
        return np.cumsum([0, *(len(part) for part in self.query_of)])[:-1]
