"""Hard negatives for whole batches (B3++), drawn from the windows of a batch's rows.

    members' ranks [p, p + m)            -> entries (row, member whose window holds it)
    entries, less every row that
      a member ranks before p, or that
      is of a member's group             -> candidates
    candidates, shuffled                 -> first entry of each group, B H of them -> slots

Every negative of a batch is contrasted with every query of it, so all come from one distribution:
Pr(j) proportional to how many members' windows hold j. A negative is a row of the batch's dataset
whose positive serves; the positives of one group are interchangeable, and count once a batch.

Where a batch has rows of several datasets, each dataset's are a batch of their own here: their
negatives come from their windows.

Legend: N rows, M ranks, G groups, S batches, B rows of a batch (its members), H negatives a query,
X entries or slots of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from b3_core.batches import BatchPlan
from b3_core.deal import Rows
from b3_core.neighbours import RankTable

VERSION = 1

_Mask = npt.NDArray[np.bool_]
_Numbers = npt.NDArray[np.integer]  # of rows, or codes of groups


@dataclass(frozen=True, eq=False)
class Negatives:
    """The negatives of every batch of a plan.

    Raises
    ------
    ValueError
        The array is not of the type and shape below; ``check`` looks at what is in it.
    """

    row_SBH: Rows
    """Rows of the slot's own dataset; -1 where the windows of the batch hold no more."""

    def __post_init__(self) -> None:
        if self.row_SBH.ndim != 3 or self.row_SBH.dtype != np.int32:
            raise ValueError(
                f"{self.row_SBH.dtype} of shape {self.row_SBH.shape} is no int32 of (S, B, H)"
            )

    @classmethod
    def none(cls, plan: BatchPlan) -> Self:
        """Return no negatives, for every slot of a plan."""
        return cls(np.empty((*plan.row_SB.shape, 0), np.int32))

    @property
    def shortage(self) -> int:
        """How many slots hold -1."""
        return int((self.row_SBH == -1).sum())

    def check(
        self,
        plan: BatchPlan,
        *,
        ranks: Sequence[RankTable | None],
        group_of: Sequence[npt.NDArray[np.int32]],
        p_of: Sequence[int],
        m: int,
    ) -> None:
        """Verify every negative against what ``draw_negatives`` was given.

        A negative is in a member's window; no member ranks it before p or shares its group; no
        group is twice in a batch. A slot is empty only if no candidate is left, and no member has
        a negative h before every member has one h - 1.

        Raises
        ------
        ValueError
            The first fault, naming batch, slot (of the member) and negative (its place in H).
        """
        if self.row_SBH.shape[:2] != plan.row_SB.shape:
            raise ValueError(f"negatives {self.row_SBH.shape}, but batches {plan.row_SB.shape}")
        pools = _pools(plan, ranks=ranks, group_of=group_of, p_of=p_of, m=m)
        for s, (member_B, row_BH) in enumerate(zip(plan.row_SB, self.row_SBH, strict=True)):
            for dataset in np.unique(plan.dataset_SB[s]):
                part_b = np.flatnonzero(plan.dataset_SB[s] == dataset)
                fault = pools[dataset].fault(member_B[part_b], row_BH[part_b])
                if fault is not None:
                    (b, h), what = fault
                    raise ValueError(f"batch {s}, slot {part_b[b]}, negative {h}: {what}")


