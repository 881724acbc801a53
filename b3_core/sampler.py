"""A plan's batches, handed to trainers: sentence-transformers, Hugging Face's, plain torch.

    plan -> PlanSampler: lists of items, batch after batch; items are slots, or rows

*Slots* go with :func:`b3_core.slots.slot_dataset`, which knows each slot's hard negatives and
groups; *rows* with any dataset of one's own that holds the rows in their order. A plain loop goes
through the plan epoch by epoch::

    sampler = PlanSampler.of_slots(plan)
    loader = DataLoader(slot_dataset(slots, rows), batch_sampler=sampler, collate_fn=...)
    for epoch in range(sampler.epochs):
        sampler.set_epoch(epoch)
        for batch in loader: ...

Hugging Face's Trainer counts the steps of an epoch once, before the first, and computes the
learning rate schedule from that count; a plan's epochs may hold different numbers of batches. So a
trainer is given the whole plan as *one* of its epochs: ``one_pass=True`` and
``num_train_epochs=1``. Its step count is then exact, and no ``max_steps`` cuts or wraps a plan.

Legend: S batches, B rows of a batch.
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Self

import numpy as np
import numpy.typing as npt

from b3_core.batches import BatchPlan
from b3_core.errors import InputError
from b3_core.slots import positions

VERSION = 2


class PlanSampler:
    """The batch sampler of a plan, for ``torch.utils.data.DataLoader(batch_sampler=...)``.

    Parameters
    ----------
    item_SB
        Items of each batch: int64, S x B.
    epoch_S
        Epoch of each batch, ascending.
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
        The batch size is no multiple of ``processes``.
    """

    drop_last = True  # accelerate asks; every batch of a plan is full

    def __init__(
        self,
        item_SB: npt.NDArray[np.int64],
        epoch_S: npt.NDArray[np.int16],
        *,
        processes: int = 1,
        one_pass: bool = False,
    ) -> None:
        size = item_SB.shape[1]
        if size % processes:
            raise InputError(
                f"a batch of {size} rows cannot be shared equally by {processes} processes",
                remedy="set compute.train_workers to a divisor of batches.batch_size",
            )
        self.batch_size = size // processes
        self._item_SB, self._epoch_S = item_SB, epoch_S
        self._processes = processes
        self._epoch: int | None = None if one_pass else 0
        self._first = 0  # batch of the next pass to begin with
        self._done = 0  # batches of this pass that were handed out

    @classmethod
    def of_slots(cls, plan: BatchPlan, *, processes: int = 1, one_pass: bool = False) -> Self:
        """Yield slot numbers: ``s B + b`` for place b of batch s."""
        item_SB = np.arange(plan.row_SB.size, dtype=np.int64).reshape(plan.row_SB.shape)
        return cls(item_SB, plan.epoch_S, processes=processes, one_pass=one_pass)

    @classmethod
    def of_rows(
        cls,
        plan: BatchPlan,
        lengths: Sequence[int],
        *,
        processes: int = 1,
        one_pass: bool = False,
    ) -> Self:
        """Yield positions in the concatenation of all tables, of these lengths.

        Raises
        ------
        InputError
            A row lies beyond its table.
        """
        item_SB = positions(plan, lengths)
        return cls(item_SB, plan.epoch_S, processes=processes, one_pass=one_pass)

    @property
    def epochs(self) -> int:
        """How many epochs the plan has."""
        return int(self._epoch_S.max(initial=-1)) + 1

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the one that the next pass yields, from its first batch on.

        The epoch that is set already stays as it is, so that a loop that sets it before every pass
        does not undo :meth:`load_state_dict`.

        Raises
        ------
        InputError
            The plan has no such epoch.
        """
        if self._epoch is None:
            return
        if not 0 <= epoch < self.epochs:
            raise InputError(f"no epoch {epoch} in the plan", expected=f"0 to {self.epochs - 1}")
        if epoch != self._epoch:
            self._epoch, self._first, self._done = epoch, 0, 0

    def state_dict(self) -> dict[str, int | None]:
        """Return where the pass is: its epoch, and how many batches of it were handed out.

        Batches count as a whole, so any number of processes may go on from it. A loader that
        fetches ahead has been handed more batches than it has yielded: count its own then.
        """
        return {"epoch": self._epoch, "batches": self._done}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Let the next pass begin where ``state`` was; the one after it is whole again.

        Raises
        ------
        InputError
            The plan has no such place, or one of the two goes through all epochs in one pass.
        """
        epoch, batches = state["epoch"], state["batches"]
        if (epoch is None) != (self._epoch is None):
            raise InputError(
                f"a state of epoch {epoch} for a sampler that is at epoch {self._epoch}",
                expected="one_pass as it was when the state was taken",
            )
        if epoch is not None:
            self.set_epoch(epoch)
        many = len(self._current())
        if batches is None or not 0 <= batches <= many:
            raise InputError(f"no batch {batches} in the pass", expected=f"0 to {many}")
        self._first = self._done = batches

    def __len__(self) -> int:
        """Count the lists that the next pass yields; exact, or distributed runs would hang."""
        return (len(self._current()) - self._first) * self._processes

    def __iter__(self) -> Iterator[list[int]]:
        first, self._first = self._first, 0
        self._done = first
        current_S = self._current()[first:]
        for done, batch in enumerate(current_S, start=first + 1):
            slices = self._item_SB[batch].reshape(self._processes, self.batch_size).tolist()
            yield from slices[:-1]
            self._done = done
            yield slices[-1]

    def _current(self) -> npt.NDArray[np.intp]:
        """Batches of the current pass, in the plan's order."""
        if self._epoch is None:
            return np.arange(len(self._epoch_S))
        return np.flatnonzero(self._epoch_S == self._epoch)


