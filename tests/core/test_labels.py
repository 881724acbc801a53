import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core import labels
from b3_core.errors import InputError
from b3_core.labels import LabelRanks, describe_labels, link_labels, rank_labels
from b3_core.store import Address, ArtifactStore
from tests.conftest import examples
from tests.core.test_neighbours import circle, stored


def rng_of(seed=0):
    return np.random.default_rng(seed)


def rows_of(label_N, *, width=8, seed=0):
    """A vector a label, and queries around it."""
    rng = rng_of(seed)
    vector_LD = stored(rng.normal(size=(max(label_N) + 1, width)))
    noise_ND = rng.normal(size=(len(label_N), width)) / 2
    return stored(vector_LD[label_N] + noise_ND), vector_LD[label_N]


def ranks_of(sizes, *, share=0.3, seed=0, shuffle=True):
    """Ranks of made-up rows, label l in ``sizes[l]`` of them."""
    label_N = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    if shuffle:
        rng_of(seed).shuffle(label_N)
    return rank_labels(*rows_of(label_N, seed=seed), group_N=label_N, share=share)


def ranks_from(near, label_N):
    """Ranks by hand: a set of near labels for every row."""
    labels_ = max(label_N) + 1
    near_NL = np.array([[label in row for label in range(labels_)] for row in near])
    return LabelRanks(np.packbits(near_NL, axis=1), np.array(label_N, np.int32), len(near[0]))


def near_sets(ranks):
    near_NL = np.unpackbits(ranks.near_NL8, axis=1, count=ranks.labels)
    return [set(np.flatnonzero(row).tolist()) for row in near_NL]


def twin_near(query_ND, vector_LD, label_N, kept):
    """The slow twin: one Python sort a row, of inner products that are rounded once."""
    sets = []
    for query_D, own in zip(query_ND, label_N, strict=True):
        scores = [math.fsum(map(float, query_D.astype(float) * v)) for v in vector_LD]
        others = [label for label in range(len(vector_LD)) if label != own]
        sets.append(set(sorted(others, key=lambda label: (-scores[label], label))[:kept]))
    return sets


def twin_graph(ranks):
    """The slow twin: sets of labels, a dense matrix, two Python loops."""
    near, label_N = near_sets(ranks), ranks.label_N.tolist()
    rows = len(near)
    dense_NN = np.zeros((rows, rows), np.float32)
    for i in range(rows):
        for j in range(rows):
            dense_NN[i, j] = label_N[j] in near[i] and label_N[i] in near[j]
    return dense_NN


def dense(graph):
    return graph.to_scipy().toarray()


@pytest.fixture
def five():
    """Five rows of four labels, which stand at 0, 90, 180 and 270 degrees; one near label each.

    Queries at 10 and 80 are of label 0, at 100 of 1, at 200 of 2, at 280 of 3; but for their own,
    the nearest labels are 1, 1, 2, 3 and 0.
    """
    label_N = np.array([0, 0, 1, 2, 3], np.int32)
    query_ND, positive_ND = circle([10, 80, 100, 200, 280]), circle(90 * label_N)
    return rank_labels(query_ND, positive_ND, group_N=label_N)


def test_near_labels_of_five_points(five):
    assert five.kept == 1  # 0.3 of three other labels
    assert five.near_NL8.tolist() == [[0b0100_0000]] * 2 + [[0b0010_0000]] + [[16], [128]]
    assert five.near(np.array([4, 0])).tolist() == [
        [True, False, False, False],
        [False, True, False, False],
    ]
    # The steps go round and round, so none is taken back.
    assert link_labels(five, rng=rng_of()).indptr.tolist() == [0] * 6


def test_graph_of_five_points():
    # With two near labels a row: {1, 3}, {1, 2}, {0, 2}, {1, 3}, {0, 2}.
    label_N = np.array([0, 0, 1, 2, 3], np.int32)
    query_ND = circle([10, 100, 80, 185, 275])
    ranks = rank_labels(query_ND, circle(90 * label_N), group_N=label_N, share=0.6)
    assert near_sets(ranks) == [{1, 3}, {1, 2}, {0, 2}, {1, 3}, {0, 2}]
    graph = link_labels(ranks, rng=rng_of())
    assert dense(graph).tolist() == [
        [0, 0, 1, 0, 1],
        [0, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [0, 0, 1, 0, 1],
        [1, 0, 0, 1, 0],
    ]
    types = (graph.indptr.dtype, graph.indices.dtype, graph.weight.dtype)
    assert types == (np.int64, np.int32, np.float32)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 8, 9, 23])
