import dataclasses
import tracemalloc
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from b3_core.batches import BatchPlan
from b3_core.negatives import Negatives, _pools, draw_negatives
from b3_core.neighbours import RankTable
from tests.conftest import examples


def table_of(ranked, width):
    """Ranks from a list of rows each, filled up with -1."""
    row_NM = np.full((len(ranked), width), -1, np.int32)
    for i, rows in enumerate(ranked):
        row_NM[i, : min(len(rows), width)] = rows[:width]
    score_NM = np.where(row_NM >= 0, -np.arange(width, dtype=np.float32), -np.inf)
    return RankTable(row_NM, score_NM.astype(np.float32))


def plan_of(batches, datasets=None, *, community=0):
    row_SB = np.array(batches, np.int32)
    count = len(row_SB)
    dataset_SB = np.array(datasets or [0] * count, np.int16)
    if dataset_SB.ndim == 1:
        dataset_SB = np.repeat(dataset_SB[:, None], row_SB.shape[1], axis=1)
    return BatchPlan(
        row_SB,
        dataset_SB,
        np.zeros(count, np.int16),
        np.full(row_SB.shape, community, np.int32),
        np.empty((0, 3), np.int32),
    )


def draw(plan, *, h, seed=0, **of):
    return draw_negatives(plan, h=h, rng=np.random.default_rng(seed), **of)


def test_a_dataset_without_ranks_has_no_negatives():
    plan = plan_of([[0, 1], [0, 1]], [0, 1])
    of = {
        "ranks": [None, table_of([[2, 1], [2, 0], [0, 1]], 2)],
        "group_of": [np.array([0, 1], np.int32), np.arange(3, dtype=np.int32)],
        "p_of": [30, 0],
        "m": 2,
    }
    negatives = draw(plan, h=1, **of)
    assert negatives.row_SBH[0].tolist() == [[-1], [-1]]
    assert sorted(negatives.row_SBH[1].ravel().tolist()) == [-1, 2]
    negatives.check(plan, **of)
    wrong = Negatives(np.array([[[0], [-1]], negatives.row_SBH[1].tolist()], np.int32))
    with pytest.raises(ValueError, match="batch 0, slot 0, negative 0: 0 is of a member's group"):
        wrong.check(plan, **of)


def case_of(seed):
    """A plan of random batches over one to three datasets, with the arguments for drawing."""
    rng = np.random.default_rng(seed)
    m, size = int(rng.integers(0, 12)), int(rng.integers(1, 6))
    ranks, group_of, p_of, batches, datasets = [], [], [], [], []
    for dataset in range(rng.integers(1, 4)):
        rows = int(rng.integers(size, 40))
        group_N = rng.integers(0, rng.choice([2, 10, 10_000]), rows).astype(np.int32)
        p = int(rng.integers(0, 5))
        # Without taste there is no overlap of windows: rows with small numbers are liked by all.
        taste_NN = np.arange(rows) * rng.choice([0.0, 0.1, 1.0]) + rng.normal(size=(rows, rows))
        ranked = [
            [j for j in np.argsort(taste_NN[i]).tolist() if group_N[j] != group_N[i]]
            for i in range(rows)
        ]
        ranks.append(table_of(ranked, min(p + m, rows - 1) + int(rng.integers(0, 3))))
        group_of.append(group_N)
        p_of.append(p)
        for _ in range(rng.integers(1, 4)):
            batches.append(rng.permutation(rows)[:size])
            datasets.append(dataset)
    order = rng.permutation(len(batches))
    plan = plan_of(
        [batches[s] for s in order],
        [datasets[s] for s in order],
        community=int(rng.integers(-1, 1)),
    )
    return plan, {"ranks": ranks, "group_of": group_of, "p_of": p_of, "m": m}


