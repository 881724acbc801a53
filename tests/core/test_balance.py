import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from b3_core.balance import balance, objective
from b3_core.communities import find_communities
from b3_core.config import MiningSpec
from b3_core.graph import CsrGraph
from tests.conftest import examples

NO_EDGES = np.zeros((0, 3))


def graph_of(rows, edges):
    """Build a graph from (row, row, weight)."""
    weight_NN = np.zeros((rows, rows))
    for i, j, weight in edges:
        weight_NN[int(i), int(j)] = weight_NN[int(j), int(i)] = weight
    return CsrGraph.of(csr_array(weight_NN))


def clique(*rows):
    return [(i, j, 1.0) for i, j in itertools.combinations(rows, 2)]


def exact(label_N, attract, *, repel=None, group_N=None, seed=0, **settings_):
    rows = len(label_N)
    return balance(
        np.array(label_N, np.int32),
        attract=attract,
        repel=repel,
        group_N=np.arange(rows, dtype=np.int32) if group_N is None else np.array(group_N, np.int32),
        spec=MiningSpec(**settings_),
        rng=np.random.default_rng(seed),
    )


def brute_objective(label_N, attract, repel, repulsion):
    """Add up w(i, j) over pairs of rows, one after the other."""
    weight_NN = attract.to_scipy().toarray()
    if repel is not None:
        weight_NN = weight_NN - repulsion * repel.to_scipy().toarray()
    return sum(
        weight_NN[i, j]
        for i, j in itertools.combinations(range(len(label_N)), 2)
        if label_N[i] == label_N[j]
    )


def brute_moved(before_N, after_N):
    moved = 0
    for found in set(before_N.tolist()):
        went = [a for a, b in zip(after_N.tolist(), before_N.tolist(), strict=True) if b == found]
        moved += len(went) - max(went.count(home) for home in went)
    return moved


def sets_of(label_N):
    return {frozenset(np.flatnonzero(label_N == c).tolist()) for c in np.unique(label_N)}


@st.composite
def cases(draw):
    """Graphs that may be sparse, dense, disconnected or empty; labels, groups and settings."""
    rows = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from([0.0, 0.05, 0.2, 0.8]))

    def graph(values):
        upper_NN = np.triu(rng.choice(values, (rows, rows)), 1)
        upper_NN *= rng.random((rows, rows)) < density
        isolated_N = rng.random(rows) < draw(st.sampled_from([0.0, 0.4]))
        upper_NN[isolated_N] = 0
        return CsrGraph.of(csr_array(upper_NN + upper_NN.T))

    return {
        "label_N": rng.integers(0, draw(st.integers(1, rows)), rows).astype(np.int32),
        "attract": graph([1.0, 2.0]),
        "repel": draw(st.sampled_from([None, 1])) and graph([1.0, 2.0]),
        "group_N": rng.integers(0, draw(st.sampled_from([2, rows, 1000])), rows).astype(np.int32),
        "spec": MiningSpec(
            k=draw(st.integers(2, 12)),
            swap_rounds=draw(st.sampled_from([0, 1, 20])),
            repulsion=draw(st.sampled_from([0.0, 0.5, 3.0])),
            evenness=draw(st.sampled_from([0.0, 1.0])),
        ),
    }


@given(case=cases(), seed=st.integers(0, 100))
@settings(max_examples=examples(150), deadline=None)
def test_sizes_are_exact_and_figures_are_true_whatever_comes_in(case, seed):
    before_N = case["label_N"].copy()
    made = balance(**case, rng=np.random.default_rng(seed))
    rows, spec = len(before_N), case["spec"]
    sizes = np.bincount(made.label_N).tolist()
    assert sizes[:-1] == [spec.k] * (len(sizes) - 1)
    assert sizes[-1] == (rows - 1) % spec.k + 1
    assert made.moved == brute_moved(before_N, made.label_N)
    expected = brute_objective(made.label_N, case["attract"], case["repel"], spec.repulsion)
    assert made.objective == pytest.approx(expected)
    assert (case["label_N"] == before_N).all()  # what was given is not written to
    again = balance(**case, rng=np.random.default_rng(seed))
    assert (again.label_N == made.label_N).all()