def draw_negatives(
    plan: BatchPlan,
    *,
    ranks: Sequence[RankTable | None],
    group_of: Sequence[npt.NDArray[np.int32]],
    p_of: Sequence[int],
    m: int,
    h: int,
    rng: np.random.Generator,
) -> Negatives:
    """Draw ``h`` negatives a query, batch by batch, without replacement within a batch.

    The windows' entries are shuffled and each group's first one is kept. Since all entries are
    equally likely to come next, that is successive sampling with Pr(j) proportional to j's number
    of entries: what the keys of Efraimidis and Spirakis (Weighted random sampling with a
    reservoir, 2006) give, without keys. Whatever is drawn first fills the first negative of every
    member, then the second: with one seed, the first columns of a larger ``h`` are a smaller one's.

    Parameters
    ----------
    plan
        Batches, mined or random.
    ranks, group_of, p_of
        Of each dataset: ranks, N groups, and first ranks dropped as too near. A dataset without
        ranks, as a classification is, has no windows and no negatives.
    m
        Ranks of a window after p.
    h
        Negatives a query; with 0 nothing is drawn from ``rng``.

    Returns
    -------
    Negatives
        (S, B, h), a drawn row mostly beside a member whose own window holds it. Where a batch has
        fewer than B h candidates, all of them, the other slots being -1.

    Raises
    ------
    ValueError
        The arguments are not of the same datasets, a table of ranks ends inside the window
        although there are more rows, or ``h``, ``m`` or a p is negative.
    """
    if h < 0:
        raise ValueError(f"cannot draw {h} negatives a query")
    pools = _pools(plan, ranks=ranks, group_of=group_of, p_of=p_of, m=m)
    row_SBH = np.full((*plan.row_SB.shape, h), -1, np.int32)
    if h:
        for s, member_B in enumerate(plan.row_SB):
            for dataset in np.unique(plan.dataset_SB[s]):
                part_b = np.flatnonzero(plan.dataset_SB[s] == dataset)
                row_SBH[s, part_b] = pools[dataset].draw(member_B[part_b], h, rng=rng)
    return Negatives(row_SBH)


def _pools(
    plan: BatchPlan,
    *,
    ranks: Sequence[RankTable | None],
    group_of: Sequence[npt.NDArray[np.int32]],
    p_of: Sequence[int],
    m: int,
) -> "list[_Pool]":
    if not len(ranks) == len(group_of) == len(p_of):
        raise ValueError(f"ranks of {len(ranks)} datasets, groups of {len(group_of)}, p of {p_of}")
    pools = [
        _Pool(table.neighbour_NM, group_N, p, m)
        if table is not None
        else _Pool(np.empty((len(group_N), 0), np.int32), group_N, 0, 0)
        for table, group_N, p in zip(ranks, group_of, p_of, strict=True)
    ]
    strange_SB = (plan.dataset_SB < 0) | (plan.dataset_SB >= len(pools))
    if strange_SB.any():
        batch = strange_SB.any(axis=1).argmax()
        raise ValueError(f"batch {batch} is of none of the {len(pools)} datasets")
    rows_SB = np.array([len(pool.group_N) for pool in pools])[plan.dataset_SB]
    beyond_SB = (plan.row_SB < 0) | (plan.row_SB >= rows_SB)
    if beyond_SB.any():
        batch = beyond_SB.any(axis=1).argmax()
        rows = rows_SB[beyond_SB][0]
        raise ValueError(f"batch {batch} has a row that is none of its dataset's {rows}")
    return pools


