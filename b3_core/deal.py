"""Rows dealt to the batches of an epoch.

    choose: which rows take part in an epoch; those that the last one left out come first
    deal:   a batch is batch_size / k whole communities, drawn at random; or rows drawn at random;
            or some of both, as the curriculum says

Communities are regrouped every epoch. A deck leaves N mod batch_size rows out of an epoch, whole
communities as far as possible, and other ones every time; any row is as likely to be left out as
another, those of the short community too.

Legend: N rows, K rows of a community, C full communities, U communities that take part,
S batches, B rows of a batch, P communities of a batch (P K = B), L rows left out, D datasets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from b3_core.communities import Partition
from b3_core.config import Phase
from b3_core.errors import InputError
from b3_core.parting import part_groups

Rows = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class DeckRows:
    """What is dealt together: the rows of one dataset, or of all."""

    partitions: tuple[Partition, ...]
    group_N: npt.NDArray[np.int32]
    dataset_N: npt.NDArray[np.int16]
    row_N: Rows

    @classmethod
    def of(
        cls, dataset: int, partitions: Sequence[Partition], group_N: npt.NDArray[np.int32]
    ) -> Self:
        """Return the rows of one dataset."""
        rows = len(group_N)
        dataset_N = np.full(rows, dataset, np.int16)
        return cls(tuple(partitions), group_N, dataset_N, np.arange(rows, dtype=np.int32))

    @classmethod
    def across(cls, group_of: Sequence[npt.NDArray[np.int32]]) -> Self:
        """Return the rows of all datasets, one after another, each a community of its own."""
        sizes = [len(group_N) for group_N in group_of]
        alone = Partition(np.arange(sum(sizes), dtype=np.int32), k=1, moved=0, objective=0.0)
        dataset_N = np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)
        row_N = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        return cls((alone,), apart(group_of), dataset_N, row_N)


@dataclass(eq=False)
class Deck:
    """Rows dealt anew every epoch; remembers which of them the last one left out."""

    rows: DeckRows
    batch_size: int
    rng: np.random.Generator
    left_L: Rows = field(default_factory=lambda: np.empty(0, np.int32))
    epochs: int = 0
    """Drawn so far."""

    def __post_init__(self) -> None:
        for partition in self.rows.partitions:
            self._check(len(partition.label_N), partition.k)

    def _check(self, rows: int, k: int) -> None:
        if len(self.rows.group_N) != rows:
            raise ValueError(f"{rows} rows in communities, but groups of {len(self.rows.group_N)}")
        if rows < self.batch_size:
            raise InputError(
                f"a dataset has {rows} rows",
                expected=f"at least batches.batch_size = {self.batch_size}",
                remedy="add rows, or set a smaller batches.batch_size",
            )
        if self.batch_size % k:
            raise InputError(
                f"batches.batch_size is {self.batch_size}",
                expected=f"a multiple of the communities' k = {k}",
                remedy="change batches.batch_size or mining.k",
            )

    def draw(
        self, segments: Sequence[tuple[float, Phase]], *, variant: int
    ) -> list[tuple[Rows, Rows]]:
        """Return rows and communities of one epoch's batches, both (S, B), a pair a segment."""
        row_UK, community_UK = self._choose(self.rows.partitions[variant])
        self.epochs += 1
        order_U = self.rng.permutation(len(row_UK))
        each = self.batch_size // row_UK.shape[1]
        ends = self._ends([share for share, _ in segments], len(row_UK) // each)
        if all(phase.random_share == 1 for _, phase in segments):
            # Dealt at once: parts that are cut beforehand could hold a group in too few batches.
            rows_SB, communities_SB = self._deal(row_UK[order_U], community_UK[order_U], 1)
            cuts = np.split(rows_SB, ends), np.split(communities_SB, ends)
            return list(zip(*cuts, strict=True))
        parts = np.split(order_U, ends * each)
        return [
            self._deal(row_UK[part_U], community_UK[part_U], phase.random_share)
            for part_U, (_, phase) in zip(parts, segments, strict=True)
        ]

    def _ends(self, share_of: Sequence[float], batches: int) -> Rows:
        """Return after which batch each part of an epoch ends, but for the last."""
        if len(share_of) == 1:
            return np.empty(0, np.int32)
        # Up or down by chance: a part that is always too short for a batch would never have one.
        return _rounded(np.cumsum(share_of)[:-1] * batches, rng=self.rng)

    def _deal(self, row_UK: Rows, community_UK: Rows, share: float) -> tuple[Rows, Rows]:
        """Deal communities to batches, a share of their places to rows drawn at random."""
        units, k = row_UK.shape
        if not units:  # a stretch too short for a batch
            return (np.empty((0, self.batch_size), np.int32),) * 2
        if share == 1:
            row_SB = _deal(row_UK.ravel(), self.rows.group_N, self.batch_size, rng=self.rng)
            return row_SB, np.full(row_SB.shape, -1, np.int32)
        each = self.batch_size // k
        # Batch s gives round((s + 1) share P) - round(s share P) of its P places to random rows:
        # each the whole number below or above, and together their share; but where a group would
        # else be twice in a batch.
        broken_S = np.zeros(units // each, int)
        if share:
            step_S = _rounded(np.arange(len(broken_S) + 1) * share * each, rng=self.rng)
            broken_S = np.diff(step_S)
        broken = broken_S.sum()
        if broken:  # rows of one group in one unit could not be parted after this
            row_UK[:broken] = _deal(row_UK[:broken].ravel(), self.rows.group_N, k, rng=self.rng)
        community_UK[:broken] = -1
        first_SP = np.arange(each) < broken_S[:, None]  # the places of random rows
        unit_SP = np.empty(first_SP.shape, np.int64)
        unit_SP[first_SP], unit_SP[~first_SP] = np.arange(broken), np.arange(broken, units)
        broken_U = np.arange(units) < broken
        unit_SP = part_groups(unit_SP, self.rows.group_N[row_UK], broken_U, rng=self.rng)
        shape = (-1, self.batch_size)
        return row_UK[unit_SP].reshape(shape), community_UK[unit_SP].reshape(shape)

    def _choose(self, partition: Partition) -> tuple[Rows, Rows]:
        """Choose rows in communities, both (U, K); note in ``left_L`` which rows are left out.

        Communities with a row that was left out last time come first. Rows that were left out and
        are in none of those chosen, as those of the short community, take the places of as many
        rows of the last communities chosen, and those are left out instead. There is room: fewer
        rows were left out than fill a batch. The short community, which no draw of whole ones
        picks, counts as left out, but for as many times as any row is.
        """
        label_N, k = partition.label_N, partition.k
        order_N = np.lexsort((self.rng.random(len(label_N)), label_N)).astype(np.int32)
        whole = len(label_N) // k
        row_CK = order_N[: whole * k].reshape(whole, k)
        units = len(label_N) // self.batch_size * (self.batch_size // k)
        left_L = self._left(order_N[whole * k :], room=units * k)
        missed = np.unique(label_N[left_L])
        first_C = np.lexsort((self.rng.random(whole), ~np.isin(np.arange(whole), missed)))
        row_UK = row_CK[first_C[:units]]
        # Rows that must stay come first in their community, so that it loses its last places.
        stays_UK = np.isin(row_UK, left_L)
        row_UK = np.take_along_axis(row_UK, np.argsort(~stays_UK, axis=1, kind="stable"), axis=1)
        community_UK = label_N[row_UK]
        absent_L = left_L[~np.isin(left_L, row_UK)]
        if absent_L.size:
            place_L = np.flatnonzero(~np.isin(row_UK, left_L))[-len(absent_L) :]
            row_UK.flat[place_L] = absent_L
            together = len(set(label_N[absent_L])) == len(set(place_L // k)) == 1
            community_UK.flat[place_L] = label_N[absent_L] if together else -1
        self.left_L = np.setdiff1d(np.arange(len(label_N), dtype=np.int32), row_UK)
        return row_UK, community_UK

    def _left(self, short_L: Rows, *, room: int) -> Rows:
        """Return what must take part: the rows left out last time, and mostly a short community.

        It is left out in a share s of the epochs, as any row is; since never twice in a row, in
        s / (1 - s) of those that follow one in which it was not.
        """
        share = len(self.rows.group_N) % self.batch_size / len(self.rows.group_N)
        if self.epochs:
            if not short_L.size or np.isin(short_L, self.left_L).any():
                return self.left_L
            share /= 1 - share
        if self.rng.random() < share or len(self.left_L) + len(short_L) > room:
            return self.left_L
        return np.concatenate([self.left_L, short_L])


def _rounded(value_X: npt.NDArray[np.float64], *, rng: np.random.Generator) -> Rows:
    """Round ascending numbers down or up, all by one chance; what is whole but for 1e-9 stays."""
    return np.floor(value_X + 1e-9 + rng.random() * (1 - 2e-9)).astype(np.int32)


def _deal(
    row_X: Rows, group_N: npt.NDArray[np.int32], batch_size: int, *, rng: np.random.Generator
) -> Rows:
    """Deal rows out to batches at random, no group twice in one unless it has more rows than S.

    Like cards: groups in random order, the rows of each side by side, one to each batch in turn.
    """
    _, group_X = np.unique(group_N[row_X], return_inverse=True)
    place_G = rng.permutation(group_X.max() + 1)
    order_X = np.lexsort((rng.random(len(row_X)), place_G[group_X]))
    return rng.permuted(row_X[order_X].reshape(batch_size, -1).T, axis=1)


def apart(group_of: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Return the groups of all datasets' rows, numbered so that no two datasets share one."""
    first_D = np.cumsum([0, *(group_N.max(initial=-1) + 1 for group_N in group_of)])[:-1]
    apart = [group_N + first for group_N, first in zip(group_of, first_D, strict=True)]
    return np.concatenate(apart).astype(np.int32)


def repeats(group_SB: npt.NDArray[np.int32]) -> int:
    """Count the rows that share a batch with an earlier row of their group."""
    sorted_SB = np.sort(group_SB, axis=1)
    return int((sorted_SB[:, 1:] == sorted_SB[:, :-1]).sum())
