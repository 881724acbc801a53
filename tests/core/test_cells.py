"""Cells, what is looked for in lists, and edges that are counted: against all at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core import cells, probing
from b3_core.cells import Cells, find_cells, seams
from b3_core.edges import count_edges, count_mutual
from b3_core.graph import link
from b3_core.neighbours import RankTable, rank
from tests.conftest import examples

WIDTH = 24


def drawn(rows, *, seed=0, topics=6, width=WIDTH):
    """Return unit vectors of queries and positives around a few topics, as they are stored."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(topics, width))
    topic = rng.integers(topics, size=rows)
    sides = []
    for _ in range(2):
        vector = centre[topic] + 0.7 * rng.normal(size=(rows, width))
        vector /= np.linalg.norm(vector, axis=1, keepdims=True)
        sides.append(vector.astype(np.float16))
    return tuple(sides)


@pytest.fixture
def small_lists(monkeypatch):
    """Lists of so few rows that a small dataset has many."""
    monkeypatch.setattr(cells, "LIST_ROWS", 20)


@settings(max_examples=examples(30), deadline=None)
@given(
    rows=st.integers(1, 400), cell=st.integers(1, 120), unit=st.integers(1, 40), seed=st.integers(0)
)
def test_every_row_is_in_one_cell_of_the_size_asked_for(rows, cell, unit, seed):
    sides = drawn(rows, seed=seed)
    found = find_cells(sides, rows=cell, unit=unit)
    assert np.array_equal(np.sort(found.order_N), np.arange(rows))
    assert np.array_equal(np.sort(found.listed_N), np.arange(rows))
    size_C = np.diff(found.start_C)
    assert (size_C[:-1] == size_C[0]).all()
    assert size_C[-1] <= size_C[0]
    assert size_C[0] % unit == 0 or found.count == 1
    assert size_C[0] < cell + unit
    for each in range(found.count):
        assert (found.cell_N[found.own(each)] == each).all()


def test_rows_of_a_cell_are_closer_than_others(small_lists):
    sides = drawn(2000, topics=8)
    found = find_cells(sides, rows=250)
    similar = sides[0].astype(np.float32) @ sides[1].astype(np.float32).T
    same = found.cell_N[:, None] == found.cell_N
    assert similar[same].mean() > similar[~same].mean() + 0.2


def test_the_same_vectors_give_the_same_cells(small_lists):
    sides = drawn(700)
    again, other = find_cells(sides, rows=100), find_cells(drawn(700, seed=1), rows=100)
    first = find_cells(tuple(np.asfortranarray(side) for side in sides), rows=100)
    for name in ("order_N", "start_C", "listed_N", "start_L", "mean_LD"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.order_N, other.order_N)


def test_cells_that_are_none_are_refused():
    sides = drawn(10)
    good = find_cells(sides, rows=5)
    fields = {name: getattr(good, name) for name in Cells.__dataclass_fields__}
    for name, wrong, said in [
        ("order_N", np.zeros(10, np.int32), "nowhere"),
        ("start_C", np.array([0, 5, 5, 10]), "rise"),
        ("mean_LD", np.zeros((3, WIDTH), np.float32), "means"),
    ]:
        with pytest.raises(ValueError, match=said):
            Cells(**fields | {name: wrong})
    with pytest.raises(ValueError, match="no cells of 0 rows"):
        find_cells(sides, rows=0)


@given(
    st.integers(2, 9).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(0, 5), min_size=n, max_size=n), min_size=n, max_size=n
        )
    ),
    st.integers(1, 6),
)
def test_seams_pair_cells_up(hits, rounds):
    hits_CC = np.array(hits)
    found = seams(hits_CC, rounds)
    asked_CC = np.triu(hits_CC + hits_CC.T, 1)
    every = {(int(a), int(b)) for a, b in zip(*np.nonzero(asked_CC), strict=True)}
    assert len(found) == (rounds if every else 0)
    left = set(every)
    for pairs in found:
        busy = [cell for pair in pairs for cell in pair]
        assert len(set(busy)) == len(busy)
        assert pairs and set(pairs) <= left
        assert not any({a, b}.isdisjoint(busy) for a, b in left)  # nobody is idle for nothing
        assert asked_CC[pairs[0]] == max(asked_CC[pair] for pair in left)
        left = left - set(pairs) or every


