"""From communities to the batches of every epoch.

    choose: which rows take part in an epoch; those that the last one left out come first
    deal:   a batch is batch_size / k whole communities of one dataset, drawn at random; or rows of
            one dataset drawn at random; or some of both, as the curriculum says
    mix:    all datasets' batches of an epoch

Communities are regrouped every epoch. Each dataset leaves N mod batch_size rows out of an epoch,
whole communities as far as possible, and other ones every time.

Legend: N rows, K rows of a community, C full communities, U communities that take part,
S batches, B rows of a batch, P communities of a batch (P K = B), L rows left out, D datasets.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from b3_core.communities import Partition
from b3_core.config import BatchSpec, Phase
from b3_core.errors import InputError

VERSION = 2

LOOK = 32  # exchanges tried for a community that meets its own groups in its batch
PASSES = 3  # times all batches are looked through for such communities

Rows = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Which rows meet in which batch, for all epochs, in the order of training.

    Raises
    ------
    ValueError
        The arrays do not fit together; ``check`` looks at what is in them.
    """

    row_SB: Rows
    """Rows of each batch: positions in the batch's dataset; rows of a community are neighbours."""
    dataset_S: npt.NDArray[np.int16]
    """Dataset of each batch."""
    epoch_S: npt.NDArray[np.int16]
    """Epoch of each batch, ascending."""
    community_SB: Rows
    """Community of each row in its dataset's partition of that epoch; -1 if drawn at random."""
    left_out: npt.NDArray[np.int32]
    """(L, 3) of (epoch, dataset, row), sorted: what an epoch lacks, since batches are full."""
    duplicates: int = 0
    """Rows that share a batch with an earlier one of their group, where that was unavoidable."""

    def __post_init__(self) -> None:
        batches = len(self.row_SB)
        shapes = (self.row_SB.ndim, self.community_SB.shape, self.dataset_S.shape)
        if shapes != (2, self.row_SB.shape, (batches,)) or self.epoch_S.shape != (batches,):
            raise ValueError("rows, communities, datasets and epochs are not of the same batches")
        if self.left_out.ndim != 2 or self.left_out.shape[1] != 3:
            raise ValueError(f"left_out is of shape {self.left_out.shape}, not (L, 3)")

    def check(self, sizes: Sequence[int]) -> None:
        """Verify every invariant against the number of rows of each dataset.

        Every row is exactly once in each epoch, or left out of it; no row is left out twice in a
        row; fewer rows are left out than fill a batch; a community is in one batch of an epoch,
        in consecutive slots. ``left_out`` is sorted.

        Raises
        ------
        ValueError
            The first fault, naming epoch, dataset and row or community.
        """
        epochs = int(self.epoch_S.max(initial=-1)) + 1
        numbers = np.unique(self.epoch_S)
        if (np.diff(self.epoch_S) < 0).any() or not np.array_equal(numbers, np.arange(epochs)):
            raise ValueError("epochs are not 0, 1, 2, ... in order")
        left_LX = self.left_out
        for name, dataset_X in (("a batch", self.dataset_S), ("left_out", left_LX[:, 1])):
            if not np.isin(dataset_X, np.arange(len(sizes))).all():
                raise ValueError(f"{name} is of none of the {len(sizes)} datasets")
        if not np.isin(left_LX[:, 0], np.arange(epochs)).all():
            raise ValueError(f"left_out is of none of the {epochs} epochs")
        for dataset, rows in enumerate(sizes):
            before_N = np.zeros(rows, bool)
            for epoch in range(epochs):
                where = f"epoch {epoch}, dataset {dataset}"
                batch_S = (self.epoch_S == epoch) & (self.dataset_S == dataset)
                left_L = left_LX[(left_LX[:, 0] == epoch) & (left_LX[:, 1] == dataset), 2]
                before_N = self._check_rows(self.row_SB[batch_S], left_L, before_N, where=where)
                _check_communities(self.community_SB[batch_S], where=where)
        if (np.lexsort(left_LX.T[::-1]) != np.arange(len(left_LX))).any():
            raise ValueError("left_out is not sorted by epoch, dataset and row")
        if self.community_SB.min(initial=-1) < -1:
            raise ValueError(f"community {self.community_SB.min()} is negative, and not -1")

    def count_duplicates(self, group_of: Sequence[npt.NDArray[np.int32]]) -> int:
        """Count what ``duplicates`` says, from the groups of each dataset's rows."""
        return sum(
            _repeats(group_N[self.row_SB[self.dataset_S == dataset]])
            for dataset, group_N in enumerate(group_of)
        )

    def _check_rows(
        self, row_SB: Rows, left_L: Rows, before_N: npt.NDArray[np.bool_], *, where: str
    ) -> npt.NDArray[np.bool_]:
        """Check one dataset in one epoch; return which rows were left out."""
        all_N = np.concatenate([row_SB.ravel(), left_L])
        rows = len(before_N)
        if all_N.min(initial=0) < 0 or all_N.max(initial=-1) >= rows:
            raise ValueError(f"{where}: a row is none of {rows}")
        times_N = np.bincount(all_N, minlength=rows)
        wrong = np.flatnonzero(times_N != 1)
        if wrong.size:
            raise ValueError(f"{where}: row {wrong[0]} is there {times_N[wrong[0]]} times")
        if len(left_L) >= self.row_SB.shape[1]:
            raise ValueError(f"{where}: {len(left_L)} rows left out would fill a batch")
        again = left_L[before_N[left_L]]
        if again.size:
            raise ValueError(f"{where}: row {again.min()} is left out twice in a row")
        left_N = np.zeros(rows, bool)
        left_N[left_L] = True
        return left_N