def candidates(plan, s, *, ranks, group_of, p_of, m):
    """The slow twin: candidate row -> how many windows of batch s hold it."""
    dataset, members = plan.dataset_S[s], plan.row_SB[s].tolist()
    ranked = ranks[dataset].neighbour_NM.tolist()
    p, group_N = p_of[dataset], group_of[dataset].tolist()
    near = {j for i in members for j in ranked[i][:p]}
    own = {group_N[i] for i in members}
    held = Counter(j for i in members for j in ranked[i][p : p + m] if j >= 0)
    return {j: n for j, n in held.items() if j not in near and group_N[j] not in own}


SEEDS = st.integers(0, 2**32)


@given(seed=SEEDS, h=st.integers(0, 5))
@settings(max_examples=examples(250), deadline=None)
def test_the_contract_holds_whatever_comes_in(seed, h):
    plan, of = case_of(seed)
    negatives = draw(plan, h=h, seed=seed, **of)
    negatives.check(plan, **of)
    assert negatives.row_SBH.shape == (*plan.row_SB.shape, h)
    empty = 0
    for s, row_BH in enumerate(negatives.row_SBH):
        group_N = of["group_of"][plan.dataset_S[s]]
        may = candidates(plan, s, **of)
        drawn = row_BH[row_BH != -1].tolist()
        assert set(drawn) <= set(may)
        assert len({group_N[j] for j in drawn}) == len(drawn)
        assert len(drawn) == min(row_BH.size, len({group_N[j] for j in may}))
        # Column by column: all full, then one that may be partly full, then all empty.
        full_H = (row_BH != -1).sum(axis=0).tolist()
        whole, part = divmod(len(drawn), len(row_BH))
        assert full_H == ([len(row_BH)] * whole + [part] + [0] * h)[:h]
        empty += row_BH.size - len(drawn)
    assert negatives.shortage == empty


def test_rows_of_two_datasets_in_a_batch_have_negatives_of_their_own():
    """What is drawn for a dataset's part of a batch passes as a batch of its own, and no other."""
    forth, back = (
        [[(i + way * j) % 12 for j in range(1, 12)] for i in range(12)] for way in (1, -1)
    )
    of = {
        "ranks": [table_of(forth, 11), table_of(back, 11)],
        "group_of": [np.arange(12, dtype=np.int32)] * 2,
        "p_of": [1, 2],
        "m": 5,
    }
    rows, datasets = [[0, 3, 5, 3, 8, 0]], [[0, 1, 0, 0, 1, 1]]
    plan = plan_of(rows, datasets, community=-1)
    negatives = draw(plan, h=2, **of)
    negatives.check(plan, **of)
    assert (negatives.row_SBH >= 0).sum() > 8
    for dataset in (0, 1):
        part = [b for b in range(6) if datasets[0][b] == dataset]
        alone = plan_of([[rows[0][b] for b in part]], [dataset], community=-1)
        Negatives(negatives.row_SBH[:, part]).check(alone, **of)
    swapped = plan_of(rows, [[1, 0, 1, 1, 0, 0]], community=-1)
    with pytest.raises(ValueError, match="batch 0, slot"):
        negatives.check(swapped, **of)


@given(seed=SEEDS)
@settings(max_examples=examples(50), deadline=None)
def test_one_batch_leaves_no_mark_on_the_next(seed):
    """A pool that has drawn and checked batches does with any as one that never saw another."""
    plan, of = case_of(seed)
    used = _pools(plan, **of)
    for s, member_B in enumerate(plan.row_SB):
        pool, fresh = (pools[plan.dataset_S[s]] for pools in (used, _pools(plan, **of)))
        drawn_BH, expected_BH = (
            each.draw(member_B, 3, rng=np.random.default_rng(s)) for each in (pool, fresh)
        )
        assert np.array_equal(drawn_BH, expected_BH)
        other_BH = np.roll(drawn_BH, 1)
        assert pool.fault(member_B, other_BH) == fresh.fault(member_B, other_BH)
        assert not pool.marked_N.any()


