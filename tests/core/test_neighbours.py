import sys

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core import neighbours, search
from b3_core.errors import InputError
from b3_core.neighbours import RankTable, rank, window_recall
from b3_core.precision import full_precision
from b3_core.store import Address, ArtifactStore
from tests.conftest import examples

INF = np.inf


def stored(vector_ND):
    """Unit vectors as the teacher stores them: rounded to float16."""
    unit_ND = vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return unit_ND.astype(np.float16).astype(np.float32)


def circle(degrees):
    radians = np.deg2rad(np.asarray(degrees, float))
    return stored(np.stack([np.cos(radians), np.sin(radians)], axis=1))


def random_pairs(rows, *, width=16, seed=0):
    rng = np.random.default_rng(seed)
    query_ND = rng.normal(size=(rows, width))
    return stored(query_ND), stored(query_ND + rng.normal(size=(rows, width)))


def alone(rows):
    return np.arange(rows, dtype=np.int32)


def brute_force_rank(query_ND, positive_ND, *, group_N, width):
    """The slow twin: all N x N scores, one Python sort a row."""
    rows = len(query_ND)
    ranks = min(width, rows - 1)
    score_NN = query_ND.astype(np.float64) @ positive_ND.astype(np.float64).T
    row_NM = np.full((rows, ranks), -1, np.int32)
    score_NM = np.full((rows, ranks), -INF, np.float32)
    for i in range(rows):
        others = [j for j in range(rows) if group_N[j] != group_N[i]]
        others.sort(key=lambda j: (-score_NN[i, j], j))
        best = others[:ranks]
        row_NM[i, : len(best)] = best
        score_NM[i, : len(best)] = score_NN[i, best]
    return RankTable(row_NM, score_NM)


def assert_same(table, expected):
    np.testing.assert_array_equal(table.neighbour_NM, expected.neighbour_NM)
    np.testing.assert_array_equal(table.score_NM, expected.score_NM)


@pytest.fixture
def searched(monkeypatch):
    """The (queries, candidates) of every search that faiss is asked for."""
    calls = []
    whole = faiss.knn

    def knn(query_BD, positive_ND, k, **options):
        calls.append((len(query_BD), k))
        return whole(query_BD, positive_ND, k, **options)

    monkeypatch.setattr(faiss, "knn", knn)
    return calls


@pytest.fixture(params=[15, 0], ids=["all rows at once", "faiss proposes"])
def circle_slack(request, monkeypatch):
    """Eight rows fit into the usual slack; without it they go through the search."""
    monkeypatch.setattr(neighbours, "_SLACK", request.param)


def test_eight_points_on_a_circle(circle_slack):
    # Positive j stands 10 degrees before query j, so from query i the others come in this order:
    # i+1 (35 degrees away), i-1 (55), i+2 (80), i-2 (100), i+3 (125), i-3 (145), i+4 (170).
    query_ND, positive_ND = circle(45 * np.arange(8)), circle(45 * np.arange(8) - 10)
    table = rank(query_ND, positive_ND, group_N=alone(8), width=5)
    assert table.neighbour_NM.tolist() == [
        [1, 7, 2, 6, 3],
        [2, 0, 3, 7, 4],
        [3, 1, 4, 0, 5],
        [4, 2, 5, 1, 6],
        [5, 3, 6, 2, 7],
        [6, 4, 7, 3, 0],
        [7, 5, 0, 4, 1],
        [0, 6, 1, 5, 2],
    ]
    cosines = [[0.8192, 0.5736, 0.1736, -0.1736, -0.5736]] * 8
    np.testing.assert_allclose(table.score_NM, cosines, atol=1e-3)
    assert (table.neighbour_NM.dtype, table.score_NM.dtype) == (np.int32, np.float32)


def test_the_own_group_is_left_out_and_what_is_missing_is_padded(circle_slack):
    query_ND, positive_ND = circle(45 * np.arange(8)), circle(45 * np.arange(8) - 10)
    group_N = np.array([0, 0, 0, 0, 0, 5, 6, 7], np.int32)
    table = rank(query_ND, positive_ND, group_N=group_N, width=5)
    assert table.neighbour_NM.tolist() == [
        [7, 6, 5, -1, -1],
        [7, 6, 5, -1, -1],
        [5, 7, 6, -1, -1],
        [5, 6, 7, -1, -1],
        [5, 6, 7, -1, -1],
        [6, 4, 7, 3, 0],
        [7, 5, 0, 4, 1],
        [0, 6, 1, 5, 2],
    ]
    np.testing.assert_allclose(table.score_NM[0], [0.5736, -0.1736, -0.8192, -INF, -INF], atol=1e-3)


