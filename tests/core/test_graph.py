import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core.graph import CsrGraph, link, too_hard
from b3_core.neighbours import RankTable, rank
from b3_core.store import Address, ArtifactStore
from tests.conftest import examples
from tests.core.test_neighbours import alone, circle, random_pairs


def ranks_of(rows, *, width, groups=None, seed=0):
    query_ND, positive_ND = random_pairs(rows, seed=seed)
    group_N = alone(rows) if groups is None else alone(rows) % groups
    return rank(query_ND, positive_ND, group_N=group_N, width=width)


def twin(ranks, *, first, stop, mutual):
    """The slow twin: sets of rows, a dense matrix, two Python loops."""
    windows = [{int(j) for j in row[first:stop] if j >= 0} for row in ranks.neighbour_NM]
    rows = len(windows)
    dense_NN = np.zeros((rows, rows), np.float32)
    for i in range(rows):
        for j in range(rows):
            directions = (j in windows[i]) + (i in windows[j])
            dense_NN[i, j] = directions == 2 if mutual else directions
    return dense_NN


def dense(graph):
    return graph.to_scipy().toarray()


@pytest.fixture
def eight():
    """Eight rows on a circle, all their ranks.

    Positive j stands 10 degrees before query j, so row i ranks
    i+1, i-1, i+2, i-2, i+3, i-3, i+4 in this order.
    """
    step_8 = 45 * np.arange(8)
    return rank(circle(step_8), circle(step_8 - 10), group_N=alone(8), width=7)


def test_mutual_window_of_eight_points(eight):
    # Ranks 1, 2, 3 are i-1, i+2, i-2: only the steps of two go both ways.
    graph = link(eight, p=1, m=3, mode="mutual")
    assert dense(graph).tolist() == [
        [0, 0, 1, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 0, 1],
        [1, 0, 0, 0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 0, 1],
        [1, 0, 0, 0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 1, 0, 0],
    ]
    assert graph.indptr.tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert graph.indices.tolist() == [2, 6, 3, 7, 0, 4, 1, 5, 2, 6, 3, 7, 0, 4, 1, 5]
    assert graph.weight.tolist() == [1] * 16
    types = (graph.indptr.dtype, graph.indices.dtype, graph.weight.dtype)
    assert types == (np.int64, np.int32, np.float32)


def test_union_window_of_eight_points(eight):
    assert dense(link(eight, p=1, m=3, mode="union")).tolist() == [
        [0, 1, 2, 0, 0, 0, 2, 1],
        [1, 0, 1, 2, 0, 0, 0, 2],
        [2, 1, 0, 1, 2, 0, 0, 0],
        [0, 2, 1, 0, 1, 2, 0, 0],
        [0, 0, 2, 1, 0, 1, 2, 0],
        [0, 0, 0, 2, 1, 0, 1, 2],
        [2, 0, 0, 0, 2, 1, 0, 1],
        [1, 2, 0, 0, 0, 2, 1, 0],
    ]


def test_scores_weigh_the_window_of_eight_points(eight):
    """In ranks 1, 2, 3 positives stand 55, 80, 100 degrees off; what is below 0 counts as 0."""
    score = np.cos(np.radians([55, 80, 100]))
    unit = np.maximum(score / np.maximum(score, 0).mean(), 1e-3)
    union_88 = dense(link(eight, p=1, m=3, mode="union", weights="score"))
    assert union_88[0].tolist() == pytest.approx(
        [0, unit[0], unit[1] + unit[2], 0, 0, 0, unit[1] + unit[2], unit[0]], abs=2e-3
    )
    mutual_88 = dense(link(eight, p=1, m=3, mode="mutual", weights="score"))
    both = (unit[1] + unit[2]) / 2
    assert mutual_88[0].tolist() == pytest.approx([0, 0, both, 0, 0, 0, both, 0], abs=2e-3)


