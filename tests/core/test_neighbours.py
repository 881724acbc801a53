import sys

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core import neighbours
from b3_core.errors import InputError
from b3_core.neighbours import RankTable, rank
from b3_core.store import Address, ArtifactStore

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


@pytest.fixture(params=[0, 32], ids=["all rows at once", "faiss proposes"])
def circle_slack(request, monkeypatch):
    """Eight rows fit into the usual slack; without it they go through the search."""
    monkeypatch.setattr(neighbours, "_SLACK", 32 - request.param)


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
    assert searched[0] == (700, p + m + 32)


def test_duplicated_vectors_are_retried_until_the_tie_is_whole(searched):
    query_ND, positive_ND = random_pairs(5, seed=3)
    query_ND, positive_ND = np.tile(query_ND, (80, 1)), np.tile(positive_ND, (80, 1))
    table = rank(query_ND, positive_ND, group_N=alone(400), width=30)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=alone(400), width=30))
    assert (table.score_NM == table.score_NM[:, :1]).all()  # one tie of 80 rows fills every row
    assert searched == [(400, 62), (400, 124)]
    one_vector = np.tile(query_ND[:1], (400, 1))
    searched.clear()
    table = rank(one_vector, one_vector, group_N=alone(400), width=30)
    assert table.neighbour_NM[0].tolist() == list(range(1, 31))
    assert table.neighbour_NM[399].tolist() == list(range(30))
    assert searched == [(400, 62), (400, 124), (400, 248)]  # then all 400, without a search


def test_large_groups_are_searched_past(searched):
    query_ND, positive_ND = random_pairs(600, seed=4)
    # Three topics far apart, each one group: the best 200 of a row are all its own.
    topic_N = np.arange(600, dtype=np.int32) % 3
    centre_ND = 6 * np.eye(16)[topic_N]
    query_ND, positive_ND = stored(query_ND + centre_ND), stored(positive_ND + centre_ND)
    table = rank(query_ND, positive_ND, group_N=topic_N, width=40)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=topic_N, width=40))
    assert (table.neighbour_NM >= 0).all()
    assert searched == [(600, 72), (600, 144), (600, 288)]


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


@settings(deadline=None, max_examples=30)
@given(small_datasets(), st.integers(1, 35), st.sampled_from([100, 1 << 22]), st.integers(0, 9))
def test_any_dataset_block_and_slack_equals_brute_force(dataset, width, cells, slack):
    query_ND, positive_ND, group_N = dataset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_CELLS", cells)
        patch.setattr(neighbours, "_SLACK", slack)
        table = rank(query_ND, positive_ND, group_N=group_N, width=width)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=group_N, width=width))


def test_the_block_size_changes_nothing(monkeypatch, searched):
    query_ND, positive_ND = random_pairs(120, width=8, seed=5)
    query_ND[40:80], positive_ND[40:80] = query_ND[:40], positive_ND[:40]
    expected = rank(query_ND, positive_ND, group_N=alone(120), width=20)
    for size in (1, 7, 50):
        searched.clear()
        monkeypatch.setattr(neighbours, "_CELLS", size * 52)
        assert_same(rank(query_ND, positive_ND, group_N=alone(120), width=20), expected)
        assert searched[0] == (size, 52)
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
        found = np.argsort(-off, axis=1)[:, :k]
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
    monkeypatch.setattr(neighbours, "_GPU_CANDIDATES", 100)
    assert_same(rank(query_ND, positive_ND, group_N=group_N, width=40), expected)
    assert on_gpu == [72]
    assert [k for _, k in searched] == [144]


def test_a_faiss_without_gpu_functions_runs_on_the_cpu(monkeypatch, searched):
    monkeypatch.delattr(faiss, "get_num_gpus", raising=False)
    query_ND, positive_ND = random_pairs(100)
    rank(query_ND, positive_ND, group_N=alone(100), width=5)
    assert searched


def test_progress_rises_to_all_rows(monkeypatch):
    monkeypatch.setattr(neighbours, "_CELLS", 1000)
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
