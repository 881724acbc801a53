import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core import search
from b3_core.carried import Carried, parted
from b3_core.neighbours import rank
from tests.conftest import examples


def vectors(rng, rows, width=6):
    """Unit vectors on a coarse grid, so that many scores tie; stored as float16 holds them."""
    found = np.round(rng.normal(size=(rows, width)), 1) + 0.01
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def change(rng, before, *, gone, fresh, shuffled):
    """Return vectors and groups of now, and where each row was."""
    query_OD, positive_OD, group_O = before
    rows = len(group_O)
    stay = np.sort(rng.choice(rows, rows - gone, replace=False))
    before_N = np.concatenate([stay, np.full(fresh, -1)])
    if shuffled:
        before_N = rng.permutation(before_N)
    kept_N = before_N >= 0
    sides = []
    for side_OD in (query_OD, positive_OD):
        side_ND = vectors(rng, len(before_N))
        side_ND[kept_N] = side_OD[before_N[kept_N]]
        sides.append(side_ND)
    group_N = rng.integers(0, 40, len(before_N)).astype(np.int32)
    stays_N = kept_N & (rng.random(len(before_N)) < 0.95)  # the others change their group
    group_N[stays_N] = group_O[before_N[stays_N]]
    return *sides, group_N, before_N


def slow_parted(group_O, group_N, before_N):
    return [
        any(
            group_O[mine] == group_O[other] and group_N[i] != group_N[j]
            for j, other in enumerate(before_N)
            if mine >= 0 and other >= 0
        )
        for i, mine in enumerate(before_N)
    ]


@pytest.mark.parametrize("shuffled", [False, True])
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(2, 120),
    gone=st.integers(0, 12),
    fresh=st.integers(0, 12),
    width=st.integers(1, 20),
    spare=st.sampled_from([0, 3, 16]),
)
@settings(max_examples=examples(30), deadline=None)
def test_ranks_carried_over_are_those_of_a_full_run(
    shuffled, seed, rows, gone, fresh, width, spare
):
    rng = np.random.default_rng(seed)
    before = vectors(rng, rows), vectors(rng, rows), rng.integers(0, 40, rows).astype(np.int32)
    table = rank(*before[:2], group_N=before[2], width=width, spare=spare)
    for _ in range(2):  # and again, from what was carried over itself
        *now, before_N = change(
            rng, before, gone=min(gone, len(before[2]) - 1), fresh=fresh, shuffled=shuffled
        )
        parted_N = parted(before[2], now[2], before_N)
        assert parted_N.tolist() == slow_parted(before[2], now[2], before_N)
        ahead = Carried(table, width, before_N, parted_N)
        table = rank(*now[:2], group_N=now[2], width=width, spare=spare, ahead=ahead)
        whole = rank(*now[:2], group_N=now[2], width=width, spare=spare)
        wanted = min(width, len(now[2]) - 1)
        assert (table.neighbour_NM[:, :wanted] == whole.neighbour_NM[:, :wanted]).all()
        assert (table.score_NM[:, :wanted] == whole.score_NM[:, :wanted]).all()
        every = rank(*now[:2], group_N=now[2], width=width + spare)
        for spared in (table, whole):  # what is spare is right as far as it goes
            held_NM = spared.neighbour_NM >= 0
            assert (spared.neighbour_NM[held_NM] == every.neighbour_NM[held_NM]).all()
        before = now


def test_few_rows_are_searched_among_all(monkeypatch):
    """One in a hundred changed: the search of all sees the fresh rows, and hardly any other."""
    rng = np.random.default_rng(0)
    rows, seen = 3000, []
    before = tuple(
        (side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float16)
        for side in rng.normal(size=(2, rows, 32))
    )
    group_O = np.arange(rows, dtype=np.int32)
    table = rank(*before, group_N=group_O, width=50, spare=16)

    class Counting(search.Faiss):
        def propose(self, query_BD, candidates, row_B):
            if len(self.positive_ND) == rows:
                seen.extend(row_B.tolist())
            return super().propose(query_BD, candidates, row_B)

    monkeypatch.setattr(search, "Faiss", Counting)
    fresh_F = np.sort(rng.choice(rows, 30, replace=False))
    before_N = np.arange(rows)
    before_N[fresh_F] = -1
    now = [side.copy() for side in before]
    for side in now:
        side[fresh_F] = np.roll(side[fresh_F], 1, axis=0)
    carried = Carried(table, 50, before_N, np.zeros(rows, bool))
    found = rank(*now, group_N=group_O, width=50, spare=16, ahead=carried)
    assert set(fresh_F) <= set(seen)
    assert len(set(seen)) < 40
    assert (found.neighbour_NM[:, :50] == rank(*now, group_N=group_O, width=50).neighbour_NM).all()