def _check_communities(community_SB: Rows, *, where: str) -> None:
    # A run of equal communities starts at the first slot and wherever the community changes.
    starts_SB = np.ones(community_SB.shape, bool)
    starts_SB[:, 1:] = community_SB[:, 1:] != community_SB[:, :-1]
    starts_SB &= community_SB >= 0
    community, runs = np.unique(community_SB[starts_SB], return_counts=True)
    if (runs > 1).any():
        raise ValueError(f"{where}: community {community[runs > 1][0]} is in several places")


def plan_batches(
    partitions: Sequence[Sequence[Partition]],
    *,
    group_of: Sequence[npt.NDArray[np.int32]],
    spec: BatchSpec,
    rng: np.random.Generator,
    variant_of: Sequence[int] = (),
    weight_of: Sequence[float] = (),
) -> BatchPlan:
    """Draw the batches of every epoch.

    Parameters
    ----------
    partitions
        One or more a dataset; each batch comes from a single dataset.
    group_of
        Groups of each dataset's rows. No group is twice in a batch where that can be avoided: in
        random batches always, else by a bounded search (``LOOK``, ``PASSES``).
    variant_of
        For each epoch which of a dataset's partitions it uses; the first if empty.
    weight_of
        Weights of the datasets for ``spec.mixing``; equal if empty.

    Returns
    -------
    BatchPlan
        Its ``duplicates`` counts what the search did not avoid, and what is inside communities.

    Raises
    ------
    InputError
        A dataset has fewer rows than a batch, or its k does not divide the batch size.
    """
    if len(partitions) != len(group_of):
        raise ValueError(f"{len(partitions)} partitions, but groups of {len(group_of)} datasets")
    decks = [
        _Deck(tuple(parts), group_N, batch_size=spec.batch_size, rng=rng)
        for parts, group_N in zip(partitions, group_of, strict=True)
    ]
    weight_D = np.array(weight_of or [1.0] * len(decks))
    chosen = [variant_of[epoch] if variant_of else 0 for epoch in range(spec.epochs)]
    dealt: list[tuple[int, int, Rows, Rows]] = []  # dataset, epoch, rows, communities of a stretch
    left, duplicates = [], 0
    for epoch, segments in enumerate(spec.segments()):
        drawn = [deck.draw(segments, variant=chosen[epoch]) for deck in decks]
        for stretch in zip(*drawn, strict=True):
            order = _mix([len(rows) for rows, _ in stretch], spec.mixing, weight_D, rng=rng)
            dealt.extend((d, epoch, *(part[i : i + 1] for part in stretch[d])) for d, i in order)
        for dataset, (deck, stretches) in enumerate(zip(decks, drawn, strict=True)):
            left_L = np.sort(deck.left_L)
            left.append(np.column_stack([np.full((len(left_L), 2), (epoch, dataset)), left_L]))
            duplicates += sum(_repeats(deck.group_N[row_SB]) for row_SB, _ in stretches)
    return BatchPlan(
        np.concatenate([rows for *_, rows, _ in dealt]),
        np.array([dataset for dataset, *_ in dealt], np.int16),
        np.array([epoch for _, epoch, *_ in dealt], np.int16),
        np.concatenate([communities for *_, communities in dealt]),
        np.concatenate(left).astype(np.int32),
        duplicates,
    )