def test_a_batch_costs_memory_by_its_own_rows():
    rows = 200_000
    neighbour_NM = (np.arange(rows)[:, None] + np.arange(1, 9)) % rows
    score_NM = np.broadcast_to(-np.arange(8, dtype=np.float32), neighbour_NM.shape)
    of = {
        "ranks": [RankTable(neighbour_NM.astype(np.int32), score_NM)],
        "group_of": [np.arange(rows, dtype=np.int32)],
        "p_of": [2],
        "m": 6,
    }
    plan = plan_of([[0, 50], [7, 90]])
    (pool,) = _pools(plan, **of)
    for s, member_B in enumerate(plan.row_SB):
        tracemalloc.start()
        drawn_BH = pool.draw(member_B, 2, rng=np.random.default_rng(0))
        assert pool.fault(member_B, drawn_BH) is None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (peak < rows) == (s > 0)  # what the first makes is the pool's


def test_the_random_cases_hold_what_they_are_there_for():
    seen = Counter()
    for seed in range(100):
        plan, of = case_of(seed)
        seen["random"] += bool((plan.community_SB == -1).all())
        for s, members in enumerate(plan.row_SB):
            dataset = plan.dataset_S[s]
            p, group_N = of["p_of"][dataset], of["group_of"][dataset]
            may = candidates(plan, s, **of)
            groups = len({group_N[j] for j in may})
            window = of["ranks"][dataset].neighbour_NM[members, p : p + of["m"]]
            near = of["ranks"][dataset].neighbour_NM[members, :p]
            seen["none"] += not may
            seen["short"] += 0 < groups < 2 * len(members)
            seen["plenty"] += groups >= 2 * len(members)
            seen["same group"] += groups < len(may)
            seen["repeated member group"] += len(set(group_N[members])) < len(members)
            seen["overlap"] += max(may.values(), default=0) > 1
            seen["padded"] += bool((window == -1).any())
            seen["too near"] += bool(set(window.ravel()) & set(near.ravel()) - {-1})
            seen["member in a window"] += bool(set(window.ravel()) & set(members))
    assert min(seen.values()) >= 20, seen


@given(seed=SEEDS, h=st.integers(1, 5))
@settings(max_examples=examples(60), deadline=None)
def test_fewer_negatives_are_the_first_columns_of_more(seed, h):
    plan, of = case_of(seed)
    fewer, more = draw(plan, h=h, **of).row_SBH, draw(plan, h=h + 1, **of).row_SBH
    assert np.array_equal(fewer, more[:, :, :h])


# Members 0 and 1, p = 1, m = 4. Member 0 ranks 2 first, member 1 ranks 3 first, so neither serves,
# though each is in the other's window; 11 is of 0's group. What is left: 4, 5, and 6 or 7, which
# are of one group (6 is in both windows). Three candidates for four slots.
RANKED = [[2, 3, 4, 6, 7], [3, 5, 6, 2, 11], *([0, 1, 8, 9, 10] for _ in range(5))]
RANKED += [[1, 2, 3, 4, 5] for _ in range(5)]
GROUP_N = np.array([0, 1, 2, 3, 4, 5, 6, 6, 8, 9, 10, 0], np.int32)
HAND = {"ranks": [table_of(RANKED, 5)], "group_of": [GROUP_N], "p_of": [1], "m": 4}


def test_shortage_by_hand():
    plan = plan_of([[0, 1]] * 300)
    assert candidates(plan, 0, **HAND) == {4: 1, 5: 1, 6: 2, 7: 1}
    negatives = draw(plan, h=2, **HAND)
    assert negatives.shortage == 300
    drawn = Counter(tuple(sorted(row_BH.ravel().tolist())) for row_BH in negatives.row_SBH)
    assert set(drawn) == {(-1, 4, 5, 6), (-1, 4, 5, 7)}
    assert 170 <= drawn[-1, 4, 5, 6] <= 230  # two in three
    assert (negatives.row_SBH[:, :, 0] >= 0).all()
    assert draw(plan, h=1, **HAND).shortage == 0
    assert draw(plan, h=3, **HAND).shortage == 300 * 3