def test_windows_that_are_mostly_far_do_not_turn_weights_round():
    """40 rows, windows that end at the far side: the nearer of two edges weighs more."""
    rng = np.random.default_rng(0)
    vector_ND = rng.normal(size=(40, 8)).astype(np.float32)
    vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
    ranks = rank(vector_ND, vector_ND, group_N=np.arange(40), width=39)
    graph = link(ranks, p=19, m=20, mode="union", weights="score")
    row_E = np.repeat(np.arange(40), np.diff(graph.indptr))
    score_E = (vector_ND[row_E] * vector_ND[graph.indices]).sum(axis=1)
    near_E = score_E > 0
    assert graph.weight[near_E].min() > graph.weight[~near_E].max()


def test_a_narrower_window_of_eight_points_is_mutual_nowhere(eight):
    # Ranks 1, 2 are i-1 and i+2: neither step is taken back.
    graph = link(eight, p=1, m=2, mode="mutual")
    assert graph.indptr.tolist() == [0] * 9
    assert graph.indices.tolist() == graph.weight.tolist() == []
    assert dense(link(eight, p=1, m=2, mode="union"))[0].tolist() == [0, 1, 1, 0, 0, 0, 1, 1]


def test_too_hard_of_eight_points(eight):
    assert dense(too_hard(eight, p=1)).tolist() == [  # i+1, not taken back
        [0, 1, 0, 0, 0, 0, 0, 1],
        [1, 0, 1, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 0, 1],
        [1, 0, 0, 0, 0, 0, 1, 0],
    ]
    assert dense(too_hard(eight, p=3))[0].tolist() == [0, 2, 1, 0, 0, 0, 1, 2]
    assert too_hard(eight, p=0).indices.size == 0


@pytest.mark.parametrize(("p", "m"), [(0, 30), (30, 100), (70, 100)])
def test_equals_the_slow_twin(p, m):
    ranks = ranks_of(400, width=p + m, groups=90)
    mutual, union = (link(ranks, p=p, m=m, mode=mode) for mode in ("mutual", "union"))
    np.testing.assert_array_equal(dense(mutual), twin(ranks, first=p, stop=p + m, mutual=True))
    np.testing.assert_array_equal(dense(union), twin(ranks, first=p, stop=p + m, mutual=False))
    assert 0 < mutual.indices.size < union.indices.size
    hard = too_hard(ranks, p=p)
    np.testing.assert_array_equal(dense(hard), twin(ranks, first=0, stop=p, mutual=False))
    assert (hard.indices.size > 0) == (p > 0)


@settings(deadline=None, max_examples=examples(60))
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 8), st.integers(1, 12))
def test_any_window_equals_the_slow_twin(rows, groups, p, m):
    ranks = ranks_of(rows, width=p + m, groups=groups, seed=rows)
    for mode in ("mutual", "union"):
        expected = twin(ranks, first=p, stop=p + m, mutual=mode == "mutual")
        np.testing.assert_array_equal(dense(link(ranks, p=p, m=m, mode=mode)), expected)
    expected = twin(ranks, first=0, stop=p, mutual=False)
    np.testing.assert_array_equal(dense(too_hard(ranks, p=p)), expected)


def test_the_numbers_of_rows_mean_nothing():
    query_ND, positive_ND = random_pairs(80)
    order = np.random.default_rng(1).permutation(80)
    before, after = (
        dense(link(rank(q, d, group_N=alone(80), width=20), p=5, m=15, mode="union"))
        for q, d in ((query_ND, positive_ND), (query_ND[order], positive_ND[order]))
    )
    np.testing.assert_array_equal(after, before[np.ix_(order, order)])
    assert (after != before).any()


@pytest.mark.parametrize("rows", [1, 2, 5, 31])
def test_too_few_rows_for_the_window_make_a_graph_without_edges(rows):
    ranks = ranks_of(rows, width=130)
    for mode in ("mutual", "union"):
        graph = link(ranks, p=30, m=100, mode=mode)
        assert (graph.rows, graph.indices.size) == (rows, 0)
    # With all other rows nearer than p, every pair is too hard.
    expected = 2 * (1 - np.eye(rows))
    np.testing.assert_array_equal(dense(too_hard(ranks, p=30)), expected)


