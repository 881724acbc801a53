"""From communities to the batches of every epoch.

    deal: each dataset's rows to batches (:mod:`b3_core.deal`)
    mix:  all datasets' batches of an epoch

Where ``mixing`` is ``across``, the rows of all datasets are dealt as if they were of one: what is
done by default where nobody thinks of datasets, and a control arm.

Legend: N rows, S batches, B rows of a batch, L rows left out, D datasets, E epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from b3_core.communities import Partition
from b3_core.config import BatchSpec
from b3_core.deal import Deck, DeckRows, Rows, apart, repeats

VERSION = 5


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Which rows meet in which batch, for all epochs, in the order of training.

    Raises
    ------
    ValueError
        The arrays do not fit together; ``check`` looks at what is in them.
    """

    row_SB: Rows
    """Rows of each batch: positions in their dataset; rows of a community are neighbours."""
    dataset_SB: npt.NDArray[np.int16]
    """Dataset of each row: one a batch, but where batches are drawn across datasets."""
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
        shapes = {self.row_SB.shape, self.community_SB.shape, self.dataset_SB.shape}
        if len(shapes) > 1 or self.row_SB.ndim != 2 or self.epoch_S.shape != (batches,):
            raise ValueError("rows, communities, datasets and epochs are not of the same batches")
        if self.left_out.ndim != 2 or self.left_out.shape[1] != 3:
            raise ValueError(f"left_out is of shape {self.left_out.shape}, not (L, 3)")

    @property
    def is_across(self) -> bool:
        """Say whether a batch has rows of several datasets."""
        return bool((self.dataset_SB != self.dataset_SB[:, :1]).any())

    @property
    def dataset_S(self) -> npt.NDArray[np.int16]:
        """Dataset of each batch.

        Raises
        ------
        ValueError
            A batch has rows of several.
        """
        if self.is_across:
            raise ValueError("a batch has rows of several datasets")
        return self.dataset_SB[:, 0]

    def check(self, sizes: Sequence[int]) -> None:
        """Verify every invariant against the number of rows of each dataset.

        Every row is exactly once in each epoch, or left out of it; no row is left out twice in a
        row; fewer rows are left out than fill a batch, of each dataset or, if batches are drawn
        across them, of all; a community is in one batch of an epoch, in consecutive slots.
        ``left_out`` is sorted.

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
        for name, dataset_X in (("a batch", self.dataset_SB), ("left_out", left_LX[:, 1])):
            if dataset_X.min(initial=0) < 0 or dataset_X.max(initial=0) >= len(sizes):
                raise ValueError(f"{name} is of none of the {len(sizes)} datasets")
        if not np.isin(left_LX[:, 0], np.arange(epochs)).all():
            raise ValueError(f"left_out is of none of the {epochs} epochs")
        self._check_datasets(sizes, epochs)
        left_E = np.bincount(left_LX[:, 0], minlength=epochs)
        if self.is_across and left_E.max(initial=0) >= self.row_SB.shape[1]:
            epoch = int(left_E.argmax())
            raise ValueError(f"epoch {epoch}: {left_E[epoch]} rows left out would fill a batch")
        if (np.lexsort(left_LX.T[::-1]) != np.arange(len(left_LX))).any():
            raise ValueError("left_out is not sorted by epoch, dataset and row")
        if self.community_SB.min(initial=-1) < -1:
            raise ValueError(f"community {self.community_SB.min()} is negative, and not -1")

    def count_duplicates(self, group_of: Sequence[npt.NDArray[np.int32]]) -> int:
        """Count what ``duplicates`` says, from the groups of each dataset's rows."""
        start_D = np.cumsum([0, *map(len, group_of)])[:-1]
        return repeats(apart(group_of)[self.row_SB + start_D[self.dataset_SB]])

    def slots_of(
        self, dataset: int, mine_S: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Return which slots hold rows of a dataset, of all batches or of some: bool, S x B."""
        slot_SB: npt.NDArray[np.bool_] = self.dataset_SB == dataset
        return slot_SB if mine_S is None else slot_SB & mine_S[:, None]

    def _check_datasets(self, sizes: Sequence[int], epochs: int) -> None:
        """Check each dataset in each epoch; raise the first dataset's first fault.

        Epoch by epoch, for these are contiguous: whoever looked through the whole plan for every
        dataset and epoch would take time by the product of all three.
        """
        starts_SB = self._starts()
        bound_E = np.searchsorted(self.epoch_S, np.arange(epochs + 1))
        left_LX = self.left_out
        place_EL = _sorted_into(left_LX[:, 0], epochs)
        before_of = [np.zeros(rows, bool) for rows in sizes]
        faults: dict[int, ValueError] = {}
        for epoch in range(epochs):
            mine = slice(bound_E[epoch], bound_E[epoch + 1])
            row_X, community_X = self.row_SB[mine].ravel(), self.community_SB[mine].ravel()
            starts_X = starts_SB[mine].ravel()
            left_lX = left_LX[place_EL[epoch]]
            slots_D = _sorted_into(self.dataset_SB[mine].ravel(), len(sizes))
            left_Dl = _sorted_into(left_lX[:, 1], len(sizes))
            for dataset, (slot_x, left_l) in enumerate(zip(slots_D, left_Dl, strict=True)):
                if dataset in faults:
                    continue
                where = f"epoch {epoch}, dataset {dataset}"
                try:
                    before_of[dataset] = self._check_rows(
                        row_X[slot_x], left_lX[left_l, 2], before_of[dataset], where=where
                    )
                    _check_communities(community_X[slot_x][starts_X[slot_x]], where=where)
                except ValueError as fault:
                    faults[dataset] = fault
        if faults:
            raise faults[min(faults)]

    def _starts(self) -> npt.NDArray[np.bool_]:
        """Return in which slots of a batch a run of one community of one dataset starts."""
        starts_SB = self.community_SB >= 0
        starts_SB[:, 1:] &= (self.community_SB[:, 1:] != self.community_SB[:, :-1]) | (
            self.dataset_SB[:, 1:] != self.dataset_SB[:, :-1]
        )
        return starts_SB

    def _check_rows(
        self, row_X: Rows, left_L: Rows, before_N: npt.NDArray[np.bool_], *, where: str
    ) -> npt.NDArray[np.bool_]:
        """Check one dataset in one epoch; return which rows were left out."""
        all_N = np.concatenate([row_X, left_L])
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


def _check_communities(start_R: Rows, *, where: str) -> None:
    """Check the communities of all runs, R, of one dataset in one epoch."""
    community, runs = np.unique(start_R, return_counts=True)
    if (runs > 1).any():
        raise ValueError(f"{where}: community {community[runs > 1][0]} is in several places")


def _sorted_into(number_X: npt.NDArray[np.integer], count: int) -> list[npt.NDArray[np.intp]]:
    """Return the places of each number 0 ... count - 1, ascending; there is no other."""
    order_X = np.argsort(number_X, kind="stable")
    bounds = np.searchsorted(number_X[order_X], np.arange(1, count))
    return np.split(order_X, bounds)


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
        One or more a dataset; each batch comes from a single dataset, unless ``spec.mixing`` is
        ``across``, where communities count for nothing.
    group_of
        Groups of each dataset's rows. No group is twice in a batch where that can be avoided: in
        epochs of random batches always, else by a bounded search (``b3_core.parting``).
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
    dealt_from = [
        DeckRows.of(dataset, parts, group_N)
        for dataset, (parts, group_N) in enumerate(zip(partitions, group_of, strict=True))
    ]
    if spec.mixing == "across":
        dealt_from = [DeckRows.across(group_of)]
    decks = [Deck(rows, batch_size=spec.batch_size, rng=rng) for rows in dealt_from]
    weight_D = np.array(weight_of or [1.0] * len(decks))
    chosen = [variant_of[epoch] if variant_of else 0 for epoch in range(spec.epochs)]
    dealt: list[tuple[int, int, Rows, Rows]] = []  # deck, epoch, its rows, communities of a batch
    left, duplicates = [], 0
    for epoch, segments in enumerate(spec.segments()):
        drawn = [deck.draw(segments, variant=chosen[epoch]) for deck in decks]
        for stretch in zip(*drawn, strict=True):
            order = _mix([len(rows) for rows, _ in stretch], spec.mixing, weight_D, rng=rng)
            dealt.extend((d, epoch, *(part[i : i + 1] for part in stretch[d])) for d, i in order)
        for deck, stretches in zip(decks, drawn, strict=True):
            left_L = np.sort(deck.left_L)
            dataset_L, row_L = deck.rows.dataset_N[left_L], deck.rows.row_N[left_L]
            left.append(np.column_stack([np.full(len(left_L), epoch), dataset_L, row_L]))
            duplicates += sum(repeats(deck.rows.group_N[row_SB]) for row_SB, _ in stretches)
    return BatchPlan(
        np.concatenate([decks[d].rows.row_N[rows] for d, _, rows, _ in dealt]),
        np.concatenate([decks[d].rows.dataset_N[rows] for d, _, rows, _ in dealt]),
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