def test_near_labels_equal_the_slow_twin(count, share):
    label_N = np.append(np.arange(count), rng_of(1).integers(count, size=120)).astype(np.int32)
    query_ND, positive_ND = rows_of(label_N)
    ranks = rank_labels(query_ND, positive_ND, group_N=label_N, share=share)
    assert ranks.kept == max(1, round(share * (count - 1)))
    np.testing.assert_array_equal(ranks.label_N, label_N)
    assert near_sets(ranks) == twin_near(query_ND, positive_ND[:count], label_N, ranks.kept)


def test_labels_with_equal_scores_are_near_in_the_order_of_their_numbers():
    label_N = np.arange(12, dtype=np.int32)
    positive_ND = circle([0] * 4 + [90] * 8)
    ranks = rank_labels(circle([90] * 12), positive_ND, group_N=label_N, share=0.4)
    first, later = {4, 5, 6, 7}, {4, 5, 6, 7, 8}
    assert (
        near_sets(ranks) == [first] * 4 + [later - {label} for label in range(4, 8)] + [first] * 4
    )


def test_scores_closer_than_float32_shows_are_not_equal():
    positive_ND = np.array([[0, 1], [1, 0], [1, 2**-20]], np.float32)
    query_ND = np.array([[1, 2**-10]] * 3, np.float32)
    ranks = rank_labels(query_ND, positive_ND, group_N=np.arange(3, dtype=np.int32))
    assert near_sets(ranks) == [{2}, {2}, {1}]


def test_groups_may_have_any_numbers():
    label_N = np.array([2, 0, 1, 3, 1, 0, 2, 3], np.int32)
    query_ND, positive_ND = rows_of(label_N)
    ranks = rank_labels(query_ND, positive_ND, group_N=label_N)
    group_N = np.array([-5, 0, 70, 2**31 - 1], np.int32)[label_N]
    other = rank_labels(query_ND, positive_ND, group_N=group_N)
    np.testing.assert_array_equal(other.label_N, label_N)
    np.testing.assert_array_equal(other.near_NL8, ranks.near_NL8)


def test_a_label_in_several_wordings_stands_where_they_stand_on_average():
    # Label 1's rows are at 90, 90 and 120 degrees: 99.9 on average, 100 as rows, 105 as wordings.
    label_N = np.array([0, 1, 1, 1, 2, 3], np.int32)
    positive_ND = circle([0, 90, 90, 120, 300, 200])
    vectors = labels._label_vectors(positive_ND, label_N, np.array([0, 1, 4, 5]))
    np.testing.assert_array_equal(vectors[[0, 2, 3]], positive_ND[[0, 4, 5]])
    assert np.rad2deg(np.arctan2(*vectors[1, ::-1])) == pytest.approx(99.9, abs=0.05)
    np.testing.assert_array_equal(vectors[1], vectors[1].astype(np.float16))
    # From 147, label 3 is 53 away: nearer than label 1's first wording, not than its mean.
    query_ND = circle([0, 90, 90, 90, 147, 200])
    assert near_sets(rank_labels(query_ND, positive_ND, group_N=label_N))[4] == {1}
    one_ND = np.where(label_N[:, None] == 1, positive_ND[1], positive_ND)
    assert near_sets(rank_labels(query_ND, one_ND, group_N=label_N))[4] == {3}


def test_wordings_that_cancel_one_another_out_are_no_error():
    label_N = np.array([0, 0, 1, 2], np.int32)
    query_ND = circle([0, 0, 90, 90])
    ranks = rank_labels(query_ND, circle([0, 180, 90, 180]), group_N=label_N)
    assert near_sets(ranks) == [{1}, {1}, {0}, {1}]


sizes_lists = st.one_of(
    st.lists(st.integers(1, 9), min_size=2, max_size=20),
    st.lists(st.just(1), min_size=2, max_size=30),  # every row its own label
    st.lists(st.integers(1, 3), min_size=1, max_size=9).map(lambda sizes: [40, *sizes]),
)