def test_batches_with_few_candidates_or_none():
    """Four rows, p = 1: each but 3 is ranked first by some row."""
    ranked = [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    of = {"ranks": [table_of(ranked, 3)], "group_of": [np.arange(4, dtype=np.int32)], "p_of": [1]}
    negatives = draw(plan_of([[0, 2], [0, 1]]), h=2, m=2, **of)
    assert sorted(negatives.row_SBH[0].ravel().tolist()) == [-1, -1, -1, 3]
    assert negatives.row_SBH[1].ravel().tolist() in ([2, -1, 3, -1], [3, -1, 2, -1])
    everybody = draw(plan_of([[0, 1, 2, 3]]), h=2, m=2, **of)
    no_window = draw(plan_of([[0, 2]]), h=2, m=0, **of)
    assert (everybody.row_SBH == -1).all()
    assert (no_window.row_SBH == -1).all()


def sets_drawn(held, group_N, draws):
    """Probability of each set of rows: one draw after another, a group at most once."""
    chance = {frozenset(): 1.0}
    for _ in range(draws):
        after = defaultdict(float)
        for drawn, before in chance.items():
            gone = {group_N[j] for j in drawn}
            left = {j: n for j, n in held.items() if group_N[j] not in gone}
            for j, n in left.items():
                after[drawn | {j}] += before * n / sum(left.values())
        chance = after
    return chance


def test_the_distribution_is_that_of_drawing_one_by_one():
    """Three members; 4 is in three windows, 5, 6 and 8 in two; 9 and 10 are of one group."""
    ranked = [[3, 4, 5, 6, 7], [3, 4, 5, 8, 9], [3, 4, 6, 8, 10], *([0] for _ in range(8))]
    group_N = np.array([*range(10), 9], np.int32)
    of = {"ranks": [table_of(ranked, 5)], "group_of": [group_N], "p_of": [1], "m": 4}
    plan = plan_of([[0, 1, 2]] * 10_000)
    held = candidates(plan, 0, **of)
    assert held == {4: 3, 5: 2, 6: 2, 7: 1, 8: 2, 9: 1, 10: 1}
    expected = sets_drawn(held, group_N, 3)
    assert len(expected) == 30
    assert sum(expected.values()) == pytest.approx(1)
    negatives = draw(plan, h=2, **of)
    seen = Counter(frozenset(row_B) for row_B in negatives.row_SBH[:, :, 0].tolist())
    assert set(seen) == set(expected)
    keys = list(expected)
    result = chisquare([seen[key] for key in keys], [10_000 * expected[key] for key in keys])
    assert result.pvalue > 0.01
    assert negatives.shortage == 0


def test_most_negatives_are_beside_a_member_that_holds_them():
    """Eight windows without overlap: a column of eight draws meets 8 (1 - (7/8)^8) = 5.25."""
    ranked = [list(range(8 + 50 * i, 58 + 50 * i)) for i in range(8)] + [[]] * 400
    of = {"group_of": [np.arange(408, dtype=np.int32)], "p_of": [0], "m": 50}
    negatives = draw(plan_of([range(8)] * 100), h=4, ranks=[table_of(ranked, 50)], **of)
    holder_SBH = (negatives.row_SBH - 8) // 50
    own = (holder_SBH == np.arange(8)[:, None]).mean()
    assert own == pytest.approx(1 - (7 / 8) ** 8, abs=0.03)


def test_random_epochs_get_negatives_all_the_same():
    plan, of = case_of(3)
    mined, at_random = (
        dataclasses.replace(plan, community_SB=np.full_like(plan.row_SB, community))
        for community in (0, -1)
    )
    drawn = draw(at_random, h=2, **of).row_SBH
    assert (drawn >= 0).any()
    assert np.array_equal(drawn, draw(mined, h=2, **of).row_SBH)


def test_each_dataset_has_its_own_ranks_groups_and_p():
    """The same batch of rows, of four datasets that differ in one of these."""
    ranked = [[1, 2, 3, 4], [0], [0], [0], [0], [0]]
    other = [[1, 5, 3, 4], [0], [0], [0], [0], [0]]
    single, shared = np.arange(6, dtype=np.int32), np.array([0, 1, 2, 3, 0, 5], np.int32)
    of = {
        "ranks": [table_of(rows, 5) for rows in (ranked, other, ranked, ranked)],
        "group_of": [single, single, shared, single],
        "p_of": [0, 0, 0, 2],
    }
    plan = plan_of([[0]] * 4, [0, 1, 2, 3])
    negatives = draw(plan, h=4, m=4, **of)
    negatives.check(plan, m=4, **of)
    drawn = [sorted(row_BH.ravel().tolist()) for row_BH in negatives.row_SBH]
    assert drawn == [[1, 2, 3, 4], [1, 3, 4, 5], [-1, 1, 2, 3], [-1, -1, 3, 4]]


def test_seeds():
    plan, of = case_of(3)
    one, same, other = (draw(plan, h=2, seed=seed, **of).row_SBH for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert (one != other).any()


def test_no_negatives_take_nothing_from_the_generator():
    plan, of = case_of(3)
    rng = np.random.default_rng(0)
    negatives = draw_negatives(plan, h=0, rng=rng, **of)
    assert negatives.row_SBH.shape == (*plan.row_SB.shape, 0)
    assert negatives.shortage == 0
    negatives.check(plan, **of)
    assert rng.random() == np.random.default_rng(0).random()


def test_at_the_scale_of_the_defaults():
    rows, size = 20_000, 64
    rng = np.random.default_rng(0)
    offset_M = rng.choice(np.arange(1, rows), 130, replace=False)
    row_NM = (np.arange(rows)[:, None] + offset_M) % rows
    score_NM = np.broadcast_to(-np.arange(130, dtype=np.float32), row_NM.shape)
    of = {
        "ranks": [RankTable(row_NM.astype(np.int32), score_NM)],
        "group_of": [rng.integers(0, 15_000, rows).astype(np.int32)],
        "p_of": [30],
        "m": 100,
    }
    plan = plan_of(rng.permutation(rows)[: rows // size * size].reshape(-1, size))
    negatives = draw(plan, h=5, **of)
    negatives.check(plan, **of)
    assert negatives.shortage == 0


# The hand case twice, and a batch of another dataset between them, whose rows would not serve here.
TABLE_3 = table_of([[1, 2], [2, 0], [0, 1], [0, 1]], 3)
BOTH = {
    "ranks": [*HAND["ranks"], TABLE_3],
    "group_of": [GROUP_N, np.arange(4, dtype=np.int32)],
    "p_of": [1, 0],
    "m": 4,
}
PLAN = plan_of([[0, 1], [0, 3], [0, 1]], [0, 1, 0])
SOUND = np.array([[[4, 6], [5, -1]], [[1, -1], [2, -1]], [[5, 4], [7, -1]]], np.int32)


def test_check_accepts_what_the_faults_are_put_into():
    Negatives(SOUND).check(PLAN, **BOTH)
    assert Negatives(SOUND).shortage == 4


FAULTS = {
    "a row that is not there": ((0, 0, 0), 12, "batch 0, slot 0, negative 0: 12 is no row of 12"),
    "a row of another dataset": ((1, 1, 0), 4, "batch 1, slot 1, negative 0: 4 is no row of 4"),
    "a negative number": ((0, 0, 1), -2, "batch 0, slot 0, negative 1: -2 is no row of 12"),
    "too near another member": ((2, 1, 0), 3, "batch 2, slot 1, negative 0: 3 is too near"),
    "too near its own member": ((0, 0, 0), 2, "batch 0, slot 0, negative 0: 2 is too near"),
    "a member": ((1, 0, 0), 3, "batch 1, slot 0, negative 0: 3 is of a member's group"),
    "of a member's group": ((0, 1, 0), 11, "batch 0, slot 1, negative 0: 11 is of a member's gr"),
    "in no window": ((0, 1, 0), 8, "batch 0, slot 1, negative 0: 8 is in no member's window"),
    "a row twice": ((0, 1, 1), 4, "batch 0, slot 1, negative 1: 4 is of the group of an earlier"),
    "a group twice": ((0, 1, 1), 7, "batch 0, slot 1, negative 1: 7 is of the group of an earl"),
    "too few": ((0, 0, 1), -1, "batch 0, slot 0, negative 1: -1 is no row, but 3 slots can"),
    "none": ((1,), -1, "batch 1, slot 0, negative 0: -1 is no row, but 2 slots can"),
    "unevenly few": ((0, 1), [-1, 5], "batch 0, slot 1, negative 0: -1 is no row, but a member"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_the_fault(fault):
    index, value, message = FAULTS[fault]
    row_SBH = SOUND.copy()
    row_SBH[index] = value
    with pytest.raises(ValueError, match=message):
        Negatives(row_SBH).check(PLAN, **BOTH)


def test_check_names_the_first_of_several_faults():
    row_SBH = SOUND.copy()
    row_SBH[2, 0, 0], row_SBH[0, 1, 1], row_SBH[0, 1, 0] = 12, 12, 8
    with pytest.raises(ValueError, match="batch 0, slot 1, negative 0: 8 is in no"):
        Negatives(row_SBH).check(PLAN, **BOTH)


@given(seed=SEEDS)
@settings(max_examples=examples(50), deadline=None)
def test_check_refuses_any_row_that_cannot_stand_there(seed):
    """One drawn row exchanged for any row that is no candidate, or whose group is there."""
    plan, of = case_of(seed)
    row_SBH = draw(plan, h=2, seed=seed, **of).row_SBH
    rng = np.random.default_rng(seed)
    s, b, h = (int(rng.integers(size)) for size in row_SBH.shape)
    group_N = of["group_of"][plan.dataset_S[s]]
    there = {group_N[j] for j in np.delete(row_SBH[s].ravel(), b * 2 + h) if j >= 0}
    may = candidates(plan, s, **of)
    for j in range(len(group_N)):
        if j not in may or group_N[j] in there:
            wrong_SBH = row_SBH.copy()
            wrong_SBH[s, b, h] = j
            with pytest.raises(ValueError, match=f"batch {s}, slot"):
                Negatives(wrong_SBH).check(plan, **of)


REFUSED = {
    "h": ({"h": -1}, "cannot draw -1"),
    "m": ({"m": -1}, r"ranks \[1, 0\) are not in"),
    "p": ({"p_of": [-1]}, r"ranks \[-1, 3\) are not in"),
    "ranks that end too early": ({"m": 5}, r"ranks \[1, 6\) are not in a table of 5 ranks"),
    "p of another dataset": ({"p_of": [1, 1]}, r"p of \[1, 1\]"),
    "groups of no dataset": ({"group_of": []}, "groups of 0"),
    "groups of other rows": ({"group_of": [GROUP_N[1:]]}, r"ranks of 12 rows, but groups of \(11,"),
    "no such dataset": ({"plan": plan_of([[0], [0]], [0, 1])}, "batch 1 is of none of the 1"),
    "a negative dataset": ({"plan": plan_of([[0]], [-1])}, "batch 0 is of none of the 1"),
    "a member that is not there": ({"plan": plan_of([[0], [12]])}, "batch 1 has a row .* 12"),
    "a negative member": ({"plan": plan_of([[-1]])}, "batch 0 has a row"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_arguments_that_do_not_fit_are_refused(what):
    changed, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        draw(**{"plan": plan_of([[0, 1]]), "h": 2, **HAND, **changed})


def test_a_short_table_is_enough_where_there_are_no_more_rows():
    ranked = [[1, 2], [0, 2], [0, 1]]
    of = {"ranks": [table_of(ranked, 2)], "group_of": [np.arange(3, dtype=np.int32)], "p_of": [1]}
    assert draw(plan_of([[0]]), h=2, m=100, **of).row_SBH.tolist() == [[[2, -1]]]


def test_check_refuses_negatives_of_other_batches():
    with pytest.raises(ValueError, match="but batches"):
        Negatives(SOUND[:2]).check(PLAN, **BOTH)


@pytest.mark.parametrize("row_SBH", [SOUND[0], SOUND.astype(np.int64)])
def test_arrays_of_another_type_are_refused(row_SBH):
    with pytest.raises(ValueError, match="is no int32 of"):
        Negatives(row_SBH)
