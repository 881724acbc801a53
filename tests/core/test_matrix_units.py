"""The search by tiles of bf16, against every score; it runs on any CPU, only slower."""

import math

import numpy as np
import pytest

from b3_core import matrix_units, search
from b3_core.matrix_units import MatrixUnits
from b3_core.neighbours import rank
from tests.core.test_neighbours import (
    alone,
    assert_it_keeps_its_word,
    assert_same,
    brute_force_rank,
    crowded,
    halfway,
    random_pairs,
)


@pytest.fixture(autouse=True, params=[(7, 64), (1024, 8192)], ids=["small tiles", "whole"])
def tiles(request, monkeypatch):
    monkeypatch.setattr(matrix_units, "_QUERIES", request.param[0])
    monkeypatch.setattr(matrix_units, "_POSITIVES", request.param[1])


@pytest.fixture
def searched(monkeypatch):
    """Have all exact searches go to the matrix units first; the queries of each search by name."""
    calls = []
    whole, finer = MatrixUnits.propose, search.Faiss.propose

    def propose(self, query_BD, candidates, row_B):
        calls.append(("bf16", len(query_BD)))
        return whole(self, query_BD, candidates, row_B)

    def propose_finely(self, query_BD, candidates, row_B):
        calls.append(("fp32", len(query_BD)))
        return finer(self, query_BD, candidates, row_B)

    monkeypatch.setattr(MatrixUnits, "propose", propose)
    monkeypatch.setattr(search.Faiss, "propose", propose_finely)
    monkeypatch.setattr(search, "_AMX_ROWS", 0)
    monkeypatch.setattr(search, "has_amx", lambda: True)
    return calls


@pytest.mark.parametrize("width", [1, 30, 130])
def test_equals_brute_force(searched, width):
    query_ND, positive_ND = random_pairs(700, width=32, seed=width)
    group_N = np.random.default_rng(1).integers(0, 500, 700).astype(np.int32)
    table = rank(query_ND, positive_ND, group_N=group_N, width=width)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=group_N, width=width))
    assert searched[0] == ("bf16", 700)
    assert sum(queries for name, queries in searched if name == "fp32") < 200


def test_ties_and_crowds_that_bf16_cannot_tell_apart(searched):
    query_ND, positive_ND = crowded(900, offset=4, seed=7)
    query_ND[300:600], positive_ND[300:600] = query_ND[:300], positive_ND[:300]
    table = rank(query_ND, positive_ND, group_N=alone(900), width=100)
    assert_same(table, brute_force_rank(query_ND, positive_ND, group_N=alone(900), width=100))
    crowds = crowded(600, offset=60, seed=8)
    searched.clear()
    table = rank(*crowds, group_N=alone(600), width=100)
    assert_same(table, brute_force_rank(*crowds, group_N=alone(600), width=100))
    assert [name for name, _ in searched] == ["bf16", "fp32"]


def test_vectors_that_bf16_cannot_hold_are_ranked_exactly(searched):
    query_ND, positive_ND = random_pairs(300, seed=9)
    query_ND[3], positive_ND[5] = 3.4e38 * query_ND[3], 3.4e38 * positive_ND[5]  # both become inf
    query_ND, positive_ND = query_ND * np.float32(0.9999), positive_ND * np.float32(0.9999)
    table = rank(query_ND, positive_ND, group_N=alone(300), width=40)
    assert searched[0][0] == "bf16"
    with np.errstate(over="ignore"):
        expected = brute_force_rank(query_ND, positive_ND, group_N=alone(300), width=40)
    np.testing.assert_array_equal(table.neighbour_NM, expected.neighbour_NM)


@pytest.mark.parametrize(("query", "positive"), [(1e-19, 1e-19), (3e-20, 1e-19), (1, 1e-38)])
def test_vectors_so_short_that_products_are_nothing_are_ranked_exactly(searched, query, positive):
    rng = np.random.default_rng(1)
    query_ND, positive_ND = np.abs(rng.normal(size=(2, 200, 256))).astype(np.float32)
    query_ND, positive_ND = query_ND * np.float32(query), positive_ND * np.float32(positive)
    table = rank(query_ND, positive_ND, group_N=alone(200), width=10)
    expected = brute_force_rank(query_ND, positive_ND, group_N=alone(200), width=10)
    np.testing.assert_array_equal(table.neighbour_NM, expected.neighbour_NM)
    assert searched[0][0] == "bf16"


def test_sums_of_infinities_are_never_sure():
    query_ND, positive_ND = random_pairs(50)
    found = MatrixUnits(1e18 * positive_ND, memory_mb=1).propose(1e19 * query_ND, 5, np.arange(50))
    assert np.isinf(found.error_B).all()
    assert np.isinf(found.ceiling_B).all()


@pytest.mark.parametrize("kind", ["random", "long", "halfway", "negative", "one"])
@pytest.mark.parametrize("candidates", [3, 50, 399])
def test_no_score_is_further_off_than_it_says_and_none_left_out_is_better(kind, candidates):
    rng = np.random.default_rng(2)
    query_ND, positive_ND = rng.normal(size=(2, 400, 64)).astype(np.float32)
    if kind == "long":
        query_ND, positive_ND = 100 * query_ND, 0.01 * positive_ND
    elif kind == "halfway":
        query_ND = positive_ND = halfway(400)
    elif kind == "negative":  # every score is
        query_ND, positive_ND = np.abs(query_ND), -np.abs(positive_ND)
    elif kind == "one":  # ties that fill every place
        positive_ND[:] = positive_ND[0]
    found = MatrixUnits(positive_ND, memory_mb=1).propose(query_ND, candidates, np.arange(400))
    assert found.row_BC.shape == (400, min(math.ceil(1.5 * candidates), 400))
    assert all(len(set(row)) == len(row) and min(row) >= 0 for row in found.row_BC.tolist())
    assert (np.diff(found.score_BC, axis=1) <= 0).all()
    assert_it_keeps_its_word(found, query_ND, positive_ND)


def test_a_search_goes_where_it_pays(monkeypatch):
    _, positive_ND = random_pairs(40)
    monkeypatch.setattr(search, "_AMX_ROWS", 40)
    monkeypatch.setattr(search, "has_amx", lambda: True)
    assert isinstance(search.exact(positive_ND, memory_mb=1), MatrixUnits)
    assert isinstance(search.exact(positive_ND[:39].copy(), memory_mb=1), search.Faiss)
    monkeypatch.setattr(search, "has_amx", lambda: False)
    assert isinstance(search.exact(positive_ND, memory_mb=1), search.Faiss)