def test_ties_go_to_the_smaller_row(circle_slack):
    # The first four positives are one vector, the last four its opposite.
    query_ND = circle([0] * 8)
    positive_ND = circle([30] * 4 + [210] * 4)
    table = rank(query_ND, positive_ND, group_N=alone(8), width=5)
    assert table.neighbour_NM.tolist() == [
        [1, 2, 3, 4, 5],
        [0, 2, 3, 4, 5],
        [0, 1, 3, 4, 5],
        [0, 1, 2, 4, 5],
        [0, 1, 2, 3, 5],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]


def test_scores_that_float32_cannot_tell_apart_keep_their_exact_order():
    # From query 0, row 1 scores 0.5 and row 2 scores 0.5 + 2**-27, which float32 rounds to 0.5.
    fine = np.float32(2.0**-13)
    query_ND = np.array([[1, fine, fine]] * 3, np.float32)
    positive_ND = np.array([[1, 0, 0], [0.5, 0, 0], [0.5, 2.0**-14, 0]], np.float32)
    table = rank(query_ND, positive_ND, group_N=alone(3), width=2)
    assert table.neighbour_NM[0].tolist() == [2, 1]
    assert table.score_NM[0, 0] == table.score_NM[0, 1] == 0.5


@pytest.mark.parametrize(("p", "m"), [(0, 30), (30, 100), (70, 100)])
def test_equals_brute_force(p, m, searched):
    query_ND, positive_ND = random_pairs(700, seed=p + m)
    group_N = np.random.default_rng(1).integers(0, 500, 700).astype(np.int32)
    table = rank(query_ND, positive_ND, group_N=group_N, width=p + m)
    assert table.neighbour_NM.shape == (700, p + m)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=group_N, width=p + m))
    assert searched[0] == (700, p + m + 15 + 4)  # the own group has 4 rows at most, mostly


def test_ties_are_retried_until_they_are_whole(searched):
    """Positives that differ where no query looks: equal scores, though no two are one vector."""
    query_ND, positive_ND = random_pairs(5, seed=3)
    query_ND, positive_ND = np.tile(query_ND, (80, 1)), np.tile(positive_ND, (80, 1))
    query_ND[:, 0], positive_ND[:, 0] = 0, np.arange(400) / 512
    table = rank(query_ND, positive_ND, group_N=alone(400), width=30)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=alone(400), width=30))
    assert (table.score_NM == table.score_NM[:, :1]).all()  # one tie of 80 rows fills every row
    assert searched == [(400, 46), (400, 92)]
    one_score = np.tile(positive_ND[:1], (400, 1))
    one_score[:, 0] = positive_ND[:, 0]
    searched.clear()
    table = rank(query_ND, one_score, group_N=alone(400), width=30)
    assert table.neighbour_NM[0].tolist() == list(range(1, 31))
    assert table.neighbour_NM[399].tolist() == list(range(30))
    assert searched == [
        (400, 46),
        (400, 92),
        (400, 184),
        (400, 368),
    ]  # then all 400, without a search


def test_vectors_that_many_rows_share_are_searched_once(searched):
    query_ND, positive_ND = random_pairs(5, seed=3)
    query_ND, positive_ND = np.tile(query_ND, (80, 1)), np.tile(positive_ND, (80, 1))
    table = rank(query_ND, positive_ND, group_N=alone(400), width=30)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=alone(400), width=30))
    assert (table.score_NM == table.score_NM[:, :1]).all()
    assert searched == [(400, 46)]
    one_vector = np.tile(query_ND[:1], (400, 1))
    searched.clear()
    table = rank(one_vector, one_vector, group_N=alone(400), width=30)
    assert table.neighbour_NM[0].tolist() == list(range(1, 31))
    assert table.neighbour_NM[399].tolist() == list(range(30))
    assert searched == [(400, 31)]  # the first 30, and one for those who are one of them


def test_a_positive_that_many_share_is_no_reason_to_search_again(searched):
    """300 of 900 rows have one of three answers, in groups or split over two of them."""
    rng = np.random.default_rng(0)
    query_ND, positive_ND = random_pairs(900)
    shared_N = rng.integers(9, size=900)
    for answer in range(3):
        positive_ND[shared_N == answer] = positive_ND[answer]
    group_N = np.where(shared_N < 3, 2000 + shared_N, np.arange(900)).astype(np.int32)
    group_N[(shared_N == 1) & (np.arange(900) % 2 == 0)] = 3000
    table = rank(query_ND, positive_ND, group_N=group_N, width=30, spare=4)
    # A tie of 34 at the last candidate is what is left to search for.
    assert sum(queries for queries, _ in searched) < 1.1 * 900
    expected = brute_force_rank(query_ND, positive_ND, group_N=group_N, width=34)
    assert_same(
        RankTable(table.neighbour_NM[:, :30], table.score_NM[:, :30]),
        RankTable(expected.neighbour_NM[:, :30], expected.score_NM[:, :30]),
    )


