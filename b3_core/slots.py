"""What is in each place of a plan: a row, its hard negatives, and the groups of all of them.

    plan, negatives, pair tables -> Slots
    slot numbers -> rows, groups -> texts: slot_dataset, one item a slot

A *slot* is one place of one batch, counted through all epochs: slot ``s B + b`` is place b of batch
s. A row is in a slot once an epoch, and with other hard negatives each time, so slots, not rows,
are what a trainer's dataset is made of.

Legend: S batches, B rows of a batch, X slots of all batches (X = S B), x of those asked for,
H hard negatives a row, N rows of all tables, T tables.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from b3_core.batches import BatchPlan
from b3_core.errors import InputError
from b3_core.inputs import MEDIUM, NO_MEDIUM, ModelInput, Shelves
from b3_core.negatives import Negatives
from b3_core.pairs import GIVEN_MEDIA, MEDIA, NOBODY, PairTable, RowGroups

if TYPE_CHECKING:
    from datasets import Dataset

Positions = npt.NDArray[np.int64]
Groups = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Slots:
    """Rows and groups by slot; a *position* is a row of all tables, one after another."""

    position_SB: Positions
    negative_SBH: npt.NDArray[np.int32]
    """Rows of the slot's table, -1 where there is none."""
    start_SB: Positions
    """Position of the first row of each slot's table."""
    group_N: npt.NDArray[np.int32]
    """Group of every position; no two tables share one, as a batch may have rows of both."""
    given_N: npt.NDArray[np.int32] | None = None
    """Group of the hard negative that every position came with; None where none did."""

    @classmethod
    def of(
        cls,
        plan: BatchPlan,
        group_of: Sequence[npt.NDArray[np.int32]],
        negatives: Negatives | None = None,
        *,
        given_of: Sequence[npt.NDArray[np.int32] | None] = (),
    ) -> Self:
        """Lay a plan's slots out over the groups of its tables' rows.

        Parameters
        ----------
        given_of
            Groups of the negatives that each table's rows came with; None where they did not.

        Raises
        ------
        InputError
            A row lies beyond its table.
        """
        lengths = [len(group_N) for group_N in group_of]
        start_T = np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64)
        none = np.empty((*plan.row_SB.shape, 0), np.int32)
        return cls(
            positions(plan, lengths),
            none if negatives is None else negatives.row_SBH,
            start_T[plan.dataset_SB],
            *_apart(group_of, given_of or [None] * len(lengths)),
        )

    @classmethod
    def of_pairs(
        cls,
        plan: BatchPlan,
        pairs: Sequence[PairTable | RowGroups],
        negatives: Negatives | None = None,
    ) -> Self:
        """Lay a plan's slots out over its tables."""
        given_of = [table.negative_group_N for table in pairs]
        return cls.of(plan, [table.group_N for table in pairs], negatives, given_of=given_of)

    def __len__(self) -> int:
        return int(self.position_SB.size)

    @property
    def negatives(self) -> int:
        """Mined hard negatives a row, H."""
        return int(self.negative_SBH.shape[2])

    def rows(self, slot_x: Sequence[int]) -> Positions:
        """Return positions of the row and its mined negatives.

        Returns
        -------
        ndarray
            int64, x (1 + H). The own row fills the place of a lacking negative; where all batches
            asked for lack all, as those of a classification do, x 1.
        """
        own_x, negative_xH = self._at(slot_x)
        return np.column_stack([own_x, np.where(negative_xH < 0, own_x[:, None], negative_xH)])

    def groups(self, slot_x: Sequence[int]) -> Positions:
        """Return groups: of the row, of the negative it came with if any did, of mined ones.

        Returns
        -------
        ndarray
            int64, as wide as ``rows``, and one more where rows came with negatives; ``NOBODY``
            where a negative is lacking.
        """
        own_x, negative_xH = self._at(slot_x)
        group_xH = np.where(negative_xH < 0, NOBODY, self.group_N[negative_xH])
        given = [] if self.given_N is None else [self.given_N[own_x]]
        return np.column_stack([self.group_N[own_x], *given, group_xH]).astype(np.int64)

    def _at(self, slot_x: Sequence[int]) -> tuple[Positions, Positions]:
        batch_x, place_x = np.divmod(np.asarray(slot_x, np.int64), self.position_SB.shape[1])
        row_xH = self.negative_SBH[batch_x, place_x].astype(np.int64)
        # The whole batch decides, not this process's share of it: all must have as many columns.
        if (self.negative_SBH[np.unique(batch_x)] < 0).all():
            row_xH = row_xH[:, :0]
        at_xH = np.where(row_xH < 0, -1, row_xH + self.start_SB[batch_x, place_x][:, None])
        return self.position_SB[batch_x, place_x], at_xH