@given(case=cases())
@settings(max_examples=examples(60), deadline=None)
def test_swaps_never_lose_what_packing_had(case):
    apart = {**case, "group_N": np.arange(len(case["label_N"]), dtype=np.int32)}

    def reached(rounds):
        # With evenness an edge may be given up for one where there are few.
        spec = case["spec"].model_copy(update={"swap_rounds": rounds, "evenness": 0.0})
        return balance(**{**apart, "spec": spec}, rng=np.random.default_rng(0)).objective

    packed, once, converged = reached(0), reached(1), reached(20)
    assert packed <= once + 1e-9
    assert once <= converged + 1e-9


def test_objective_counts_each_edge_inside_once():
    attract = graph_of(4, [(0, 1, 2.0), (1, 2, 5.0), (2, 3, 3.0)])
    repel = graph_of(4, [(0, 1, 1.0), (0, 3, 7.0)])
    label_N = np.array([0, 0, 1, 1], np.int32)
    assert objective(label_N, attract) == 5.0
    assert objective(label_N, attract, repel, repulsion=0.5) == 4.5


def test_exact_communities_stay_as_they_are():
    made = exact([0, 0, 0, 0, 1, 1, 1, 1, 2, 2], graph_of(10, clique(0, 1, 2, 3)), k=4)
    assert sets_of(made.label_N) == {
        frozenset({0, 1, 2, 3}),
        frozenset({4, 5, 6, 7}),
        frozenset({8, 9}),
    }
    assert (made.moved, made.objective) == (0, 6.0)
    assert set(np.flatnonzero(made.label_N == 2)) == {8, 9}  # the remainder is the last label


@pytest.mark.parametrize("seed", range(5))
def test_a_large_community_is_cut_between_its_cliques(seed):
    """Two cliques of four in one community, rows interleaved, joined by one edge."""
    attract = graph_of(8, [*clique(0, 2, 4, 6), *clique(1, 3, 5, 7), (6, 7, 1.0)])
    made = exact([0] * 8, attract, k=4, swap_rounds=0, seed=seed)
    assert sets_of(made.label_N) == {frozenset({0, 2, 4, 6}), frozenset({1, 3, 5, 7})}
    assert (made.moved, made.objective) == (4, 12.0)


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_packed_whole_and_only_the_last_is_split(seed):
    """Pieces of 5, 3, 2 and 2 into 6 and 6: 5 + 1 and 3 + 2 + 1."""
    label_N = np.array([0] * 5 + [1] * 3 + [2] * 2 + [3] * 2)
    made = exact(label_N, graph_of(12, []), k=6, swap_rounds=0, seed=seed)
    together = [len(set(made.label_N[label_N == piece])) == 1 for piece in range(4)]
    assert together[:2] == [True, True]
    assert sum(together) == 3
    assert made.label_N[0] != made.label_N[5]
    assert made.moved == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_single_row_goes_where_it_is_tied_to(seed):
    """Two triangles; row 6 is tied to the second, row 7 to the first, more weakly to the second."""
    ties = [(6, 3, 1.0), (7, 0, 2.0), (7, 3, 1.0)]
    attract = graph_of(8, [*clique(0, 1, 2), *clique(3, 4, 5), *ties])
    made = exact([0, 0, 0, 1, 1, 1, 2, 3], attract, k=4, swap_rounds=0, seed=seed)
    assert sets_of(made.label_N) == {frozenset({0, 1, 2, 7}), frozenset({3, 4, 5, 6})}


def test_a_row_that_is_repelled_is_not_settled_there():
    """The same rows, but row 7 is kept from the first triangle by more than attracts it."""
    attract = graph_of(8, [*clique(0, 1, 2), *clique(3, 4, 5), (7, 0, 2.0), (7, 3, 1.0)])
    repel = graph_of(8, [(7, 0, 1.0)])
    made = exact([0, 0, 0, 1, 1, 1, 2, 3], attract, repel=repel, k=4, swap_rounds=0, repulsion=3.0)
    assert made.label_N[7] == made.label_N[3]


def test_swaps_undo_a_partition_that_mixes_two_cliques():
    attract = graph_of(8, [*clique(0, 1, 2, 3), *clique(4, 5, 6, 7)])
    mixed = [0, 0, 1, 1, 0, 0, 1, 1]
    assert exact(mixed, attract, k=4, swap_rounds=0).objective == 4.0
    made = exact(mixed, attract, k=4)
    assert sets_of(made.label_N) == {frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7})}
    assert (made.objective, made.moved) == (12.0, 4)