@dataclass(frozen=True, eq=False)
class _Pool:
    """One dataset, from which the negatives of its batches are drawn."""

    neighbour_NM: Rows
    group_N: npt.NDArray[np.int32]
    p: int
    m: int

    def __post_init__(self) -> None:
        rows, width = self.neighbour_NM.shape
        if self.group_N.shape != (rows,):
            raise ValueError(f"ranks of {rows} rows, but groups of {self.group_N.shape}")
        if self.p < 0 or self.m < 0 or width < min(self.p + self.m, rows - 1):
            window = f"[{self.p}, {self.p + self.m})"
            raise ValueError(f"ranks {window} are not in a table of {width} ranks")

    @cached_property
    def code_N(self) -> npt.NDArray[np.intp]:
        """Groups counted from 0, N + 1: the last place is a group that no row has."""
        _, group_N = np.unique(self.group_N, return_inverse=True)
        return np.append(group_N, group_N.max(initial=-1) + 1)

    def window(self, member_B: Rows) -> Rows:
        """Return the members' windows, (B, m) or narrower; -1 where there are fewer rows."""
        return self.neighbour_NM[member_B, self.p : self.p + self.m]

    @cached_property
    def marked_N(self) -> _Mask:
        """All false, N + 1: the last place is where -1 points, as neighbour or as slot.

        A mask of a batch's own would cost time by the rows of the dataset, not by those of a batch.
        """
        return np.zeros(len(self.code_N), bool)

    def _is_in(self, asked_X: _Numbers, held_Y: _Numbers) -> _Mask:
        """Tell which of some rows, or codes of groups, are among others."""
        self.marked_N[held_Y] = True
        in_X = self.marked_N[asked_X]
        self.marked_N[held_Y] = False
        return in_X

    def is_near(self, row_X: Rows, member_B: Rows) -> _Mask:
        """Tell which rows some member ranks before p."""
        return self._is_in(row_X, self.neighbour_NM[member_B, : self.p])

    def is_met(self, row_X: Rows, member_B: Rows) -> _Mask:
        """Tell which rows are of a member's group."""
        return self._is_in(self.code_N[row_X], self.code_N[member_B])

    def candidates(self, member_B: Rows) -> tuple[Rows, npt.NDArray[np.intp]]:
        """Return the windows' entries that may serve, X, and whose window each is in, X."""
        window_BM = self.window(member_B)
        barred_BM = self.is_near(window_BM, member_B) | self.is_met(window_BM, member_B)
        may_BM = (window_BM >= 0) & ~barred_BM
        return window_BM[may_BM], np.nonzero(may_BM)[0]

    def draw(self, member_B: Rows, h: int, *, rng: np.random.Generator) -> Rows:
        """Draw a batch's negatives, (B, H)."""
        row_X, holder_X = self.candidates(member_B)
        order_X = rng.permutation(len(row_X))
        _, first = np.unique(self.code_N[row_X[order_X]], return_index=True)
        drawn_X = order_X[np.sort(first)[: h * len(member_B)]]
        return _place(row_X[drawn_X], holder_X[drawn_X], shape=(len(member_B), h))

    def fault(self, member_B: Rows, row_BH: Rows) -> tuple[tuple[int, int], str] | None:
        """Return the first slot of a batch that breaks a rule, and which one; None if none does."""
        row_X = row_BH.ravel()
        no_row_X = (row_X < -1) | (row_X >= len(self.group_N))
        safe_X = np.where(no_row_X, -1, row_X)
        full_X = safe_X >= 0
        # An empty slot counts as a group of its own, so that none repeats another.
        group_X = np.where(full_X, self.code_N[safe_X], -1 - np.arange(len(row_X)))
        repeat_X = np.ones(len(row_X), bool)
        repeat_X[np.unique(group_X, return_index=True)[1]] = False
        candidates = len(np.unique(self.code_N[self.candidates(member_B)[0]]))
        due = min(candidates, len(row_X))
        # The last column with a negative in it: all columns before it must be full.
        last = np.flatnonzero((row_BH != -1).any(axis=0)).max(initial=0)
        early_X = np.broadcast_to(np.arange(row_BH.shape[1]) < last, row_BH.shape).ravel()
        broken = {
            f"no row of {len(self.group_N)}": no_row_X,
            "too near a member, which ranks it before p": full_X & self.is_near(safe_X, member_B),
            "of a member's group": full_X & self.is_met(safe_X, member_B),
            "in no member's window": full_X & ~self._is_in(safe_X, self.window(member_B)),
            "of the group of an earlier negative": repeat_X,
            f"no row, but {due} slots can be filled": (row_X == -1) & ((row_X != -1).sum() < due),
            f"no row, but a member has a negative {last}": (row_X == -1) & early_X,
        }
        broken_FX = np.stack(list(broken.values()))
        slots = np.flatnonzero(broken_FX.any(axis=0))
        if not slots.size:
            return None
        b, h = divmod(int(slots[0]), row_BH.shape[1])
        return (b, h), f"{row_X[slots[0]]} is {list(broken)[broken_FX[:, slots[0]].argmax()]}"


def _place(row_X: Rows, holder_X: npt.NDArray[np.intp], *, shape: tuple[int, int]) -> Rows:
    """Put rows, in the order drawn, into slots (B, H), column by column.

    Within a column each goes beside its holder, or, where that place is taken, to any free one.
    """
    members, h = shape
    slot_X = np.arange(len(row_X)) // members * members + holder_X
    own_X = np.zeros(len(row_X), bool)
    own_X[np.unique(slot_X, return_index=True)[1]] = True
    row_HB = np.full(h * members, -1, np.int32)
    row_HB[slot_X[own_X]] = row_X[own_X]
    # A column has as many free places as rows without one; the last may have more.
    free_X = np.flatnonzero(row_HB == -1)
    row_HB[free_X[: (~own_X).sum()]] = row_X[~own_X]
    return row_HB.reshape(h, members).T