@settings(deadline=None, max_examples=examples(60))
@given(sizes_lists, st.floats(0.01, 1), st.integers(0, 99), st.integers(0, 3))
def test_with_draws_enough_the_graph_is_the_slow_twin(sizes, share, seed, more):
    ranks = ranks_of(sizes, share=share, seed=seed)
    expected = twin_graph(ranks)
    edges = max(1, int(expected.sum(axis=1).max())) + more
    graph = link_labels(ranks, edges=edges, rng=rng_of(seed))
    np.testing.assert_array_equal(dense(graph), expected)


@settings(deadline=None, max_examples=examples(60))
@given(sizes_lists, st.floats(0.2, 1), st.integers(0, 99), st.integers(1, 6))
def test_a_thinned_graph_is_part_of_the_slow_twin(sizes, share, seed, edges):
    ranks = ranks_of(sizes, share=share, seed=seed)
    whole = twin_graph(ranks)
    graph = link_labels(ranks, edges=edges, rng=rng_of(seed))
    assert (dense(graph) <= whole).all()
    wanted_N = np.minimum(whole.sum(axis=1), edges)
    assert (np.diff(graph.indptr) >= wanted_N).all()
    assert len(graph.indices) <= 2 * wanted_N.sum()
    assert (graph.weight == 1).all()


def test_thinning_removes_something():
    ranks = ranks_of([30] * 12)
    whole, part = twin_graph(ranks), link_labels(ranks, edges=4, rng=rng_of())
    assert 0 < len(part.indices) < whole.sum() / 2


def test_two_labels_make_a_complete_bipartite_graph():
    graph = link_labels(ranks_of([3, 2], shuffle=False), rng=rng_of())
    expected = np.zeros((5, 5))
    expected[:3, 3:] = expected[3:, :3] = 1
    np.testing.assert_array_equal(dense(graph), expected)


def test_rows_that_nobody_is_near_in_return_stay_alone():
    # Rows 0 and 1 are near one another; 2 is near label 0, none of whose rows is near label 2.
    ranks = ranks_from([{1}, {0}, {0}], [0, 1, 2])
    assert link_labels(ranks, rng=rng_of()).indptr.tolist() == [0, 1, 2, 2]


def test_every_set_of_eligible_rows_is_drawn_alike():
    """5000 rows of one label have the same 6 eligible rows, of 3 labels, and draw 3 of them.

    The six draw too, so a few of the 5000 have more than 3 edges and are not looked at: which is
    as likely whatever they drew. There are 20 sets; 43.8 is chi-square's 0.1 % point at 19.
    """
    sizes = [5000, 1, 2, 3]
    ranks = ranks_of(sizes, share=1, shuffle=False)
    graph = link_labels(ranks, edges=3, rng=rng_of(7))
    three = np.flatnonzero(np.diff(graph.indptr)[:5000] == 3)
    assert len(three) > 4900
    drawn = graph.indices[graph.indptr[three, None] + np.arange(3)]
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 20
    expected = len(three) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8


def test_every_edge_is_drawn_as_often_as_it_should():
    """Frequencies of 700 graphs against 1 - (1 - e/s)(1 - e/t), for every pair of 44 rows."""
    ranks = ranks_of([9, 1, 5, 3, 12, 2, 4, 8], share=0.45, seed=3)
    whole = twin_graph(ranks)
    kept_N1 = 1 - np.minimum(2 / np.maximum(whole.sum(axis=1, keepdims=True), 1), 1)
    chance_NN = whole * (1 - kept_N1 * kept_N1.T)
    rng = rng_of(1)
    times = 700
    found_NN = sum(dense(link_labels(ranks, edges=2, rng=rng)) for _ in range(times))
    deviation_NN = np.sqrt(times * chance_NN * (1 - chance_NN))
    open_NN = deviation_NN > 0
    z_E = (found_NN - times * chance_NN)[open_NN] / deviation_NN[open_NN]
    assert open_NN.sum() > 200
    assert abs(z_E).max() < 4.5
    assert np.square(z_E).mean() == pytest.approx(1, abs=0.25)
    np.testing.assert_array_equal(found_NN[~open_NN], times * chance_NN[~open_NN])