def slow_may_rank(positive_ND, group_N, columns):
    """The slow twin: is there a group whose queries have so few equal positives before a row?"""
    rows, may_N = len(group_N), []
    for row in range(rows):
        before = [
            group_N[other] for other in range(row) if (positive_ND[other] == positive_ND[row]).all()
        ]
        asking = {*group_N.tolist(), -1} - {group_N[row]}  # -1 stands for those that have none
        may_N.append(min(sum(g != of for g in before) for of in asking) < columns)
    return may_N


@st.composite
def crowds(draw):
    """A few positives that nearly all rows share, within groups and across them; some are alone."""
    rows = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    query_ND, positive_ND = rng.normal(size=(2, rows, 3))
    shared_N = rng.integers(min(draw(st.integers(1, 4)), rows), size=rows)
    shared_N[rng.random(rows) < draw(st.sampled_from([0.0, 0.3]))] = -1
    positive_ND[shared_N >= 0] = positive_ND[shared_N[shared_N >= 0]]
    kinds = {
        "apart": np.arange(rows),
        "one a positive": np.where(shared_N < 0, np.arange(rows), 1000 + shared_N),
        "few": rng.integers(4, size=rows),
        "one large": np.where(rng.random(rows) < 0.6, 1000, np.arange(rows)),
        "large first": np.minimum(np.arange(rows) // (rows // 2 + 1) * np.arange(rows), 1000),
    }
    group_N = kinds[draw(st.sampled_from(list(kinds)))].astype(np.int32)
    if draw(st.booleans()):  # queries as near to the shared positives as can be
        query_ND = positive_ND.copy()
    return stored(query_ND), stored(positive_ND), group_N


@settings(deadline=None, max_examples=examples(150))
@given(crowds(), st.integers(1, 12), st.integers(0, 4), st.integers(0, 3))
def test_crowds_of_equal_positives_are_ranked_as_brute_force_does(dataset, width, spare, slack):
    query_ND, positive_ND, group_N = dataset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_SLACK", slack)
        table = rank(query_ND, positive_ND, group_N=group_N, width=width, spare=spare)
    expected = brute_force_rank(query_ND, positive_ND, group_N=group_N, width=width + spare)
    ranks = min(width, len(group_N) - 1)
    assert_same(
        RankTable(table.neighbour_NM[:, :ranks], table.score_NM[:, :ranks]),
        RankTable(expected.neighbour_NM[:, :ranks], expected.score_NM[:, :ranks]),
    )
    held_NM = table.neighbour_NM >= 0  # what is spare is right as far as it goes
    assert (table.neighbour_NM[held_NM] == expected.neighbour_NM[held_NM]).all()


@settings(deadline=None, max_examples=examples(150))
@given(crowds(), st.integers(1, 12), st.sampled_from([1, 2, 1 << 12]), st.booleans())
def test_of_a_crowd_those_are_searched_that_some_query_can_rank(dataset, columns, alike, collide):
    _, positive_ND, group_N = dataset
    pairs = neighbours._Pairs.of(positive_ND, positive_ND, group_N)
    expected_N = slow_may_rank(positive_ND, group_N, columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_ALIKE", alike)
        if collide:  # other vectors of one digest are no reason to leave one out
            patch.setattr(neighbours, "_digest", lambda bits_ND: np.zeros(len(bits_ND), np.uint64))
        may_N = pairs._may_rank(columns)
    if collide:
        assert not (expected_N & ~may_N).any()
    else:
        assert may_N.tolist() == expected_N


def test_crowds_of_both_kinds_are_left_out():
    """Six rows of one positive, in order: which may be at the first two ranks of a query."""
    positive_ND = np.ones((6, 2), np.float32)
    for group_N, may_N in (
        ([0, 1, 2, 3, 4, 5], [1, 1, 1, 0, 0, 0]),  # row 2: where 0 or 1 asks
        ([0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]),
        ([0, 0, 0, 0, 1, 2], [1, 1, 0, 0, 1, 1]),  # where group 0 asks
        ([1, 0, 0, 0, 0, 2], [1, 1, 1, 0, 0, 1]),
        ([0, 1, 0, 1, 0, 1], [1, 1, 1, 1, 0, 0]),
    ):
        pairs = neighbours._Pairs.of(positive_ND, positive_ND, np.array(group_N, np.int32))
        assert pairs._may_rank(2).astype(int).tolist() == may_N


def test_a_positive_that_rows_of_many_groups_share_is_no_reason_to_score_them_all(searched):
    """A quarter of 2,000 rows was cut to the same text: their queries lie nearest to it."""
    query_ND, positive_ND = random_pairs(2000)
    positive_ND[::4] = positive_ND[0]
    query_ND[::4] = stored(positive_ND[0] + 0.3 * query_ND[::4])
    table = rank(query_ND, positive_ND, group_N=alone(2000), width=30)
    assert max(candidates for _, candidates in searched) < 100
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=alone(2000), width=30))