def positions(plan: BatchPlan, lengths: Sequence[int]) -> Positions:
    """Turn (dataset, row) into positions in the concatenation of all tables: int64, S x B.

    Raises
    ------
    InputError
        There are too few tables, or a row lies beyond its table.
    """
    length_T = np.asarray(lengths, dtype=np.int64)
    if plan.dataset_SB.max(initial=-1) >= len(length_T):
        raise InputError(
            f"the plan has a dataset {plan.dataset_SB.max()}, counted from 0",
            expected=f"{len(length_T)} datasets, one for each table",
        )
    beyond_SB = plan.row_SB >= length_T[plan.dataset_SB]
    if beyond_SB.any():
        batch, place = np.argwhere(beyond_SB)[0]
        dataset = plan.dataset_SB[batch, place]
        raise InputError(
            f"batch {batch} of the plan has row {plan.row_SB[batch, place]} of dataset "
            f"{dataset}, whose table has {length_T[dataset]} rows",
            expected="the tables that the plan was made from",
        )
    start_T = np.concatenate([[0], np.cumsum(length_T[:-1])])
    return np.asarray(plan.row_SB + start_T[plan.dataset_SB], dtype=np.int64)


#: Stands for what datasets would take a hash of, pickling all texts: nothing here is cached by it.
#: On Python 3.12 pyarrow's tables cannot even be pickled the way it does.
_UNHASHED = "b3"


def row_dataset(pairs: Sequence[PairTable], prompts: Sequence[tuple[str, str]] = ()) -> "Dataset":
    """Return every row of every table as one dataset: ``query``, ``positive``, ``negative``.

    The last is there if a table's rows came with hard negatives, and is blank for those of others.
    Likewise ``query_medium`` and ``positive_medium`` (``b3_core.inputs.MEDIUM``), and
    ``negative_medium``.

    Row ``i`` of table ``t`` is at position ``i`` plus the length of the tables before ``t``. Only
    texts that get a prompt are copied.

    Parameters
    ----------
    prompts
        What to put before each table's queries and positives; nothing by default.
    """
    from datasets import Dataset  # noqa: PLC0415 - a second to import

    given = any(part.has_negatives for part in pairs)
    names = {name for part in pairs for name in part.table.column_names}
    media = [name for name in (*MEDIA.names, *GIVEN_MEDIA.names) if name in names]
    tables = []
    for part, (query, positive) in zip(pairs, prompts or [("", "")] * len(pairs), strict=True):
        columns = {
            "query": _prompted(part.queries, query),
            "positive": _prompted(part.positives, positive),
        }
        if given:
            none = pa.chunked_array([pa.repeat("", len(part))])
            columns["negative"] = _prompted(
                part.negatives if part.has_negatives else none, positive
            )
        for name in media:
            none = pa.chunked_array([pa.array([NO_MEDIUM] * len(part), MEDIUM)])
            columns[name] = part.table[name] if name in part.table.column_names else none
        tables.append(pa.table(columns))
    return Dataset(pa.concat_tables(tables), fingerprint=_UNHASHED)


