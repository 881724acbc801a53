import json

import faiss
import numba
import numpy as np
import pytest

from b3_core.bench import neighbours as bench
from b3_core.bench.neighbours import METHODS, bench_neighbours, clustered_pairs, oracle
from b3_core.neighbours import rank


@pytest.fixture
def no_processes(monkeypatch):
    """Leave the memory out: a fresh interpreter a method takes seconds."""
    monkeypatch.setattr(
        bench, "_peaks", lambda names, *_, **__: {name: {"peak_mb": 0.0} for name in names}
    )


def test_pairs_are_stored_unit_vectors_with_ties_and_depend_on_the_seed():
    query_ND, positive_ND = clustered_pairs(5000, dim=128, seed=3)
    for vector_ND in (query_ND, positive_ND):
        assert vector_ND.dtype == np.float32
        assert (vector_ND == vector_ND.astype(np.float16)).all()
        np.testing.assert_allclose(np.linalg.norm(vector_ND, axis=1), 1, atol=2e-3)
    assert (positive_ND[1::50] == positive_ND[::50]).all()
    again, other = clustered_pairs(5000, dim=128, seed=3), clustered_pairs(5000, dim=128, seed=4)
    assert (again[0] == query_ND).all()
    assert (again[1] == positive_ND).all()
    assert (other[0] != query_ND).any()
    # Its own positive is nearer to a query than most others, and clusters are nearer than chance.
    score_NN = query_ND[:500] @ positive_ND.T
    own_N = score_NN[np.arange(500), np.arange(500)]
    assert np.median((score_NN > own_N[:, None]).mean(axis=1)) < 0.01
    assert np.quantile(score_NN, 0.999) > 4 * score_NN.std()  # 3.1 without


def test_the_oracle_by_hand():
    # From query 0 the positives score 0.5, 1, 0.5, 0.5, -1.
    query_ND = np.array([[1, 0]] * 5, np.float32)
    positive_ND = np.array([[0.5, 1], [1, 0], [0.5, 2], [0.5, 0], [-1, 0]], np.float32)
    found = {
        own: oracle(query_ND, positive_ND, row_S=np.array([0, 4]), k=3, own=own).tolist()
        for own in (True, False)
    }
    assert found == {True: [[1, 0, 2]] * 2, False: [[1, 2, 3], [1, 0, 2]]}


def test_the_oracle_ranks_as_we_do():
    query_ND, positive_ND = clustered_pairs(700, dim=16, seed=0)
    alone_N, row_S = np.arange(700, dtype=np.int32), np.arange(0, 700, 3)
    table = rank(query_ND, positive_ND, group_N=alone_N, width=50)
    best_SK = oracle(query_ND, positive_ND, row_S=row_S, k=50, own=False)
    np.testing.assert_array_equal(table.neighbour_NM[row_S], best_SK)


def test_recall_counts_ids_and_exactness_counts_rows():
    best_SK = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found_SK = np.array([[1, 2, 3, 4], [6, 5, 7, 9]])
    assert bench._accuracy(found_SK, best_SK) == {"recall": 7 / 8, "ids_exact": 0.5}


@pytest.mark.slow
def test_every_method_is_measured(no_processes):
    told = []
    result = bench_neighbours(
        rows=800,
        dim=32,
        k=40,
        threads=1,
        seed=1,
        repeats=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert json.loads(json.dumps(result)) == result
    assert {key: result[key] for key in ("rows", "dim", "k", "threads", "seed", "repeats")} == {
        "rows": 800,
        "dim": 32,
        "k": 40,
        "threads": 1,
        "seed": 1,
        "repeats": 2,
    }
    machine, by_name = result["machine"], {row["method"]: row for row in result["results"]}
    assert machine["matmul_gflops"] > 0.1
    assert machine["cpus"] >= 1
    assert {"numpy", "torch"} <= set(machine["versions"])
    assert list(by_name) == list(METHODS)
    for row in by_name.values():
        assert 0 < row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        rate = 2e-9 * 800 * 800 * 32 / row["seconds"]
        assert row["share_of_matmul_rate"] == pytest.approx(rate / machine["matmul_gflops"])
        assert row["recall"] > 0.9
    assert by_name["b3 exact"]["recall"] == by_name["b3 exact"]["ids_exact"] == 1
    assert by_name["faiss.knn"]["recall"] > 0.999  # all but ties at rank k
    assert by_name["semantic_search"]["recall"] > 0.999
    assert by_name["semantic_search"]["ids_exact"] < 1  # its ties are in no order
    assert told == [(done, 15) for done in range(1, 11)]  # the last five are processes


def test_methods_take_turns_on_the_same_threads_and_a_wrong_one_shows(monkeypatch, no_processes):
    calls = []

    def method(name):
        def run(query_ND, positive_ND, k):
            calls.append((name, len(query_ND), faiss.omp_get_max_threads()))
            return query_ND

        return bench._Method(run, lambda _, row_S: np.tile(np.arange(9), (len(row_S), 1)), own=True)

    monkeypatch.setattr(bench, "METHODS", {"a": method("a"), "b": method("b")})
    before = faiss.omp_get_max_threads(), numba.get_num_threads()
    result = bench_neighbours(rows=1000, dim=8, k=9, threads=3, repeats=2)
    assert calls[:2] == [("a", 600, 3), ("b", 600, 3)]  # not timed
    assert calls[2:] == [("a", 1000, 3), ("b", 1000, 3)] * 2
    assert (faiss.omp_get_max_threads(), numba.get_num_threads()) == before
    for row in result["results"]:
        assert row["recall"] < 0.5
        assert row["ids_exact"] == 0


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own():
    ballast = np.ones(60 << 20)  # 480 MB that no child may be charged with
    result = bench_neighbours(rows=700, dim=8, k=5, repeats=1, methods=["faiss.knn", "b3 exact"])
    for row in result["results"]:
        assert 30 < row["peak_mb"] < 450
        assert 0 < row["peak_above_mb"] < row["peak_mb"]
    assert ballast[0] == 1
    assert bench.peak_mb() > 480


def test_a_process_that_fails_says_why():
    vectors = (np.zeros((4, 2), np.float32),) * 2
    with pytest.raises(RuntimeError, match=r"(?s)no such method failed in .*KeyError"):
        bench._peaks(["no such method"], vectors, k=1, threads=1, progress=lambda *_: None)


@pytest.mark.parametrize(
    "wrong", [{"k": 100}, {"k": 0}, {"repeats": 0}, {"dim": 0}, {"methods": ["annoy"]}]
)
def test_what_cannot_be_measured_is_refused(wrong):
    sizes = {"rows": 100, "dim": 8, "k": 5} | wrong
    with pytest.raises(ValueError, match="cannot bench 100 rows"):
        bench_neighbours(**sizes)