def test_large_groups_are_searched_past(searched):
    query_ND, positive_ND = random_pairs(600, seed=4)
    # Three topics far apart, each one group: the best 200 of a row are all its own.
    topic_N = np.arange(600, dtype=np.int32) % 3
    centre_ND = 6 * np.eye(16)[topic_N]
    query_ND, positive_ND = stored(query_ND + centre_ND), stored(positive_ND + centre_ND)
    table = rank(query_ND, positive_ND, group_N=topic_N, width=40)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=topic_N, width=40))
    assert (table.neighbour_NM >= 0).all()
    assert searched == [(600, 95), (600, 190), (600, 380)]


def test_one_group_of_all_rows_leaves_only_padding():
    query_ND, positive_ND = random_pairs(50)
    table = rank(query_ND, positive_ND, group_N=np.zeros(50, np.int32), width=10)
    assert (table.neighbour_NM == -1).all()
    assert (table.score_NM == -INF).all()


@pytest.mark.parametrize(("rows", "width", "kept"), [(1, 5, 0), (2, 5, 1), (6, 5, 5), (6, 2, 2)])
def test_the_width_is_at_most_all_other_rows(rows, width, kept):
    query_ND, positive_ND = random_pairs(rows)
    table = rank(query_ND, positive_ND, group_N=alone(rows), width=width)
    assert table.neighbour_NM.shape == (rows, kept)
    assert (table.neighbour_NM >= 0).all()


@st.composite
def small_datasets(draw):
    """Few directions, so ties abound, and groups of every size."""
    rows = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    query_ND, positive_ND = (rng.integers(-1, 2, (rows, 3)) + [0, 0, 0.5] for _ in range(2))
    groups = draw(st.integers(1, 2 * rows))
    group_N = rng.integers(0, groups, rows).astype(np.int32)
    return stored(query_ND), stored(positive_ND), group_N


@settings(deadline=None, max_examples=examples(30))
@given(small_datasets(), st.integers(1, 35), st.sampled_from([3, 1 << 14]), st.integers(0, 9))
def test_any_dataset_block_and_slack_equals_brute_force(dataset, width, block, slack):
    query_ND, positive_ND, group_N = dataset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_BLOCK", block)
        patch.setattr(neighbours, "_SLACK", slack)
        table = rank(query_ND, positive_ND, group_N=group_N, width=width)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=group_N, width=width))


def test_the_block_size_changes_nothing(monkeypatch, searched):
    query_ND, positive_ND = random_pairs(120, width=8, seed=5)
    query_ND[40:80], positive_ND[40:80] = query_ND[:40], positive_ND[:40]
    expected = rank(query_ND, positive_ND, group_N=alone(120), width=20)
    for size in (1, 7, 50):
        searched.clear()
        monkeypatch.setattr(neighbours, "_BLOCK", size)
        assert_same(rank(query_ND, positive_ND, group_N=alone(120), width=20), expected)
        assert searched[0] == (size, 36)
    assert len({tuple(row) for row in expected.score_NM}) >= 80  # no table of one score


def test_vectors_of_any_length_are_ranked_exactly(monkeypatch):
    # Scores near 640,000 lie 0.01 apart, and fp32 may be off by 1: the margin of unit vectors,
    # 1e-5, would take this search at its word.
    rng = np.random.default_rng(6)
    query_ND = np.full((200, 64), 100, np.float32)
    positive_ND = query_ND.copy()
    positive_ND[:, 0] += rng.permutation(200) * np.float32(2.0**-13)

    def noisy(query_BD, positive_ND, k, **_):
        exact = query_BD @ positive_ND.T
        off = exact + rng.uniform(-1, 1, exact.shape).astype(np.float32)
        found = np.ascontiguousarray(np.argsort(-off, axis=1)[:, :k])  # as faiss gives it
        return np.take_along_axis(off, found, axis=1), found

    monkeypatch.setattr(faiss, "knn", noisy)
    table = rank(query_ND, positive_ND, group_N=alone(200), width=20)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=alone(200), width=20))


@pytest.mark.parametrize("value", [np.nan, INF, -INF])
@pytest.mark.parametrize("side", ["query", "positive"])
def test_a_vector_that_is_not_finite_is_named(side, value):
    vectors = dict(zip(("query_ND", "positive_ND"), random_pairs(40), strict=True))
    vectors[f"{side}_ND"][[17, 30], 3] = value
    with pytest.raises(InputError, match=rf"{side} in row 17 is not finite \(2 such rows\)"):
        rank(**vectors, group_N=alone(40), width=5)