def test_blocks_change_nothing(monkeypatch):
    label_N = rng_of(4).integers(11, size=300).astype(np.int32)
    query_ND, positive_ND = rows_of(label_N)
    positive_ND[::7] = stored(positive_ND[::7] + np.float32(0.1))
    told = []

    def both():
        told.clear()
        ranks = rank_labels(
            query_ND, positive_ND, group_N=label_N, progress=lambda *done: told.append(done)
        )
        return ranks, link_labels(ranks, edges=5, rng=rng_of(2))

    ranks, graph = both()
    assert told == [(300, 300)]
    for cells in (1, 150):
        monkeypatch.setattr(labels, "_CELLS", cells)
        other, other_graph = both()
        assert len(told) > 30
        assert told[-1] == (300, 300)
        np.testing.assert_array_equal(other.near_NL8, ranks.near_NL8)
        np.testing.assert_array_equal(other_graph.indptr, graph.indptr)
        np.testing.assert_array_equal(other_graph.indices, graph.indices)


def test_the_seed_decides():
    ranks = ranks_of([20] * 10)
    one, same, other = (link_labels(ranks, edges=3, rng=rng_of(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(same.indices, one.indices)
    assert one.indices.tolist() != other.indices.tolist()


def test_the_numbers_of_rows_mean_nothing():
    label_N = rng_of(4).integers(9, size=90).astype(np.int32)
    query_ND, positive_ND = rows_of(label_N)
    order = rng_of(5).permutation(90)
    before, after = (
        dense(link_labels(rank_labels(q, d, group_N=g), rng=rng_of()))
        for q, d, g in (
            (query_ND, positive_ND, label_N),
            (query_ND[order], positive_ND[order], label_N[order]),
        )
    )
    np.testing.assert_array_equal(after, before[np.ix_(order, order)])
    assert (after != before).any()


def brute(community_N, ranks):
    """Look at all pairs of rows of a community, one after the other."""
    near, label_N = near_sets(ranks), ranks.label_N
    sums = dict.fromkeys(("window", "mutual", "same_group"), 0)
    for i, j in itertools.permutations(range(len(label_N)), 2):
        if community_N[i] != community_N[j] or community_N[i] < 0:
            continue
        there, back = label_N[j] in near[i], label_N[i] in near[j]
        sums["window"] += there
        sums["mutual"] += there and back
        sums["same_group"] += label_N[i] == label_N[j]
    return {name: count / (community_N >= 0).sum() for name, count in sums.items()}


def test_partners_of_six_rows_by_hand():
    """Communities {0, 1, 2} and {3, 4}; row 5 is in none.

    0 and 1 are of label 0 and near 1; 2 is of label 1 and near 2. 3 and 4 are near one another.
    """
    ranks = ranks_from([{1}, {1}, {2}, {2}, {1}, {0}], [0, 0, 1, 1, 2, 2])
    community_N = np.array([4, 4, 4, 0, 0, -1], np.int32)
    figures = describe_labels(community_N, ranks)
    assert figures == pytest.approx({"window": 4 / 5, "mutual": 2 / 5, "same_group": 2 / 5})


@settings(deadline=None, max_examples=examples(40))
@given(sizes_lists, st.floats(0.1, 1), st.integers(0, 99), st.integers(1, 6))
def test_any_partners_equal_the_slow_twin(sizes, share, seed, communities):
    ranks = ranks_of(sizes, share=share, seed=seed)
    community_N = rng_of(seed).integers(-1, communities, len(ranks.label_N)).astype(np.int32)
    community_N[0] = 0
    assert describe_labels(community_N, ranks) == pytest.approx(brute(community_N, ranks))


def test_in_one_community_of_all_rows_the_graph_is_counted():
    ranks = ranks_of([4, 9, 1, 7, 3, 5, 6, 2], share=0.4)
    figures = describe_labels(np.zeros(37, np.int32), ranks)
    graph = link_labels(ranks, edges=37, rng=rng_of())
    assert figures["mutual"] == pytest.approx(len(graph.indices) / 37)
    assert 0 < figures["mutual"] < figures["window"]
    assert figures["same_group"] == pytest.approx(
        (np.square([4, 9, 1, 7, 3, 5, 6, 2]) / 37).sum() - 1
    )


def test_a_single_label_is_refused():
    query_ND, positive_ND = rows_of([0] * 4)
    with pytest.raises(InputError, match="4 rows have 1 labels.*expected at least two.*check") as e:
        rank_labels(query_ND, positive_ND, group_N=np.full(4, 7, np.int32))
    assert e.value.exit_code == 2
    nothing_ND, no_group_N = np.zeros((0, 8), np.float32), np.zeros(0, np.int32)
    with pytest.raises(InputError, match="0 rows have 0 labels"):
        rank_labels(nothing_ND, nothing_ND, group_N=no_group_N)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["query", "positive"])
def test_a_vector_that_is_not_finite_is_named(side, value):
    vectors = dict(zip(("query", "positive"), rows_of([0, 1, 2, 0, 1, 2]), strict=True))
    vectors[side][[3, 5], 2] = value
    with pytest.raises(InputError, match=rf"the {side} in row 3 is not finite \(2 such rows\)"):
        rank_labels(*vectors.values(), group_N=np.array([0, 1, 2, 0, 1, 2], np.int32))


def test_arrays_that_do_not_fit_are_refused():
    query_ND, positive_ND = rows_of([0, 1, 2])
    group_N = np.arange(3, dtype=np.int32)
    for wrong in (
        {"positive_ND": positive_ND[:2]},
        {"group_N": group_N[:2]},
        {"share": 0},
        {"share": 1.01},
        {"share": np.nan},
    ):
        fitting = {"query_ND": query_ND, "positive_ND": positive_ND, "group_N": group_N}
        with pytest.raises(ValueError, match="cannot rank labels for queries"):
            rank_labels(**fitting | wrong)
    ranks = rank_labels(query_ND, positive_ND, group_N=group_N)
    with pytest.raises(ValueError, match="cannot draw 0 edges"):
        link_labels(ranks, edges=0, rng=rng_of())
    with pytest.raises(ValueError, match=r"shape \(2,\) for \(3,\) rows"):
        describe_labels(np.zeros(2, np.int32), ranks)
    with pytest.raises(ValueError, match="communities"):
        describe_labels(np.full(3, -1, np.int32), ranks)


@pytest.mark.parametrize(
    ("near", "label", "kept", "complaint"),
    [
        ([[64], [128]], [0, 1], 2, "not near exactly 2"),
        ([[64], [0]], [0, 1], 1, "not near exactly 1"),
        ([[64], [64]], [0, 1], 1, "near its own label"),
        ([[64], [32]], [0, 1], 1, "beyond the last of 2"),
        ([[64, 0], [128, 0]], [0, 1], 1, r"shape \(2, 2\) is no uint8 \(2, 1\)"),
        ([[64]], [0, 1], 1, r"shape \(1, 1\)"),
        ([[64], [128]], [0, 2], 1, "do not run from 0"),
        ([[64], [128]], [-1, 0], 1, "do not run from 0"),
        ([], [], 1, r"int32 of shape \(0,\)"),
    ],
)
def test_ranks_that_break_their_promises_are_refused(near, label, kept, complaint):
    near_NL8, label_N = np.array(near, np.uint8), np.array(label, np.int32)
    with pytest.raises(ValueError, match=complaint):
        LabelRanks(near_NL8, label_N, kept)


def test_ranks_of_eight_labels_fill_the_last_byte():
    near_NL8 = np.array([[0x80 >> (label + 1) % 8] for label in range(8)], np.uint8)
    ranks = LabelRanks(near_NL8, np.arange(8, dtype=np.int32), 1)
    assert near_sets(ranks) == [{(label + 1) % 8} for label in range(8)]


def test_ranks_of_other_types_are_refused():
    near_NL8, label_N = np.array([[64], [128]], np.uint8), np.arange(2, dtype=np.int32)
    LabelRanks(near_NL8, label_N, 1)
    with pytest.raises(ValueError, match="int64 of shape"):
        LabelRanks(near_NL8, label_N.astype(np.int64), 1)
    with pytest.raises(ValueError, match="int32 of shape"):
        LabelRanks(near_NL8.astype(np.int32), label_N, 1)


def test_what_was_saved_is_loaded(tmp_path):
    store = ArtifactStore(str(tmp_path))
    address = Address("data", "labels", "f00d")
    ranks = ranks_of([5] * 12)
    with store.draft(address, lineage={}, settings={}) as draft:
        ranks.save(draft)
        assert draft.names() == ["label.npy", "labels.json", "near.npy"]
    loaded = LabelRanks.load(store.get(address))
    np.testing.assert_array_equal(loaded.near_NL8, ranks.near_NL8)
    np.testing.assert_array_equal(loaded.label_N, ranks.label_N)
    assert loaded.kept == ranks.kept == 3
