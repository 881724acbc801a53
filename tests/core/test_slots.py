"""What a slot holds: the plan's row, its negatives, and groups to mask by."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core.errors import InputError
from b3_core.negatives import Negatives
from b3_core.pairs import GIVEN, NOBODY, PairTable
from b3_core.slots import Slots, row_dataset, slot_dataset
from tests.core.test_sampler import PLAN, make_plan, make_table

GROUPS = [np.array([0, 1, 2, 3, 0], np.int32), np.array([0, 1, 2, 3], np.int32)]
HARD = np.array(
    [[[1, 2], [1, 3]], [[0, 2], [2, -1]], [[0, 1], [4, 0]], [[1, 3], [-1, -1]], [[0, 2], [0, 3]]],
    np.int32,
)


def test_by_hand():
    slots = Slots.of(PLAN, GROUPS, Negatives(HARD))
    assert (len(slots), slots.negatives) == (10, 2)
    # Slots 2 and 3 are batch 1, of the second table: rows 3 and 1 are positions 8 and 6.
    assert slots.rows([2, 3]).tolist() == [[8, 5, 7], [6, 7, 6]]
    # Its groups are numbered after the four of the first.
    assert slots.groups([2, 3]).tolist() == [[7, 4, 6], [5, 6, NOBODY]]
    # In the first table rows 0 and 4 are of one group.
    assert slots.groups([0, 1, 5]).tolist() == [[0, 1, 2], [0, 1, 3], [3, 0, 0]]


def test_batches_that_lack_all_negatives_have_no_columns_for_them():
    hard = HARD.copy()
    hard[3] = -1
    slots = Slots.of(PLAN, GROUPS, Negatives(hard))
    assert slots.rows([6, 7]).tolist() == [[5], [7]]
    assert slots.groups([6]).tolist() == [[4]]
    # One process of two has the half of a batch that lacks them, and the other has not.
    assert slots.rows([7, 3]).shape == slots.groups([7, 3]).shape == (2, 3)
    hard[3, 0, 0] = 1
    assert Slots.of(PLAN, GROUPS, Negatives(hard)).rows([7]).shape == (1, 3)


def test_without_negatives():
    slots = Slots.of(PLAN, GROUPS)
    assert slots.rows(range(10)).ravel().tolist() == [4, 0, 8, 6, 2, 3, 5, 7, 1, 4]
    assert slots.groups([9]).tolist() == [[0]]


def test_items_are_the_texts_of_the_slot():
    pairs = [
        make_table("a", [(f"qa{i}", f"pa{i}") for i in range(5)]),
        make_table("b", [(f"qb{i}", f"pb{i}") for i in range(4)]),
    ]
    slots = Slots.of(PLAN, [table.group_N for table in pairs], Negatives(HARD))
    items = slot_dataset(slots, row_dataset(pairs))
    assert len(items) == 10
    assert items[3] == {
        "query": "qb1",
        "positive": "pb1",
        "negative_1": "pb2",
        "negative_2": "pb1",  # there is none: the own row fills the place
        "label": [6, 7, NOBODY],
    }
    assert list(items[[0, 1]]["query"]) == ["qa4", "qa0"]


def triplets(name, rows):
    """A table whose rows came with hard negatives: (query, positive, negative, its group)."""
    plain = make_table(name, [(query, positive) for query, positive, *_ in rows]).table
    given = [pa.array([row[2] for row in rows]), pa.array([row[3] for row in rows], pa.int32())]
    for field, column in zip(GIVEN, given, strict=True):
        plain = plain.append_column(field, column)
    return PairTable(name, plain)


def test_the_negatives_that_rows_came_with_are_first_and_blank_where_there_are_none():
    pairs = [
        triplets("a", [(f"qa{i}", f"pa{i}", f"na{i}", 9 - i) for i in range(5)]),
        make_table("b", [(f"qb{i}", f"pb{i}") for i in range(4)]),
    ]
    slots = Slots.of_pairs(PLAN, pairs, Negatives(HARD))
    items = slot_dataset(slots, row_dataset(pairs, [("", "is: "), ("", "")]))
    assert items[0] == {
        "query": "qa4",
        "positive": "is: pa4",
        "negative_0": "is: na4",
        "negative_1": "is: pa1",
        "negative_2": "is: pa2",
        "label": [4, 5, 1, 2],
    }
    assert items[2]["negative_0"] == ""
    assert items[2]["label"] == [13, NOBODY, 10, 12]  # after 0 to 9


def test_a_row_without_a_negative_has_nobodys_in_whichever_table():
    """Its own positive fills the place, and must not be taken for a negative of a real group."""
    rows = [("q0", "p0", "n0", 3), ("q1", "p1", "n1", 3), ("q2", "p2", "p2", NOBODY)]
    pairs = [triplets("a", [*rows, *rows[:2]]), triplets("b", [*rows[:2], rows[2], rows[2]])]
    labels = slot_dataset(Slots.of_pairs(PLAN, pairs), row_dataset(pairs))[:]["label"]
    rows_of = [("a", 4), ("a", 0), ("b", 3), ("b", 1), ("a", 2), ("a", 3)]
    assert [row for row, _ in zip(PLAN.row_SB.ravel(), rows_of, strict=False)] == [
        row for _, row in rows_of
    ]
    lacks = {("a", 2), ("b", 2), ("b", 3)}
    for place, (_, given_group) in zip(rows_of, labels, strict=False):
        assert (given_group == NOBODY) == (place in lacks), place


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_every_slot_is_looked_up_as_the_plan_has_it(lengths, hard, across, seed):
    rng = np.random.default_rng(seed)
    dataset_SB = np.tile(rng.integers(0, len(lengths), (6, 1)), 4)
    if across:
        dataset_SB = rng.integers(0, len(lengths), (6, 4))
    row_SB = rng.integers(0, np.array(lengths)[dataset_SB])
    hard_SBH = rng.integers(-1, np.array(lengths)[dataset_SB][..., None], (6, 4, hard))
    groups = [rng.integers(0, 5, length).astype(np.int32) for length in lengths]
    plan = make_plan(row_SB, dataset_SB, np.zeros(6))
    slots = Slots.of(plan, groups, Negatives(hard_SBH.astype(np.int32)))
    start = np.cumsum([0, *lengths])
    first = np.cumsum([0, *(group_N.max() + 1 for group_N in groups)])
    for slot in range(24):
        s, b = divmod(slot, 4)
        d, row, negatives = dataset_SB[s, b], row_SB[s, b], hard_SBH[s, b]
        negatives = negatives if (hard_SBH[s] >= 0).any() else []
        expected = [row, *(row if n < 0 else n for n in negatives)]
        assert slots.rows([slot])[0].tolist() == [start[d] + each for each in expected]
        own = groups[d] + first[d]
        marks = [own[row], *(NOBODY if n < 0 else own[n] for n in negatives)]
        assert slots.groups([slot])[0].tolist() == marks


def test_rows_beyond_their_table():
    with pytest.raises(InputError, match="row 4 of dataset 0, whose table has 4 rows"):
        Slots.of(PLAN, [GROUPS[0][:4], GROUPS[1]])