def _mix(
    count_D: Sequence[int],
    mixing: str,
    weight_D: npt.NDArray[np.float64],
    *,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Order the batches of all datasets: (dataset, batch), those of one dataset ascending."""
    if mixing == "round-robin":
        # The n-th batches of all datasets come together, for as long as a dataset has one.
        key = np.concatenate([np.arange(count, dtype=float) for count in count_D])
    elif mixing == "weighted":
        # Arrivals of Poisson processes of these rates: whose is next is drawn by weight.
        key = np.concatenate(
            [
                rng.exponential(1 / weight, count).cumsum()
                for count, weight in zip(count_D, weight_D, strict=True)
            ]
        )
    else:
        key = rng.random(sum(count_D))
        splits = np.cumsum(count_D)[:-1]
        key = np.concatenate([np.sort(part) for part in np.split(key, splits)])
    dataset = np.repeat(np.arange(len(count_D)), count_D)
    batch = np.concatenate([np.arange(count) for count in count_D])
    order = np.argsort(key, kind="stable")
    return list(zip(dataset[order].tolist(), batch[order].tolist(), strict=True))


@dataclass(eq=False)
class _Deck:
    """One dataset, dealt anew every epoch; remembers the rows that the last one left out."""

    partitions: tuple[Partition, ...]
    group_N: npt.NDArray[np.int32]
    batch_size: int
    rng: np.random.Generator
    left_L: Rows = field(default_factory=lambda: np.empty(0, np.int32))

    def __post_init__(self) -> None:
        for partition in self.partitions:
            self._check(len(partition.label_N), partition.k)

    def _check(self, rows: int, k: int) -> None:
        if len(self.group_N) != rows:
            raise ValueError(f"{rows} rows in communities, but groups of {len(self.group_N)}")
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
        row_UK, community_UK = self._choose(self.partitions[variant])
        order_U = self.rng.permutation(len(row_UK))
        each = self.batch_size // row_UK.shape[1]
        shares = np.cumsum([share for share, _ in segments])
        ends = np.rint(shares * (len(row_UK) // each)).astype(int)[:-1] * each
        parts = np.split(order_U, ends)
        return [
            self._deal(row_UK[part_U], community_UK[part_U], phase.random_share)
            for part_U, (_, phase) in zip(parts, segments, strict=True)
        ]

    def _deal(self, row_UK: Rows, community_UK: Rows, share: float) -> tuple[Rows, Rows]:
        """Deal communities to batches, a share of their places to rows drawn at random."""
        units, k = row_UK.shape
        if not units:  # a stretch too short for a batch
            return (np.empty((0, self.batch_size), np.int32),) * 2
        if share == 1:
            row_SB = _deal(row_UK.ravel(), self.group_N, self.batch_size, rng=self.rng)
            return row_SB, np.full(row_SB.shape, -1, np.int32)
        each = self.batch_size // k
        # Batch s gives floor((s + 1) share P) - floor(s share P) of its P places to random rows:
        # each the whole number below or above, and together their share.
        step_S = np.floor(np.arange(units // each + 1) * share * each + 1e-9).astype(int)
        broken_S, broken = np.diff(step_S), step_S[-1]
        row_UK[:broken] = self.rng.permuted(row_UK[:broken].ravel()).reshape(-1, k)
        community_UK[:broken] = -1
        first_SP = np.arange(each) < broken_S[:, None]  # the places of random rows
        unit_SP = np.empty(first_SP.shape, np.int64)
        unit_SP[first_SP], unit_SP[~first_SP] = np.arange(broken), np.arange(broken, units)
        unit_SP = _part_groups(unit_SP, self.group_N[row_UK], rng=self.rng)
        shape = (-1, self.batch_size)
        return row_UK[unit_SP].reshape(shape), community_UK[unit_SP].reshape(shape)

    def _choose(self, partition: Partition) -> tuple[Rows, Rows]:
        """Choose rows in communities, both (U, K); note in ``left_L`` which rows are left out.

        Communities with a row that was left out last time come first. Rows that were left out and
        are in none of those chosen, as those of the short community, take the places of as many
        rows of the last communities chosen, and those are left out instead. There is room: fewer
        rows were left out than fill a batch.
        """
        label_N, k = partition.label_N, partition.k
        order_N = np.lexsort((self.rng.random(len(label_N)), label_N)).astype(np.int32)
        whole = len(label_N) // k
        row_CK = order_N[: whole * k].reshape(whole, k)
        missed = np.unique(label_N[self.left_L])
        first_C = np.lexsort((self.rng.random(whole), ~np.isin(np.arange(whole), missed)))
        units = len(label_N) // self.batch_size * (self.batch_size // k)
        row_UK = row_CK[first_C[:units]]
        # Rows that must stay come first in their community, so that it loses its last places.
        stays_UK = np.isin(row_UK, self.left_L)
        row_UK = np.take_along_axis(row_UK, np.argsort(~stays_UK, axis=1, kind="stable"), axis=1)
        community_UK = label_N[row_UK]
        absent_L = self.left_L[~np.isin(self.left_L, row_UK)]
        if absent_L.size:
            place_L = np.flatnonzero(~np.isin(row_UK, self.left_L))[-len(absent_L) :]
            row_UK.flat[place_L] = absent_L
            together = len(set(label_N[absent_L])) == len(set(place_L // k)) == 1
            community_UK.flat[place_L] = label_N[absent_L] if together else -1
        self.left_L = np.setdiff1d(np.arange(len(label_N), dtype=np.int32), row_UK)
        return row_UK, community_UK


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


def _part_groups(
    unit_SP: npt.NDArray[np.int64], group_UK: npt.NDArray[np.int32], *, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Exchange communities between batches while that parts rows of one group.

    For a community u of batch s that meets one of its groups there, up to ``LOOK`` communities v
    of other batches t are tried; u and v change places if fewer groups then meet in s and t.
    """
    groups_U = _shared_groups(group_UK)
    batches: list[list[int]] = unit_SP.tolist()
    count_S = [Counter(group for u in batch for group in groups_U[u]) for batch in batches]

    def meets(unit: int, batch: int, without: int) -> int:
        """Count the groups of a unit that are in a batch, one unit of it taken out."""
        gone, count = groups_U[without], count_S[batch]
        return sum(count[group] > (group in gone) for group in groups_U[unit])

    for _ in range(PASSES):
        exchanges = 0
        # Where a group is in every batch already, no exchange makes it meet itself less.
        spread = Counter(group for count in count_S for group in +count)
        for s, p in np.ndindex(unit_SP.shape):
            u = batches[s][p]
            if not any(count_S[s][g] > 1 and spread[g] < len(batches) for g in groups_U[u]):
                continue
            for place in rng.integers(unit_SP.size, size=LOOK).tolist():
                t, q = divmod(place, unit_SP.shape[1])
                v = batches[t][q]
                now = meets(u, s, u) + meets(v, t, v)
                if t != s and meets(v, s, u) + meets(u, t, v) < now:
                    batches[s][p], batches[t][q] = v, u
                    for batch, came, went in ((s, v, u), (t, u, v)):
                        count_S[batch].update(groups_U[came])
                        count_S[batch].subtract(groups_U[went])
                    exchanges += 1
                    break
        if not exchanges:
            break
    return np.array(batches)


def _shared_groups(group_UK: npt.NDArray[np.int32]) -> list[frozenset[int]]:
    """Return of each unit the groups that are in another unit too."""
    sorted_UK = np.sort(group_UK, axis=1)
    once_UK = np.ones(sorted_UK.shape, bool)
    once_UK[:, 1:] = sorted_UK[:, 1:] != sorted_UK[:, :-1]
    group, units = np.unique(sorted_UK[once_UK], return_counts=True)
    shared_UK = np.isin(sorted_UK, group[units > 1])
    return [
        frozenset(group_K[shared_K].tolist())
        for group_K, shared_K in zip(sorted_UK, shared_UK, strict=True)
    ]


def _repeats(group_SB: npt.NDArray[np.int32]) -> int:
    """Count the rows that share a batch with an earlier row of their group."""
    sorted_SB = np.sort(group_SB, axis=1)
    return int((sorted_SB[:, 1:] == sorted_SB[:, :-1]).sum())