class TrainerSampler:
    """Makes the sampler of a plan when sentence-transformers' trainer asks for it.

    The trainer calls it with its dataset, one of slots, and its per-device batch size; and with
    label columns, a generator and a seed, which a plan has no use for.

    Each checkpoint holds the trainer's arguments, pickled, and this among them: it goes without the
    plan, which may be large and is where it was.

    Parameters
    ----------
    plan, processes
        As :class:`PlanSampler` has them.
    """

    def __init__(self, plan: BatchPlan, *, processes: int = 1) -> None:
        self._plan: BatchPlan | None = plan
        self._processes = processes

    def __call__(
        self, dataset: Sized, batch_size: int, drop_last: bool = True, **unused: object
    ) -> PlanSampler:
        """Return the sampler of all epochs in one pass.

        Raises
        ------
        InputError
            The dataset or the batch size is not the plan's, or the arguments are a checkpoint's.
        """
        plan, processes = self._plan, self._processes
        if plan is None:
            raise InputError(
                "the arguments of a checkpoint hold no plan",
                remedy="set batch_sampler anew from the manifest",
            )
        sampler = PlanSampler.of_slots(plan, processes=processes, one_pass=True)
        if len(dataset) != plan.row_SB.size:
            raise InputError(
                f"the trainer's dataset has {len(dataset)} items",
                expected=f"{plan.row_SB.size}, one for each slot of the plan",
                remedy="give it the dataset of the same manifest, and no eval_dataset, which a "
                "plan has no batches of: judge by an evaluator",
            )
        if batch_size != sampler.batch_size:
            raise InputError(
                f"the trainer's batch size is {batch_size} a device",
                expected=f"{sampler.batch_size}: the plan's {plan.row_SB.shape[1]} rows a batch "
                f"over {processes} processes",
                remedy="set per_device_train_batch_size to it",
            )
        return sampler

    def __getstate__(self) -> dict[str, object]:
        return {"_plan": None, "_processes": self._processes}

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a copy in this process keeps the plan