def test_arrays_that_do_not_fit_together_are_refused():
    query_ND, positive_ND = random_pairs(40)
    with pytest.raises(ValueError, match="cannot rank"):
        rank(query_ND, positive_ND[:39], group_N=alone(40), width=5)
    with pytest.raises(ValueError, match="cannot rank"):
        rank(query_ND, positive_ND, group_N=alone(39), width=5)
    with pytest.raises(ValueError, match="width -1"):
        rank(query_ND, positive_ND, group_N=alone(40), width=-1)


def test_without_faiss_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    query_ND, positive_ND = random_pairs(40)
    with pytest.raises(InputError, match=r"pip install 'b3-batches\[cpu\]'"):
        rank(query_ND, positive_ND, group_N=alone(40), width=5)


def test_a_gpu_searches_what_it_can_and_the_cpu_the_rest(monkeypatch, searched):
    query_ND, positive_ND = random_pairs(200)
    group_N = np.arange(200, dtype=np.int32) // 100
    expected = brute_force_rank(query_ND, positive_ND, group_N=group_N, width=40)
    on_gpu = []

    def knn_gpu(resources, query_BD, positive_ND, k, **options):
        assert resources == "resources"
        on_gpu.append(k)
        score_BC, row_BC = faiss.knn(query_BD, positive_ND, k, **options)
        searched.pop()
        return score_BC - np.float32(1e-6), row_BC  # another rounding than the CPU's

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    monkeypatch.setattr(search, "_GPU_CANDIDATES", 100)
    monkeypatch.setattr(search, "torch_sees_gpu", lambda: False)
    assert_same(rank(query_ND, positive_ND, group_N=group_N, width=40), expected)
    assert on_gpu == [95]
    assert [k for _, k in searched] == [190]


def test_a_faiss_without_gpu_functions_runs_on_the_cpu(monkeypatch, searched):
    monkeypatch.delattr(faiss, "get_num_gpus", raising=False)
    query_ND, positive_ND = random_pairs(100)
    rank(query_ND, positive_ND, group_N=alone(100), width=5)
    assert searched


def test_the_memory_bounds_the_rows_of_a_block(searched):
    query_ND, positive_ND = random_pairs(700)
    rank(query_ND, positive_ND, group_N=alone(700), width=130, memory_mb=1)
    size = 2**20 // (40 * 146)
    assert searched == [(size, 146)] * 3 + [(700 - 3 * size, 146)]


@pytest.fixture
def through_torch(monkeypatch):
    """Send exact searches through torch on the CPU; the number types of its searches, in order."""
    types, whole = [], search.Torch

    class Counted(whole):
        def propose(self, query_BD, candidates, row_B):
            types.append((str(self.dtype).removeprefix("torch."), len(query_BD)))
            return super().propose(query_BD, candidates, row_B)

    def use(dtype, memory_mb=1):
        monkeypatch.setattr(search, "Torch", Counted)
        monkeypatch.setattr(
            search,
            "exact",
            lambda positive_ND, **_: Counted(
                positive_ND, device="cpu", dtype=dtype, memory_mb=memory_mb
            ),
        )
        return types

    return use