def test_ranks_that_end_inside_the_window_are_refused():
    ranks = ranks_of(50, width=20)
    with pytest.raises(ValueError, match=r"ranks \[5, 21\) are not in a table of 20 ranks"):
        link(ranks, p=5, m=16, mode="union")
    with pytest.raises(ValueError, match=r"ranks \[0, 21\)"):
        too_hard(ranks, p=21)
    with pytest.raises(ValueError, match=r"ranks \[-1, 4\)"):
        link(ranks, p=-1, m=5, mode="union")
    with pytest.raises(ValueError, match="'rank' is neither 'count' nor 'score'"):
        link(ranks, p=0, m=5, mode="union", weights="rank")
    with pytest.raises(ValueError, match="'both' is neither 'mutual' nor 'union'"):
        link(ranks, p=5, m=15, mode="both")


def test_padding_is_no_neighbour():
    ranks = RankTable(
        np.array([[1, -1], [0, 2], [1, -1]], np.int32),
        np.array([[0.5, -np.inf], [0.5, 0.4], [0.5, -np.inf]], np.float32),
    )
    graph = link(ranks, p=0, m=2, mode="mutual")
    assert dense(graph).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def csr(indptr, indices, weight, *, offset_type=np.int64):
    return CsrGraph(
        np.array(indptr, offset_type), np.array(indices, np.int32), np.array(weight, np.float32)
    )


@pytest.mark.parametrize(
    ("indptr", "indices", "weight", "complaint"),
    [
        ([], [], [], "do not rise from 0"),
        ([1, 1], [], [], "do not rise from 0"),
        ([0, 2, 1, 2], [1, 0], [1, 1], "do not rise from 0"),
        ([0, 1, 3], [1, 0], [1, 1], "2 neighbours"),
        ([0, 1, 2], [1, 0], [1], "2 neighbours, but 1 weights"),
        ([0, 1, 2], [2, 0], [1, 1], "none of the 2 rows"),
        ([0, 1, 2], [-1, 0], [1, 1], "none of the 2 rows"),
        ([0, 1, 2], [0, 1], [1, 1], "its own neighbour"),
        ([0, 2, 3, 4], [2, 1, 0, 0], [1, 1, 1, 1], "not strictly ascending"),
        ([0, 2, 4], [1, 1, 0, 0], [1, 1, 1, 1], "not strictly ascending"),
        ([0, 1, 2], [1, 0], [0, 0], "not positive"),
        ([0, 1, 2], [1, 0], [np.nan, np.nan], "not positive"),
        ([0, 1, 1], [1], [1], "two directions"),
        ([0, 1, 2], [1, 0], [1, 2], "two directions"),
    ],
)
def test_a_graph_that_breaks_its_promises_is_refused(indptr, indices, weight, complaint):
    with pytest.raises(ValueError, match=complaint):
        csr(indptr, indices, weight)


def test_a_graph_of_other_types_is_refused():
    with pytest.raises(ValueError, match=r"int32 of shape \(3,\) is no 1-d int64"):
        csr([0, 1, 2], [1, 0], [1, 1], offset_type=np.int32)


def test_what_was_saved_is_loaded(tmp_path):
    store = ArtifactStore(str(tmp_path))
    address = Address("data", "graph", "f00d")
    ranks = ranks_of(60, width=20)
    made = {"attract": link(ranks, p=5, m=15, mode="union"), "repel": too_hard(ranks, p=5)}
    with store.draft(address, lineage={}, settings={}) as draft:
        for name, graph in made.items():
            graph.save(draft, name)
        made["repel"].save(draft)
        assert len(draft.names()) == 9
    for name, graph in {**made, "graph": made["repel"]}.items():
        loaded = CsrGraph.load(store.get(address), name)
        for part in ("indptr", "indices", "weight"):
            np.testing.assert_array_equal(getattr(loaded, part), getattr(graph, part))
    assert CsrGraph.load(store.get(address)).indices.size == made["repel"].indices.size > 0


def test_scipy_gets_the_same_matrix_without_a_copy():
    graph = csr([0, 1, 2, 2], [1, 0], [2, 2])
    matrix = graph.to_scipy()
    assert matrix.toarray().tolist() == [[0, 2, 0], [2, 0, 0], [0, 0, 0]]
    assert np.shares_memory(matrix.indices, graph.indices)
    assert np.shares_memory(matrix.data, graph.weight)
    assert matrix.indptr.dtype == np.int32
    assert CsrGraph.of(matrix).indptr.tolist() == [0, 1, 2, 2]
