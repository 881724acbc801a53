"""A plan's batches, handed to trainers: sentence-transformers, Hugging Face's, plain torch.

    pair tables -> row_dataset: all rows in one dataset, table after table
    plan        -> PlanSampler: lists of positions in that dataset, batch after batch

A plain loop goes through the plan epoch by epoch::

    sampler = PlanSampler(plan, [len(table) for table in pairs])
    loader = DataLoader(row_dataset(pairs), batch_sampler=sampler)
    for epoch in range(sampler.epochs):
        sampler.set_epoch(epoch)
        for batch in loader: ...

Hugging Face's Trainer counts the steps of an epoch once, before the first, and computes the
learning rate schedule from that count; a plan's epochs may hold different numbers of batches. So a
trainer is given the whole plan as *one* of its epochs: ``batch_sampler=for_trainer(plan, ...)``
and ``num_train_epochs=1``. Its step count is then exact, and no ``max_steps`` cuts or wraps a plan.

Legend: S batches, B rows of a batch, T tables.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from b3_core.batches import BatchPlan
from b3_core.errors import InputError
from b3_core.pairs import PairTable

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = 1


def row_dataset(pairs: Sequence[PairTable]) -> "Dataset":
    """Return every row of every table as one dataset with columns ``query`` and ``positive``.

    No text is copied. Row ``i`` of table ``t`` is at position ``i`` plus the length of the tables
    before ``t``: the positions that :class:`PlanSampler` yields.
    """
    import pyarrow as pa  # noqa: PLC0415 - the sampler itself needs neither
    from datasets import Dataset  # noqa: PLC0415 - a second to import

    return Dataset(pa.concat_tables([part.table.select(["query", "positive"]) for part in pairs]))


class PlanSampler:
    """The batch sampler of a plan, for ``torch.utils.data.DataLoader(batch_sampler=...)``.

    Parameters
    ----------
    plan
        Batches of all epochs; rows are positions in their dataset's table.
    lengths
        Rows of each table, in the order of ``plan.dataset_S``.
    processes
        Data-parallel processes that share each batch. Each batch is emitted as that many equal
        slices one after another, which accelerate deals out in turn: process ``r`` gets slice
        ``r``. The sampler never picks a process's share itself, for accelerate would again.
    one_pass
        Yield all epochs in one pass and ignore :meth:`set_epoch`. By default a pass is the epoch
        that was set last, 0 at first.

    Raises
    ------
    InputError
        The batch size is no multiple of ``processes``, or a row lies beyond its table.
    """

    drop_last = True  # accelerate asks; every batch of a plan is full

    def __init__(
        self,
        plan: BatchPlan,
        lengths: Sequence[int],
        *,
        processes: int = 1,
        one_pass: bool = False,
    ) -> None:
        size = plan.row_SB.shape[1]
        if size % processes:
            raise InputError(
                f"a batch of {size} rows cannot be shared equally by {processes} processes",
                remedy="set compute.train_workers to a divisor of batches.batch_size",
            )
        self.batch_size = size // processes
        self._row_SB = _positions(plan, lengths)
        self._epoch_S = plan.epoch_S
        self._processes = processes
        self._epoch: int | None = None if one_pass else 0

    @property
    def epochs(self) -> int:
        """How many epochs the plan has."""
        return int(self._epoch_S.max(initial=-1)) + 1

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the one that the next pass yields.

        Raises
        ------
        InputError
            The plan has no such epoch.
        """
        if self._epoch is None:
            return
        if not 0 <= epoch < self.epochs:
            raise InputError(f"no epoch {epoch} in the plan", expected=f"0 to {self.epochs - 1}")
        self._epoch = epoch

    def __len__(self) -> int:
        """Count the lists that a pass yields; exact, or distributed runs would hang."""
        return len(self._current()) * self._processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._current():
            for rows in self._row_SB[batch].reshape(self._processes, self.batch_size):
                yield rows.tolist()

    def _current(self) -> npt.NDArray[np.intp]:
        """Batches of the current pass, in the plan's order."""
        if self._epoch is None:
            return np.arange(len(self._epoch_S))
        return np.flatnonzero(self._epoch_S == self._epoch)


def for_trainer(
    plan: BatchPlan, lengths: Sequence[int], *, processes: int = 1
) -> Callable[..., PlanSampler]:
    """Return what sentence-transformers' ``batch_sampler=`` argument takes: a sampler's maker.

    The trainer calls it with its dataset and per-device batch size, and with label columns, a
    generator and a seed, which a plan has no use for.

    Parameters
    ----------
    plan, lengths, processes
        As :class:`PlanSampler` has them.
    """

    def make(
        dataset: Sized, batch_size: int, drop_last: bool = True, **unused: object
    ) -> PlanSampler:
        sampler = PlanSampler(plan, lengths, processes=processes, one_pass=True)
        if batch_size != sampler.batch_size:
            raise InputError(
                f"the trainer's batch size is {batch_size} a device",
                expected=f"{sampler.batch_size}: the plan's {plan.row_SB.shape[1]} rows a batch "
                f"over {processes} processes",
                remedy="set per_device_train_batch_size to it",
            )
        if len(dataset) != sum(lengths):
            raise InputError(
                f"the trainer's dataset has {len(dataset)} rows",
                expected=f"{sum(lengths)}, as the plan's tables have together",
            )
        return sampler

    return make


def _positions(plan: BatchPlan, lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Turn (dataset, row) into positions in the concatenation of all tables: int64, S x B."""
    length_T = np.asarray(lengths, dtype=np.int64)
    if plan.dataset_S.max(initial=-1) >= len(length_T):
        raise InputError(
            f"the plan has a dataset {plan.dataset_S.max()}, counted from 0",
            expected=f"{len(length_T)} datasets, one for each table",
        )
    beyond_S = np.flatnonzero(plan.row_SB.max(axis=1, initial=-1) >= length_T[plan.dataset_S])
    if beyond_S.size:
        batch = beyond_S[0]
        raise InputError(
            f"batch {batch} of the plan has row {plan.row_SB[batch].max()} of dataset "
            f"{plan.dataset_S[batch]}, whose table has {length_T[plan.dataset_S[batch]]} rows",
            expected="the tables that the plan was made from",
        )
    start_T = np.concatenate([[0], np.cumsum(length_T[:-1])])
    return np.asarray(plan.row_SB + start_T[plan.dataset_S][:, None], dtype=np.int64)