def crowded(rows, *, offset, seed):
    """Pairs that lean to one side, so that scores lie close together."""
    rng = np.random.default_rng(seed)
    query_ND = rng.normal(size=(rows, 16)) + offset * np.eye(16)[0]
    return stored(query_ND), stored(query_ND + rng.normal(size=(rows, 16)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_ranks_as_faiss_does(dtype, through_torch):
    query_ND, positive_ND = crowded(900, offset=4, seed=7)
    query_ND[300:600], positive_ND[300:600] = query_ND[:300], positive_ND[:300]  # ties
    group_N = np.random.default_rng(1).integers(0, 700, 900).astype(np.int32)
    expected = rank(query_ND, positive_ND, group_N=group_N, width=100)
    types = through_torch(dtype)
    assert_same(rank(query_ND, positive_ND, group_N=group_N, width=100), expected)
    assert types[0] == (dtype, 900)
    if dtype == "bfloat16":  # too coarse to be sure of some rows
        assert types[1][0] == "float32"
        assert 0 < types[1][1] < 450
    else:
        assert len(types) == 1


def test_rows_that_a_coarse_search_leaves_unsure_are_searched_finely(through_torch, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 100)
    query_ND, positive_ND = crowded(600, offset=15, seed=8)
    expected = rank(query_ND, positive_ND, group_N=alone(600), width=100)
    types = through_torch("bfloat16")
    assert_same(rank(query_ND, positive_ND, group_N=alone(600), width=100), expected)
    # The first block shows that most rows are unsure, so the others are not tried in vain.
    assert types[0] == ("bfloat16", 100)
    assert {name for name, _ in types[1:]} == {"float32"}
    assert types[1:6] == [("float32", 100)] * 5


def test_vectors_that_overflow_float16_are_ranked_exactly(through_torch):
    query_ND, positive_ND = random_pairs(300, seed=9)
    query_ND, positive_ND = 1e4 * query_ND, 1e4 * positive_ND
    positive_ND[5] *= 100  # not even held by float16
    expected = brute_force_rank(query_ND, positive_ND, group_N=alone(300), width=40)
    types = through_torch("float16")
    table = rank(query_ND, positive_ND, group_N=alone(300), width=40)
    np.testing.assert_array_equal(table.neighbour_NM, expected.neighbour_NM)
    assert [name for name, _ in types] == ["float16", "float32"]


def assert_it_keeps_its_word(found, query_ND, positive_ND):
    """No score of a proposal is further off than it says, and nothing left out scores more."""
    exact_NN = query_ND.astype(np.float64) @ positive_ND.T.astype(np.float64)
    off_NC = np.abs(found.score_BC - np.take_along_axis(exact_NN, found.row_BC, axis=1))
    assert (off_NC <= found.error_B[:, None]).all()
    np.put_along_axis(exact_NN, found.row_BC, -INF, axis=1)
    assert (exact_NN.max(axis=1) <= found.ceiling_B).all()


def halfway(rows):
    """Vectors whose every number bfloat16 rounds as far as it can, all in one direction."""
    vector_ND = np.ones((rows, 64), np.float32)
    vector_ND[:, :60] += np.float32(2.0**-8)
    return vector_ND + np.arange(rows, dtype=np.float32)[:, None] * np.float32(2.0**-20)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["random", "long", "tiny", "halfway", "cancelling"])
def test_no_score_of_a_search_is_further_off_than_it_says(dtype, kind):
    rng = np.random.default_rng(2)
    query_ND, positive_ND = rng.normal(size=(2, 400, 64)).astype(np.float32)
    if kind == "long":
        query_ND, positive_ND = 100 * query_ND, 0.01 * positive_ND
    elif kind == "tiny":
        query_ND, positive_ND = 1e-4 * query_ND, 1e-3 * positive_ND
    elif kind == "halfway":
        query_ND = positive_ND = halfway(400)
    elif kind == "cancelling":
        positive_ND[:, 32:] = -positive_ND[:, :32] * np.float32(1 + 2.0**-9)
        query_ND[:, 32:] = query_ND[:, :32]
    found = search.Torch(positive_ND, device="cpu", dtype=dtype, memory_mb=1).propose(
        query_ND, 50, np.arange(len(query_ND))
    )
    assert_it_keeps_its_word(found, query_ND, positive_ND)
    if kind != "tiny":  # the bound says something
        largest = np.linalg.norm(query_ND, axis=1) * np.linalg.norm(positive_ND, axis=1).max()
        assert (found.error_B < 0.015 * largest).all()


@pytest.fixture
def torch_as_it_was():
    torch = pytest.importorskip("torch")
    yield torch
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("chosen", ["all of them", "cuda alone"])
def test_torch_multiplies_in_full_and_is_left_as_it_was(chosen, torch_as_it_was):
    torch = torch_as_it_was
    matmul = torch.backends.cuda.matmul
    if chosen == "cuda alone":
        matmul.allow_tf32 = (
            True  # after which a torch with a GPU may refuse to say what holds for all
        )
    else:
        torch.set_float32_matmul_precision("medium")
    before = matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    assert before[0] == "tf32"
    with full_precision(torch):
        assert matmul.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert not matmul.allow_fp16_reduced_precision_reduction
        assert not matmul.allow_bf16_reduced_precision_reduction
    assert (matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision) == before
    assert matmul.allow_tf32
    assert matmul.allow_fp16_reduced_precision_reduction
    assert matmul.allow_bf16_reduced_precision_reduction


@pytest.mark.parametrize(("faiss_gpus", "searches"), [(0, ["float16"]), (1, ["faiss", "float32"])])
def test_torch_searches_on_a_gpu_what_faiss_cannot(faiss_gpus, searches, monkeypatch):
    query_ND, positive_ND = random_pairs(900, seed=10)
    group_N = np.arange(900, dtype=np.int32) // (450 if faiss_gpus else 1)
    expected = brute_force_rank(query_ND, positive_ND, group_N=group_N, width=60)
    used, whole, plain = [], search.Torch, faiss.knn

    class OnGpu(whole):
        def __init__(self, positive_ND, *, device, dtype, memory_mb):
            assert device == "cuda"
            super().__init__(positive_ND, device="cpu", dtype=dtype, memory_mb=memory_mb)

        def propose(self, query_BD, candidates, row_B):
            used.append(str(self.dtype).removeprefix("torch."))
            return super().propose(query_BD, candidates, row_B)

    def knn_gpu(resources, query_BD, positive_ND, k, **options):
        used.append("faiss")
        return plain(query_BD, positive_ND, k, **options)

    monkeypatch.setattr(search, "Torch", OnGpu)
    monkeypatch.setattr(search, "torch_sees_gpu", lambda: True)
    monkeypatch.setattr(search, "_GPU_CANDIDATES", 150)
    monkeypatch.setattr(search, "_GPU_ROWS", 900)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: faiss_gpus, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    monkeypatch.delattr(faiss, "knn")
    assert_same(rank(query_ND, positive_ND, group_N=group_N, width=60), expected)
    assert used == searches


def test_torch_is_not_imported_where_there_is_no_driver(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(search, "_DRIVERS", ())
    monkeypatch.setattr(search.importlib, "import_module", pytest.fail)
    assert not search.torch_sees_gpu()


def topics(rows, *, seed=0):
    """Pairs around a few centres, as embeddings lie."""
    rng = np.random.default_rng(seed)
    centre_ND = rng.normal(size=(rows // 60, 16))[rng.integers(0, rows // 60, rows)]
    query_ND = centre_ND + 0.5 * rng.normal(size=(rows, 16))
    return stored(query_ND), stored(query_ND + 0.5 * rng.normal(size=(rows, 16)))


def test_an_index_that_reads_every_list_finds_all():
    query_ND, positive_ND = topics(1200)
    group_N = np.arange(1200, dtype=np.int32) // 2
    assert search.ivf_lists(1200) == 30 <= search.IVF_PROBES
    table = rank(query_ND, positive_ND, group_N=group_N, width=60, method="ivf")
    assert_same(table, rank(query_ND, positive_ND, group_N=group_N, width=60))


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_an_approximate_table_has_exact_scores_and_a_measured_recall(method, monkeypatch):
    monkeypatch.setattr(search, "IVF_PROBES", 6)
    monkeypatch.setattr(search, "HNSW_LINKS", 2)
    query_ND, positive_ND = topics(1200)
    groups = {"group_N": alone(1200)}
    exact = rank(query_ND, positive_ND, **groups, width=60)
    table = rank(query_ND, positive_ND, **groups, width=60, method=method)
    score_NM = np.einsum(
        "nd,nmd->nm",
        query_ND.astype(np.float64),
        positive_ND[table.neighbour_NM].astype(np.float64),
    )
    np.testing.assert_array_equal(table.score_NM, score_NM.astype(np.float32))
    held = [np.isin(e[20:60], t[20:60]).mean() for e, t in zip(*both(exact, table), strict=True)]
    recall = window_recall(
        table, query_ND, positive_ND, **groups, p=20, m=40, sample=1200, rng=rng()
    )
    assert recall == pytest.approx(np.mean(held))
    assert 0.5 < recall < 1


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_an_index_is_the_same_on_any_number_of_threads(method, monkeypatch):
    monkeypatch.setattr(search, "IVF_PROBES", 4)
    query_ND, positive_ND = topics(3000)
    threads, tables = faiss.omp_get_max_threads(), []
    try:
        for count in (1, 2, 4):
            faiss.omp_set_num_threads(count)
            tables.append(rank(query_ND, positive_ND, group_N=alone(3000), width=40, method=method))
            assert faiss.omp_get_max_threads() == count
    finally:
        faiss.omp_set_num_threads(threads)
    assert_same(tables[1], tables[0])
    assert_same(tables[2], tables[0])


def test_rows_for_which_an_index_finds_too_little_are_searched_exactly(monkeypatch):
    monkeypatch.setattr(search, "IVF_PROBES", 1)  # one list holds fewer than 300 of 1,200
    query_ND, positive_ND = topics(1200)
    table = rank(query_ND, positive_ND, group_N=alone(1200), width=300, method="ivf")
    assert_same(table, rank(query_ND, positive_ND, group_N=alone(1200), width=300))


@pytest.mark.parametrize(
    ("rows", "lists"), [(1, 1), (40, 1), (3900, 100), (40_000, 800), (1_000_000, 4000)]
)
def test_lists_grow_with_the_root_of_the_rows(rows, lists):
    assert search.ivf_lists(rows) == lists


def both(*tables):
    return [table.neighbour_NM for table in tables]


def rng():
    return np.random.default_rng(0)


def test_the_recall_of_a_window_by_hand():
    # From query i of eight: i+1, i-1, i+2, i-2, i+3, i-3, i+4 (as above); the window is [1, 4).
    query_ND, positive_ND = circle(45 * np.arange(8)), circle(45 * np.arange(8) - 10)
    exact = rank(query_ND, positive_ND, group_N=alone(8), width=5)
    options = {"group_N": alone(8), "p": 1, "m": 3, "rng": rng()}
    assert window_recall(exact, query_ND, positive_ND, **options) == 1
    # With its best, i+1, put last, a row's window is i+2, i-2, i+3: two of i-1, i+2, i-2.
    rolled_NM = np.roll(exact.neighbour_NM, -1, axis=1)
    rolled = RankTable(rolled_NM, exact.score_NM)
    assert window_recall(rolled, query_ND, positive_ND, **options) == pytest.approx(2 / 3)
    half = RankTable(np.concatenate([exact.neighbour_NM[:4], rolled_NM[4:]]), exact.score_NM)
    assert window_recall(half, query_ND, positive_ND, **options) == pytest.approx(5 / 6)


def test_only_the_sample_is_ranked_exactly(searched):
    query_ND, positive_ND = random_pairs(500)
    table = rank(query_ND, positive_ND, group_N=alone(500), width=40)
    searched.clear()
    options = {"group_N": alone(500), "p": 10, "m": 30}
    assert window_recall(table, query_ND, positive_ND, **options, sample=20, rng=rng()) == 1
    assert searched == [(20, 56)]


def test_no_window_has_a_recall_of_one_and_a_short_table_is_refused():
    query_ND, positive_ND = random_pairs(50)
    one_group = np.zeros(50, np.int32)
    table = rank(query_ND, positive_ND, group_N=one_group, width=10)
    options = {"group_N": one_group, "p": 4, "rng": rng()}
    assert window_recall(table, query_ND, positive_ND, **options, m=6) == 1
    with pytest.raises(ValueError, match="ends before rank 11 of 50"):
        window_recall(table, query_ND, positive_ND, **options, m=7)


def test_settings_that_do_not_exist_are_refused():
    query_ND, positive_ND = random_pairs(40)
    for wrong in ({"method": "flat"}, {"memory_mb": 0}):
        with pytest.raises(ValueError, match="cannot rank at width 5 by"):
            rank(query_ND, positive_ND, group_N=alone(40), width=5, **wrong)


def test_progress_rises_to_all_rows(monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 14)
    told = []
    query_ND, positive_ND = random_pairs(120)
    group_N = np.arange(120, dtype=np.int32) // 50
    rank(
        query_ND,
        positive_ND,
        group_N=group_N,
        width=40,  # more than are left of 72 candidates: many rows need a second round
        progress=lambda done, total: told.append((done, total)),
    )
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert told[-1] == (120, 120)
    assert len(told) > 5


def table(rows, scores, *, row_type=np.int32):
    return RankTable(np.array(rows, row_type), np.array(scores, np.float32))


@pytest.mark.parametrize(
    ("rows", "scores", "complaint"),
    [
        ([[0], [0]], [[0.5], [0.5]], "its own neighbour"),
        ([[1], [2]], [[0.5], [0.5]], "none of the 2 rows"),
        ([[1], [-2]], [[0.5], [0.5]], "none of the 2 rows"),
        ([[1], [-1]], [[0.5], [0.5]], "side by side"),
        ([[1], [0]], [[0.5], [np.nan]], "NaN"),
        ([[1, 2], [0, 2], [1, 0]], [[0.5, 0.6]] * 3, "not sorted"),
        ([[1, 2], [0, 2], [1, 1]], [[0.5, 0.5]] * 3, "ranked twice"),
        ([[1], [0]], [[0.5, 0.4], [0.5, 0.4]], "not one"),
    ],
)
def test_a_table_that_breaks_its_promises_is_refused(rows, scores, complaint):
    with pytest.raises(ValueError, match=complaint):
        table(rows, scores)


def test_a_table_of_other_types_is_refused():
    with pytest.raises(ValueError, match="int64, float32 are not int32, float32"):
        table([[1], [0]], [[0.5], [0.5]], row_type=np.int64)


def test_what_was_saved_is_loaded(tmp_path):
    store = ArtifactStore(str(tmp_path))
    address = Address("data", "ranks", "f00d")
    query_ND, positive_ND = random_pairs(60)
    group_N = np.arange(60, dtype=np.int32) // 20
    made = rank(query_ND, positive_ND, group_N=group_N, width=50)
    assert (made.neighbour_NM[:, -1] == -1).all()
    with store.draft(address, lineage={}, settings={}) as draft:
        made.save(draft)
        assert draft.names() == ["neighbour.npy", "score.npy"]
    assert_same(RankTable.load(store.get(address)), made)