def _apart(
    group_of: Sequence[Groups], given_of: Sequence[Groups | None]
) -> tuple[Groups, Groups | None]:
    """Return groups of rows and of the negatives they came with, numbered apart for each table.

    The latter are None where no row came with a negative.
    """
    none = np.zeros(0, np.int32)
    both = [
        (group_N, none if given_N is None else given_N)
        for group_N, given_N in zip(group_of, given_of, strict=True)
    ]
    most = [max(part.max(initial=-1) for part in parts) + 1 for parts in both]
    first_T = np.cumsum([0, *most])[:-1].astype(np.int32)
    own = [group_N + first for (group_N, _), first in zip(both, first_T, strict=True)]
    given = [
        np.where(given_N == NOBODY, NOBODY, given_N + first).astype(np.int32)
        if given_N.size
        else np.full(len(group_N), NOBODY, np.int32)
        for (group_N, given_N), first in zip(both, first_T, strict=True)
    ]
    lacking = all(given_N is None for given_N in given_of)
    return np.concatenate([none, *own]), None if lacking else np.concatenate(given)


def _prompted(texts: pa.ChunkedArray, prompt: str) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(prompt, texts, "") if prompt else texts


#: What tells which candidates a row is contrasted with: slot numbers -> a tensor, a line a slot.
Marks = Callable[[Sequence[int]], Any]


def slot_dataset(
    slots: Slots,
    rows: "Dataset",
    *,
    marks: Marks | None = None,
    shelves: Shelves | None = None,
) -> "Dataset":
    """Return a dataset with an item a slot, looked up when it is asked for.

    Items have ``query``, ``positive``; ``negative_0`` if rows came with one; the mined ones from
    ``negative_1`` to ``negative_H``; and ``label``: the groups of the positive and of all of these,
    which :class:`b3_core.loss.GroupedInfoNCE` masks by.

    Parameters
    ----------
    rows
        Texts by position; of a file on disk no more is read than is needed.
    marks
        What ``label`` is instead of groups, such as :class:`b3_core.margin.PositiveMargin`.
    shelves
        Where images and videos are, for a model that takes them: its inputs are not texts then but
        dicts (:class:`b3_core.inputs.Inputs`).
    """
    from datasets import Dataset  # noqa: PLC0415 - a second to import

    numbers = numbered(len(slots))
    # Dataset.set_transform, without the hash that its decorator takes of all that is looked up in.
    lookup = _Lookup(slots, rows, marks, shelves)
    Dataset.set_format.__wrapped__(numbers, "custom", transform=lookup)
    return numbers


def numbered(slots: int) -> "Dataset":
    """Return a dataset with an item a slot: its number, ``slot``."""
    from datasets import Dataset  # noqa: PLC0415 - a second to import

    return Dataset(pa.table({"slot": np.arange(slots)}), fingerprint=_UNHASHED)


@dataclass(frozen=True, eq=False)
class _Lookup:
    """Turns slot numbers into columns of texts."""

    slots: Slots
    rows: "Dataset"
    marks: Marks | None
    shelves: Shelves | None

    def __call__(self, items: dict[str, list[int]]) -> dict[str, Any]:
        at_xX = self.slots.rows(items["slot"])
        own = self.rows[at_xX[:, 0].tolist()]
        columns = {side: self._inputs(own, side, at_xX[:, 0]) for side in ("query", "positive")}
        if self.slots.given_N is not None:
            columns["negative_0"] = self._inputs(own, "negative", at_xX[:, 0])
        for number in range(1, at_xX.shape[1]):
            hard = self.rows[at_xX[:, number].tolist()]
            columns[f"negative_{number}"] = self._inputs(hard, "positive", at_xX[:, number])
        if self.marks is None:
            return {**columns, "label": self.slots.groups(items["slot"]).tolist()}
        return {**columns, "label": self.marks(items["slot"])}

    def _inputs(self, found: dict[str, list[Any]], side: str, at_x: Positions) -> list[ModelInput]:
        texts: list[ModelInput] = found[side]
        if self.shelves is None:
            return texts
        return self.shelves.compose(found[side], found.get(f"{side}_medium"), at_x)