@pytest.mark.parametrize("groups", [1000, 60])
def test_all_lists_probed_are_an_exact_search(small_lists, groups, monkeypatch):
    if groups == 60:
        monkeypatch.setattr(probing, "_PART", 7)  # positives of a list that are scored together
    sides = drawn(500)
    sides[1][100:140] = sides[1][60:100]  # ties
    group_N = (np.arange(500) % groups).astype(np.int32)
    found = find_cells(sides, rows=120)
    whole = rank(*(side.astype(np.float32) for side in sides), group_N=group_N, width=40)
    assert len(found.mean_LD) > 5
    for cell in range(found.count):
        near, score = probing.rank_cell(sides, found, cell, group_N=group_N, width=40, lists=99)
        assert np.array_equal(near, whole.neighbour_NM[found.own(cell)])
        assert np.array_equal(score, whole.score_NM[found.own(cell)])


def test_a_positive_that_many_rows_share_does_not_drive_out_what_is_there():
    """More equal scores than there is room for: any of them stay, but so many."""
    rng = np.random.default_rng(0)
    sides = drawn(700)
    sides[1][150:600] = sides[1][150]
    sides[0][:100] = sides[1][150] + 0.01 * rng.normal(size=(100, WIDTH)).astype(np.float16)
    group_N = np.arange(700, dtype=np.int32)
    group_N[150:600] = 150
    found = find_cells(sides, rows=700)
    at = found.own(0)
    whole = rank(*(side.astype(np.float32) for side in sides), group_N=group_N, width=40)
    near, score = probing.rank_cell(sides, found, 0, group_N=group_N, width=40, lists=99)
    assert np.array_equal(score, whole.score_NM[at])
    assert (near >= 0).all()
    assert (near[at < 100] >= 150).mean() > 0.5  # the shared one is what they ask for


def test_fewer_lists_find_most_and_nothing_wrong(small_lists):
    sides, group_N = drawn(2000, topics=30), np.arange(2000, dtype=np.int32)
    found = find_cells(sides, rows=500)
    table = np.full((2000, 60), -1, np.int32)
    score = np.full((2000, 60), -np.inf, np.float32)
    for cell in range(found.count):
        at = found.own(cell)
        table[at], score[at] = probing.rank_cell(
            sides, found, cell, group_N=group_N, width=60, lists=12
        )
    RankTable(table, score)  # sorted, no own row, none twice
    recall = probing.window_recall(
        table, sides, group_N=group_N, window=slice(10, 60), rng=np.random.default_rng(0)
    )
    assert 0.5 < recall < 1.0
    exact = probing.exact_ranks(sides, np.arange(2000), group_N=group_N, width=60)
    shared = np.mean([np.isin(a[10:], b[10:]).mean() for a, b in zip(exact, table, strict=True)])
    assert recall == pytest.approx(shared, abs=0.01)


def test_exact_ranks_are_exact():
    sides, group_N = drawn(300), (np.arange(300) // 2).astype(np.int32)
    whole = rank(*(side.astype(np.float32) for side in sides), group_N=group_N, width=20)
    at = np.array([3, 77, 299])
    found = probing.exact_ranks(sides, at, group_N=group_N, width=20)
    assert np.array_equal(found, whole.neighbour_NM[at])
    assert (probing.exact_ranks(sides, at, group_N=group_N, width=299)[:, -1] == -1).all()


@settings(max_examples=examples(25), deadline=None)
@given(rows=st.integers(3, 60), seed=st.integers(0), p=st.integers(0, 3), m=st.integers(1, 8))
def test_counted_edges_are_those_of_the_graph(rows, seed, p, m):
    sides = [side.astype(np.float32) for side in drawn(rows, seed=seed)]
    rng = np.random.default_rng(seed)
    group_N = rng.integers(max(rows // 2, 2), size=rows).astype(np.int32)
    table = rank(*sides, group_N=group_N, width=p + m)
    window = table.neighbour_NM[:, p : p + m]
    found = count_edges(window)
    for mode, edges, alone in (
        ("mutual", found.mutual, found.alone_mutual),
        ("union", found.union, found.alone_union),
    ):
        graph = link(table, p=p, m=m, mode=mode)
        assert edges == len(graph.indices) // 2
        assert alone == int((np.diff(graph.indptr) == 0).sum())
    label_N = rng.integers(-1, 3, size=rows).astype(np.int32)
    mutual = link(table, p=p, m=m, mode="mutual")
    row_E = np.repeat(np.arange(rows), np.diff(mutual.indptr))
    same_E = (label_N[row_E] == label_N[mutual.indices]) & (label_N[row_E] >= 0)
    assert count_mutual(window, label_N) == (len(row_E), int(same_E.sum()))