def test_the_short_community_takes_part_in_swaps():
    """Rows 4 and 5 belong together, but row 5 is in the community of the others."""
    attract = graph_of(6, [*clique(0, 1, 2, 3), (4, 5, 1.0)])
    made = exact([0, 0, 0, 1, 1, 0], attract, k=4)
    assert sets_of(made.label_N) == {frozenset({0, 1, 2, 3}), frozenset({4, 5})}


def test_repelled_rows_are_parted_if_that_costs_less():
    attract, repel = graph_of(4, [(0, 1, 1.0), (2, 3, 1.0)]), graph_of(4, [(0, 1, 1.0)])
    weak = exact([0, 0, 1, 1], attract, repel=repel, k=2, repulsion=0.5)
    assert sets_of(weak.label_N) == {frozenset({0, 1}), frozenset({2, 3})}
    assert weak.objective == 1.5
    strong = exact([0, 0, 1, 1], attract, repel=repel, k=2, repulsion=3.0)
    assert strong.label_N[0] != strong.label_N[1]
    assert strong.objective == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_one_group_are_parted_even_without_an_edge(seed):
    """Ten groups of four, each a community: nothing but their groups tells rows apart."""
    group_N = np.repeat(np.arange(10), 4)
    made = exact(group_N, graph_of(40, []), group_N=group_N, k=4, seed=seed)
    for c in range(10):
        assert len(set(group_N[made.label_N == c])) == 4


def test_rows_of_one_group_are_parted_against_all_edges_they_have():
    """Two cliques of four; rows 0 and 1 have the same positive, and so have 4 and 5."""
    attract = graph_of(8, [*clique(0, 1, 2, 3), *clique(4, 5, 6, 7)])
    group_N = [0, 0, 2, 3, 4, 4, 6, 7]
    label_N = [0, 0, 0, 0, 1, 1, 1, 1]
    kept = exact(label_N, attract, group_N=group_N, k=4, swap_rounds=0)
    assert kept.objective == 12.0
    parted = exact(label_N, attract, group_N=group_N, k=4)
    assert parted.label_N[0] != parted.label_N[1]
    assert parted.label_N[4] != parted.label_N[5]
    assert parted.objective == 6.0


@pytest.mark.parametrize("partitioner", ["leiden", "metis"])
def test_other_seeds_give_other_partitions(partitioner):
    rng = np.random.default_rng(0)
    half_NN = np.triu(rng.random((200, 200)) < 0.03, 1)
    attract = CsrGraph.of(csr_array((half_NN + half_NN.T).astype(np.float64)))
    spec = MiningSpec(k=8, partitioner=partitioner)

    def made(seed):
        found = find_communities(attract, spec, rng=np.random.default_rng(seed))
        return exact(found, attract, seed=seed, **spec.model_dump()).label_N

    assert (made(0) == made(0)).all()
    assert (made(0) != made(1)).any()


def test_the_random_partition_passes_through_unchanged():
    attract = graph_of(11, clique(*range(11)))
    spec = MiningSpec(k=4, partitioner="random", swap_rounds=0)
    found = find_communities(attract, spec, rng=np.random.default_rng(0))
    made = exact(found, attract, **spec.model_dump())
    assert sets_of(made.label_N) == sets_of(found)
    assert made.moved == 0


def test_progress_counts_rounds_to_the_end():
    told = []
    balance(
        np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int32),
        attract=graph_of(8, [*clique(0, 1, 2, 3), *clique(4, 5, 6, 7)]),
        repel=None,
        group_N=np.arange(8, dtype=np.int32),
        spec=MiningSpec(k=4, swap_rounds=7),
        rng=np.random.default_rng(0),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[0] == (0, 7)
    assert told[-1] == (7, 7)
    assert told == sorted(told)


@pytest.mark.parametrize("other", ["labels", "groups", "repel"])
def test_inputs_of_different_rows_are_refused(other):
    with pytest.raises(ValueError, match=r"of \[3, 4\] rows"):
        balance(
            np.zeros(3 if other == "labels" else 4, np.int32),
            attract=graph_of(4, []),
            repel=graph_of(3 if other == "repel" else 4, []),
            group_N=np.arange(3 if other == "groups" else 4, dtype=np.int32),
            spec=MiningSpec(k=2),
            rng=np.random.default_rng(0),
        )
