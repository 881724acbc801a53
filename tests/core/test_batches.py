import dataclasses
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core.batches import BatchPlan, plan_batches
from b3_core.communities import Partition
from b3_core.config import BatchSpec, Phase
from b3_core.errors import InputError
from b3_core.parting import LOOK, PASSES, part_groups
from tests.conftest import examples


def partition_of(rows, k, seed=0):
    label_N = np.empty(rows, np.int32)
    label_N[np.random.default_rng(seed).permutation(rows)] = np.arange(rows) // k
    return Partition(label_N, k=k, moved=0, objective=0.0)


def curriculum_of(epochs, random_epochs):
    """Random epochs first, then mined ones."""
    phases = [Phase(epochs=random_epochs, random_share=1)] if random_epochs else []
    return (*phases, *([Phase(epochs=epochs - random_epochs)] if epochs > random_epochs else []))


def plan_of(partitions, *, group_of=None, seed=0, epochs=3, random_epochs=1, **spec):
    if group_of is None:
        group_of = [np.arange(len(part.label_N), dtype=np.int32) for part in partitions]
    spec.setdefault("curriculum", curriculum_of(epochs, random_epochs))
    return plan_batches(
        [[part] for part in partitions],
        group_of=group_of,
        spec=BatchSpec(**spec),
        rng=np.random.default_rng(seed),
    )


def left_of(plan, epoch, dataset=0):
    return [row for e, d, row in plan.left_out.tolist() if (e, d) == (epoch, dataset)]


@st.composite
def cases(draw):
    k = draw(st.integers(2, 6))
    size = k * draw(st.integers(1, 4))
    epochs = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    sizes = [size + draw(st.integers(0, 4 * size)) for _ in range(draw(st.integers(1, 3)))]
    return {
        "partitions": [partition_of(rows, k, seed + i) for i, rows in enumerate(sizes)],
        "group_of": [
            rng.integers(0, draw(st.sampled_from([1, 5, rows, 10_000])), rows).astype(np.int32)
            for rows in sizes
        ],
        "seed": seed,
        "batch_size": size,
        "epochs": epochs,
        "random_epochs": draw(st.integers(0, epochs)),
    }


@given(case=cases())
@settings(max_examples=examples(150), deadline=None)
def test_the_contract_holds_whatever_comes_in(case):
    plan = plan_of(**case)
    sizes = [len(part.label_N) for part in case["partitions"]]
    plan.check(sizes)
    assert [a.dtype.name for a in (plan.row_SB, plan.dataset_S, plan.epoch_S)] == [
        "int32",
        "int16",
        "int16",
    ]
    assert plan.community_SB.dtype == plan.left_out.dtype == np.int32
    assert plan.row_SB.shape == plan.community_SB.shape
    assert plan.row_SB.shape[1] == case["batch_size"]
    duplicates = 0
    for epoch in range(case["epochs"]):
        for dataset, rows in enumerate(sizes):
            mine = (plan.epoch_S == epoch) & (plan.dataset_S == dataset)
            left = left_of(plan, epoch, dataset)
            assert sorted(plan.row_SB[mine].ravel().tolist() + left) == list(range(rows))
            assert len(left) == rows % case["batch_size"]
            assert not set(left) & set(left_of(plan, epoch - 1, dataset))
            for batch, communities in zip(
                plan.row_SB[mine].tolist(), plan.community_SB[mine].tolist(), strict=True
            ):
                groups = case["group_of"][dataset][batch].tolist()
                duplicates += len(groups) - len(set(groups))
                if epoch < case["random_epochs"]:
                    assert set(communities) == {-1}
                else:
                    label_N = case["partitions"][dataset].label_N
                    assert communities == label_N[batch].tolist()
    assert plan.duplicates == duplicates


@given(case=cases())
@settings(max_examples=examples(60), deadline=None)
def test_mined_batches_are_whole_communities_but_one_an_epoch(case):
    """Only the short community may fill up with rows of another one, which is then incomplete."""
    plan = plan_of(**{**case, "random_epochs": 0})
    for epoch in range(case["epochs"]):
        for dataset, part in enumerate(case["partitions"]):
            mine = (plan.epoch_S == epoch) & (plan.dataset_S == dataset)
            sizes = Counter(plan.community_SB[mine].ravel().tolist())
            broken = {c: size for c, size in sizes.items() if size != part.k}
            remainder = len(part.label_N) % part.k
            if broken:
                assert sorted(broken.values()) == sorted([remainder, part.k - remainder])
                assert max(part.label_N) in broken


@pytest.mark.parametrize("random_epochs", [0, 4])
@pytest.mark.parametrize("rows", [10, 11, 26, 29])
def test_every_epoch_leaves_out_any_row_as_often_as_another(rows, random_epochs):
    """Those of the short community too: 2 of 10 rows, 3 of 11, 2 of 26, 5 of 29, in 400 plans."""
    part = partition_of(rows, 4)
    size = 8 if rows > 20 else 4
    plans = [
        plan_of([part], batch_size=size, epochs=4, random_epochs=random_epochs, seed=seed)
        for seed in range(400)
    ]
    for epoch in range(4):
        left = np.concatenate([left_of(plan, epoch) for plan in plans])
        assert len(left) == 400 * (rows % size)
        times_N = np.bincount(left, minlength=rows)
        short_N = part.label_N == rows // 4
        expected = 400 * (rows % size) / rows  # each row has a deviation of its root, or less
        for mine_N in (short_N, ~short_N):
            assert abs(times_N[mine_N].mean() - expected) < 4 * np.sqrt(expected)


def test_what_one_epoch_leaves_out_beside_the_short_community_is_one_community_s():
    part = partition_of(10, 4)
    for seed in range(20):
        plan = plan_of([part], batch_size=4, epochs=4, random_epochs=0, seed=seed)
        left = [left_of(plan, epoch) for epoch in range(4)]
        assert all(len(rows) == 2 and len(set(part.label_N[rows])) == 1 for rows in left)
        assert plan.left_out[:, 2].tolist() == sum(left, [])


def across(sizes, *, size, epochs, group_of, seed):
    return plan_of(
        [partition_of(rows, 2, seed) for rows in sizes],
        group_of=group_of,
        batch_size=size,
        mixing="across",
        epochs=epochs,
        random_epochs=epochs,
        seed=seed,
    )


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    groups=st.sampled_from([1, 5, 10_000]),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=examples(150), deadline=None)
def test_batches_across_datasets_hold_every_row_once_an_epoch(sizes, groups, epochs, seed):
    size = min(8, sum(sizes) // 2 * 2) or 2
    rng = np.random.default_rng(seed)
    group_of = [rng.integers(0, groups, rows).astype(np.int32) for rows in sizes]
    if sum(sizes) < size:
        return
    plan = across(sizes, size=size, epochs=epochs, group_of=group_of, seed=seed)
    plan.check(sizes)
    assert plan.count_duplicates(group_of) == plan.duplicates
    assert (plan.community_SB == -1).all()
    everything = {(d, row) for d, rows in enumerate(sizes) for row in range(rows)}
    before = set()
    for epoch in range(epochs):
        left = {(d, row) for e, d, row in plan.left_out.tolist() if e == epoch}
        mine = plan.epoch_S == epoch
        batches = [
            list(zip(dataset_B.tolist(), row_B.tolist(), strict=True))
            for dataset_B, row_B in zip(plan.dataset_SB[mine], plan.row_SB[mine], strict=True)
        ]
        assert len(batches) == sum(sizes) // size
        assert Counter(sum(batches, [])) == Counter(everything - left)
        assert not left & before
        before = left
        # No group is twice in a batch, unless it has more rows than there are batches.
        group_batches = [Counter((d, group_of[d][row]) for d, row in batch) for batch in batches]
        total = sum(group_batches, Counter())
        for counts in group_batches:
            for group, count in counts.items():
                assert count == 1 or total[group] > len(batches)


def test_a_batch_across_datasets_has_rows_of_each_by_its_size():
    sizes = [3000, 1000]
    group_of = [np.arange(rows, dtype=np.int32) for rows in sizes]
    plan = across(sizes, size=40, epochs=1, group_of=group_of, seed=0)
    share_S = (plan.dataset_SB == 0).mean(axis=1)
    assert share_S.mean() == pytest.approx(0.75)
    assert 0.04 < share_S.std() < 0.1  # binomial: 0.068
    with pytest.raises(ValueError, match="several datasets"):
        _ = plan.dataset_S
    with pytest.raises(ValueError, match="epoch 0, dataset 0: row 0 is there 2 times"):
        moved_SB = np.where(plan.row_SB == 0, 0, plan.dataset_SB).astype(np.int16)
        dataclasses.replace(plan, dataset_SB=moved_SB).check(sizes)


def test_check_refuses_to_leave_out_a_batch_of_several_datasets():
    sizes = [12, 12]
    group_of = [np.arange(rows, dtype=np.int32) for rows in sizes]
    plan = across(sizes, size=8, epochs=1, group_of=group_of, seed=1)
    gone = sorted(zip(plan.dataset_SB[-1].tolist(), plan.row_SB[-1].tolist(), strict=True))
    assert len({dataset for dataset, _ in gone}) == 2
    fewer = BatchPlan(
        plan.row_SB[:-1],
        plan.dataset_SB[:-1],
        plan.epoch_S[:-1],
        plan.community_SB[:-1],
        np.array([[0, *each] for each in gone], np.int32),
    )
    with pytest.raises(ValueError, match="epoch 0: 8 rows left out would fill a batch"):
        fewer.check(sizes)


def test_every_epoch_groups_its_communities_anew():
    plan = plan_of([partition_of(64, 4)], batch_size=8, epochs=3, random_epochs=0)
    together = [
        {frozenset(batch) for batch in plan.community_SB[plan.epoch_S == epoch].tolist()}
        for epoch in range(3)
    ]
    assert together[0] != together[1] != together[2] != together[0]


def test_batches_of_datasets_are_shuffled_together():
    sizes = [256, 128]
    plan = plan_of([partition_of(rows, 4) for rows in sizes], batch_size=8, epochs=2)
    first = plan.dataset_S[plan.epoch_S == 0]
    assert np.bincount(first).tolist() == [32, 16]
    assert (np.diff(first) != 0).sum() > 10
    plan.check(sizes)
    with pytest.raises(ValueError, match="dataset"):
        plan.check(sizes[:1])


def test_seeds():
    one, same, other = (
        plan_of([partition_of(60, 4)], batch_size=8, epochs=2, seed=seed) for seed in (0, 0, 1)
    )
    for field in dataclasses.fields(BatchPlan):
        a, b = getattr(one, field.name), getattr(same, field.name)
        assert np.array_equal(a, b), field.name
    assert (one.row_SB != other.row_SB).any()


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_kept_apart_where_there_is_room(seed):
    """Four rows a group, a row of it in each of four communities: 16 batches have room."""
    label_N = np.arange(512, dtype=np.int32) % 64
    group_N = np.random.default_rng(seed).permutation(512).astype(np.int32)
    group_N[np.argsort(label_N, kind="stable")] = np.arange(512) % 128
    part = Partition(label_N, k=8, moved=0, objective=0.0)
    plan = plan_of([part], group_of=[group_N], seed=seed, batch_size=32, random_epochs=0)
    assert plan.duplicates == 0


def test_two_batches_that_must_exchange_do():
    """Communities 0 and 1 share a group, 2 and 3 another: one of each makes a batch."""
    part = Partition(np.repeat(np.arange(4), 2).astype(np.int32), k=2, moved=0, objective=0.0)
    group_N = np.array([0, 1, 0, 2, 5, 6, 5, 7], np.int32)
    for seed in range(20):
        plan = plan_of([part], group_of=[group_N], seed=seed, batch_size=4, random_epochs=0)
        assert plan.duplicates == 0


def meetings(unit_SP, group_UK):
    """Count how often a group is in one more community of a batch than in one."""
    return sum(
        sum(Counter(g for u in batch for g in set(group_UK[u].tolist())).values())
        - len(set(group_UK[batch].ravel().tolist()))
        for batch in unit_SP
    )


@given(seed=st.integers(0, 2**32), groups=st.sampled_from([2, 8, 20, 100]))
@settings(max_examples=examples(60), deadline=None)
def test_exchanges_between_batches_never_make_it_worse(seed, groups):
    rng = np.random.default_rng(seed)
    per = int(rng.integers(1, 5))
    group_UK = rng.integers(0, groups, (per * int(rng.integers(1, 12)), 3)).astype(np.int32)
    unit_SP = rng.permutation(len(group_UK)).reshape(-1, per)
    broken_U = rng.random(len(group_UK)) < rng.choice([0.0, 0.5])
    parted_SP = part_groups(unit_SP, group_UK, broken_U, rng=rng)
    assert sorted(parted_SP.ravel()) == list(range(len(group_UK)))
    assert meetings(parted_SP, group_UK) <= meetings(unit_SP, group_UK)


def slow_part_groups(unit_SP, group_UK, broken_U, *, rng):
    """The slow twin: sets of groups, and how many units of each batch have one."""
    units_of = Counter(g for group_K in group_UK for g in set(group_K.tolist()))
    groups_U = [{g for g in group_K.tolist() if units_of[g] > 1} for group_K in group_UK]
    batches, each = unit_SP.tolist(), unit_SP.shape[1]
    count_S = [Counter(g for u in batch for g in groups_U[u]) for batch in batches]

    def meets(unit, batch, without):
        return sum(count_S[batch][g] > (g in groups_U[without]) for g in groups_U[unit])

    for _ in range(PASSES):
        exchanges, spread = 0, Counter(g for count in count_S for g in +count)
        for s, p in np.ndindex(unit_SP.shape):
            u = batches[s][p]
            if not any(count_S[s][g] > 1 and spread[g] < len(batches) for g in groups_U[u]):
                continue
            places = rng.integers(unit_SP.size, size=LOOK).tolist()
            places.sort(key=lambda x: broken_U[batches[x // each][x % each]] != broken_U[u])
            for t, q in (divmod(place, each) for place in places):
                v = batches[t][q]
                now = meets(u, s, u) + meets(v, t, v)
                if t != s and meets(v, s, u) + meets(u, t, v) < now:
                    batches[s][p], batches[t][q] = v, u
                    count_S[s] += Counter(groups_U[v])
                    count_S[s] -= Counter(groups_U[u])
                    count_S[t] += Counter(groups_U[u])
                    count_S[t] -= Counter(groups_U[v])
                    exchanges += 1
                    break
        if not exchanges:
            break
    return np.array(batches)


def groups_to_part(seed):
    """Units, groups that few or nearly all of them have, and which units are random rows."""
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 14)), int(rng.integers(1, 6))
    size = shape[0] * shape[1], int(rng.integers(1, 5))
    kinds = [rng.integers(0, groups, size) for groups in (2, 8, 20, 100)]
    kinds.append(np.minimum(rng.zipf(1.3, size), 10_000))
    group_UK = kinds[seed % 5].astype(np.int32)
    broken_U = rng.random(size[0]) < rng.choice([0.0, 0.5, 1.0])
    return rng.permutation(size[0]).reshape(shape), group_UK, broken_U


@given(seed=st.integers(0, 2**32))
@settings(max_examples=examples(250), deadline=None)
def test_exchanges_are_those_of_the_slow_twin(seed):
    case = groups_to_part(seed)
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
    before_SP = case[0].copy()
    parted_SP = part_groups(*case, rng=rng)
    assert np.array_equal(parted_SP, slow_part_groups(*case, rng=other))
    assert rng.bit_generator.state == other.bit_generator.state  # and so is whatever comes after
    assert np.array_equal(case[0], before_SP)


def test_the_cases_to_part_hold_what_they_are_there_for():
    seen = Counter()
    for seed in range(200):
        unit_SP, group_UK, broken_U = groups_to_part(seed)
        parted_SP = slow_part_groups(unit_SP, group_UK, broken_U, rng=np.random.default_rng(seed))
        moved = not np.array_equal(parted_SP, unit_SP)
        seen["moved" if moved else "left"] += 1
        seen["moved among both kinds"] += moved and 0 < broken_U.sum() < len(broken_U)
        seen["kinds exchanged"] += not np.array_equal(broken_U[parted_SP], broken_U[unit_SP])
        seen["parted for good"] += meetings(parted_SP, group_UK) == 0 < meetings(unit_SP, group_UK)
        seen["parted as far as it goes"] += (
            0 < meetings(parted_SP, group_UK) < meetings(unit_SP, group_UK)
        )
    assert min(seen.values()) >= 10, seen


def test_units_without_a_common_group_draw_nothing():
    rng = np.random.default_rng(0)
    group_UK = np.arange(24, dtype=np.int32).reshape(8, 3) // 3  # a group repeats in its unit alone
    unit_SP = np.arange(8).reshape(4, 2)
    assert np.array_equal(part_groups(unit_SP, group_UK, np.zeros(8, bool), rng=rng), unit_SP)
    assert rng.random() == np.random.default_rng(0).random()


def test_exchanges_part_most_of_what_can_be_parted():
    """120 groups, each in 6 of 240 communities, 6 of these a batch: there is room for all."""
    rng = np.random.default_rng(0)
    group_UK = rng.permutation(np.repeat(np.arange(120), 6)).reshape(240, 3).astype(np.int32)
    unit_SP = rng.permutation(240).reshape(-1, 6)
    before = meetings(unit_SP, group_UK)
    whole_U = np.zeros(240, bool)
    after = meetings(part_groups(unit_SP, group_UK, whole_U, rng=rng), group_UK)
    assert before > 20
    assert after <= 2


@pytest.mark.parametrize(("groups", "expected"), [(64, 0), (8, 0), (4, 4 * 8), (1, 64 - 8)])
def test_random_batches_have_the_fewest_duplicates_there_can_be(groups, expected):
    """64 rows in 8 batches: a group of s rows has to repeat itself s - 8 times, if that is > 0."""
    group_N = (np.arange(64) % groups).astype(np.int32)
    plan = plan_of(
        [partition_of(64, 4)], group_of=[group_N], batch_size=8, epochs=1, random_epochs=1
    )
    assert plan.duplicates == expected


def test_random_epochs_mix_communities():
    part = partition_of(400, 8)
    plan = plan_of([part], batch_size=16, epochs=1, random_epochs=1)
    different = [len(set(part.label_N[batch])) for batch in plan.row_SB]
    assert np.mean(different) > 10  # two, if communities were kept


def test_many_rows_are_dealt():
    part = partition_of(200_000, 32)
    plan = plan_of([part], batch_size=256, epochs=2)
    plan.check([200_000])


@pytest.mark.parametrize(
    ("rows", "k", "size", "message"),
    [(7, 4, 8, "7 rows; expected at least"), (9, 3, 8, "is 8; expected a multiple")],
)
def test_what_cannot_be_batched_is_refused(rows, k, size, message):
    with pytest.raises(InputError, match=message):
        plan_of([partition_of(rows, k)], batch_size=size)


def test_groups_must_belong_to_the_partitions():
    part = partition_of(8, 4)
    with pytest.raises(ValueError, match="groups of 7"):
        plan_of([part], group_of=[np.zeros(7, np.int32)], batch_size=4)
    with pytest.raises(ValueError, match="groups of 0 datasets"):
        plan_of([part], group_of=[], batch_size=4)


SOUND = plan_of([partition_of(22, 2)], batch_size=4, epochs=3, random_epochs=1)


def changed(name, index, value):
    """Return the sound plan with one array changed."""
    array = getattr(SOUND, name).copy()
    array[index] = value
    return dataclasses.replace(SOUND, **{name: array})


def test_check_accepts_the_plan_that_the_faults_are_put_into():
    SOUND.check([22])
    assert (SOUND.epoch_S == 1).sum() == 5
    assert SOUND.left_out.tolist()[2][:2] == [1, 0]


FIRST, MINED, LAST = (int(np.flatnonzero(SOUND.epoch_S == epoch)[0]) for epoch in range(3))

FAULTS = {
    "a row twice": ("row_SB", (0, 1), SOUND.row_SB[0, 0], r"row \d+ is there [02] times"),
    "a row that is not there": ("row_SB", (0, 0), 22, "epoch 0, dataset 0: a row is none of 22"),
    "a negative row": ("row_SB", (0, 0), -1, "a row is none of 22"),
    "an epoch out of order": ("epoch_S", FIRST, 1, "epochs are not"),
    "an epoch missing": ("epoch_S", slice(LAST, None), 3, "epochs are not"),
    "no such dataset": ("dataset_SB", 0, 1, "a batch is of none of the 1 datasets"),
    "left out of no dataset": ("left_out", (0, 1), 1, "left_out is of none of the 1 datasets"),
    "left out of no epoch": ("left_out", (-1, 0), 3, "left_out is of none of the 3 epochs"),
    "left out, but there": ("left_out", (0, 2), SOUND.row_SB[0, 0], r"row \d+ is there [02] times"),
    "a community twice in a batch": (
        "community_SB",
        (MINED, 0),
        SOUND.community_SB[MINED, 3],
        r"epoch 1, dataset 0: community \d+ is in several places",
    ),
    "a community in two batches": (
        "community_SB",
        LAST,
        SOUND.community_SB[LAST + 1],
        r"epoch 2, dataset 0: community \d+ is in several places",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_the_fault(fault):
    name, index, value, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        changed(name, index, value).check([22])


def slow_fault(plan, sizes):
    """The slow twin of what ``check`` says of rows and communities: dataset by dataset, in words.

    None where each row is there once or left out, and so on.
    """
    size = plan.row_SB.shape[1]
    for dataset, rows in enumerate(sizes):
        before = set()
        for epoch in range(int(plan.epoch_S.max()) + 1):
            where = f"epoch {epoch}, dataset {dataset}"
            left = left_of(plan, epoch, dataset)
            slots = [
                (row, community, place)
                for s in np.flatnonzero(plan.epoch_S == epoch)
                for place, (row, community) in enumerate(
                    zip(plan.row_SB[s].tolist(), plan.community_SB[s].tolist(), strict=True)
                )
                if plan.dataset_SB[s, place] == dataset
            ]
            times = Counter([row for row, _, _ in slots] + left)
            if not set(times) <= set(range(rows)):
                return f"{where}: a row is none of {rows}"
            for row in range(rows):
                if times[row] != 1:
                    return f"{where}: row {row} is there {times[row]} times"
            if len(left) >= size:
                return f"{where}: {len(left)} rows left out would fill a batch"
            if before & set(left):
                return f"{where}: row {min(before & set(left))} is left out twice in a row"
            before, runs, last = set(left), Counter(), (None, None)
            for _, community, place in slots:
                # In a new batch, or after a slot of another dataset, a run is a new one.
                runs[community] += last != (community, place - 1) or place == 0
                last = community, place
            for community in sorted(runs):
                if community >= 0 and runs[community] > 1:
                    return f"{where}: community {community} is in several places"
    return None


def said_of(plan, sizes):
    try:
        plan.check(sizes)
    except ValueError as fault:
        return str(fault)
    return None


def spoilt(plan, rng):
    """Return a plan with some rows, communities, datasets and rows left out exchanged or set."""
    arrays = {
        name: getattr(plan, name).copy()
        for name in ("row_SB", "community_SB", "dataset_SB", "left_out")
    }
    for _ in range(rng.integers(4)):
        name = rng.choice(list(arrays))
        flat = arrays[name].reshape(-1, 3)[:, 2] if name == "left_out" else arrays[name].reshape(-1)
        if not flat.size:
            continue
        a, b = rng.integers(flat.size, size=2)
        if rng.random() < 0.5:
            flat[a], flat[b] = flat[b], flat[a]
        elif name != "dataset_SB":
            flat[a] = rng.integers(-1, 30)
        else:
            flat[a] = flat[b]
    return dataclasses.replace(plan, **arrays)


@given(seed=st.integers(0, 2**32), is_across=st.booleans())
@settings(max_examples=examples(200), deadline=None)
def test_check_says_what_a_look_at_every_slot_finds(seed, is_across):
    """Several datasets and epochs, and faults in some of them: the first dataset's comes first."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(6, 22, rng.integers(1, 5)).tolist()
    options = {"epochs": int(rng.integers(1, 4)), "seed": seed}
    if is_across:
        group_of = [np.arange(rows, dtype=np.int32) for rows in sizes]
        plan = across(sizes, size=6, group_of=group_of, **options)
    else:
        parts = [partition_of(rows, int(rng.choice([2, 3])), seed) for rows in sizes]
        plan = plan_of(parts, batch_size=6, random_epochs=0, **options)
    assert slow_fault(plan, sizes) is None
    assert said_of(plan, sizes) is None
    wrong = spoilt(plan, rng)
    expected, said = slow_fault(wrong, sizes), said_of(wrong, sizes)
    if expected is None:  # the rest of what is checked comes after this
        assert said is None or said.startswith("left_out is not sorted") or "would fill" in said
    else:
        assert said == expected


def test_plans_are_spoilt_in_every_way():
    seen = Counter()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        plan = plan_of([partition_of(rows, 2, seed) for rows in (17, 9)], batch_size=4, seed=seed)
        fault = slow_fault(spoilt(plan, rng), [17, 9])
        seen[re.sub(r"\d+", "#", fault or "none")] += 1
    assert set(seen) == {
        "none",
        "epoch #, dataset #: a row is none of #",
        "epoch #, dataset #: row # is there # times",
        "epoch #, dataset #: community # is in several places",
    }, seen
    assert min(seen.values()) >= 5, seen


def test_check_refuses_rows_left_out_twice_in_a_row():
    row_SB, left = SOUND.row_SB.copy(), SOUND.left_out.copy()
    before, row = left[0, 2], left[2, 2]
    row_SB[(row_SB == before) & (SOUND.epoch_S == 1)[:, None]] = row
    left[2, 2] = before
    with pytest.raises(ValueError, match=f"epoch 1, dataset 0: row {before} is left out twice"):
        dataclasses.replace(SOUND, row_SB=row_SB, left_out=left).check([22])


def test_check_refuses_to_leave_out_a_whole_batch():
    dropped = MINED
    keep = np.arange(len(SOUND.row_SB)) != dropped
    left = [*SOUND.left_out.tolist(), *([1, 0, row] for row in SOUND.row_SB[dropped].tolist())]
    plan = BatchPlan(
        SOUND.row_SB[keep],
        SOUND.dataset_SB[keep],
        SOUND.epoch_S[keep],
        SOUND.community_SB[keep],
        np.array(left, np.int32),
    )
    with pytest.raises(ValueError, match="epoch 1, dataset 0: 6 rows left out would fill a batch"):
        plan.check([22])


def test_arrays_of_different_batches_are_refused():
    with pytest.raises(ValueError, match="same batches"):
        dataclasses.replace(SOUND, epoch_S=SOUND.epoch_S[1:])
    with pytest.raises(ValueError, match="left_out"):
        dataclasses.replace(SOUND, left_out=SOUND.left_out[:, :2])


def test_an_epoch_may_be_half_random():
    part = partition_of(64, 4)
    phases = (Phase(epochs=1.5, random_share=1), Phase(epochs=0.5))
    plan = plan_of([part], batch_size=8, curriculum=phases)
    plan.check([64])
    mined_SB = plan.community_SB.reshape(2, 8, 8) >= 0  # 8 batches of 8 rows an epoch
    assert not mined_SB[0].any()
    assert mined_SB[1].all(axis=1).tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize(("share", "expected"), [(0.25, [0, 1] * 8), (0.5, [1] * 16)])
def test_a_share_of_each_batch_is_drawn_at_random(share, expected):
    """Batches of two communities: at a quarter, every other batch breaks one of them up."""
    part = partition_of(128, 4)
    plan = plan_of([part], batch_size=8, curriculum=(Phase(random_share=share),))
    plan.check([128])
    random_SB = plan.community_SB < 0
    assert sorted((random_SB.sum(axis=1) // 4).tolist()) == sorted(expected)
    drawn = part.label_N[plan.row_SB][random_SB].reshape(-1, 4)
    assert np.mean([len(set(four)) for four in drawn.tolist()]) > 3  # not a community as it was


@pytest.mark.parametrize(
    ("rows", "size", "k", "share"), [(64, 64, 32, 0.4), (300, 64, 32, 0.1), (288, 32, 32, 0.1)]
)
def test_a_share_is_kept_where_it_is_less_than_a_community_an_epoch(rows, size, k, share):
    """On average: of one to nine batches an epoch, none has .4, .8 or .9 communities at random."""
    part, found = partition_of(rows, k), []
    curriculum = (Phase(epochs=4, random_share=share),)
    for seed in range(100):
        plan = plan_of([part], batch_size=size, curriculum=curriculum, seed=seed)
        whole_SP = plan.community_SB.reshape(len(plan.community_SB), -1, k)
        found.append((whole_SP < 0).all(axis=2).mean())
    assert np.mean(found) == pytest.approx(share, rel=0.25)


def test_a_short_phase_has_its_batches_on_average():
    """A tenth of an epoch of three batches at random: every third epoch has one such batch."""
    part, found = partition_of(24, 4), []
    phases = (Phase(epochs=0.1, random_share=1), Phase(epochs=0.9))
    for seed in range(300):
        plan = plan_of([part], batch_size=8, curriculum=phases, seed=seed)
        found.append((plan.community_SB < 0).all(axis=1).sum())
    assert np.mean(found) == pytest.approx(0.3, abs=0.1)


def test_random_phases_of_one_epoch_keep_groups_apart():
    """Groups of as many rows as the epoch has batches: each once a batch, in both halves."""
    group_N = (np.arange(64) % 8).astype(np.int32)
    phases = (Phase(epochs=0.5, random_share=1), Phase(epochs=0.5, random_share=1, k=4))
    for seed in range(20):
        plan = plan_of(
            [partition_of(64, 4)], group_of=[group_N], batch_size=8, curriculum=phases, seed=seed
        )
        plan.check([64])
        assert plan.duplicates == 0


def test_parting_groups_keeps_the_share_of_each_batch():
    """Sixteen groups of eight rows: most of what is to be parted can be among its like."""
    curriculum, group_N = (Phase(random_share=0.5),), np.arange(128, dtype=np.int32) % 16
    part, counts = partition_of(128, 4), []
    for seed in range(20):
        plan = plan_of([part], group_of=[group_N], batch_size=8, curriculum=curriculum, seed=seed)
        counts.append((plan.community_SB < 0).sum(axis=1))
    assert np.mean(np.concatenate(counts) == 4) > 0.8


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_rows_drawn_at_random_keep_groups_apart(share):
    """Groups of 25 rows, one in a community at most: no batch of 64 needs two of one group."""
    rows = 6400
    group_N = (np.arange(rows) % (rows // 25)).astype(np.int32)
    part = partition_of(rows, 32)
    part = dataclasses.replace(part, label_N=(np.arange(rows) // 32).astype(np.int32))
    curriculum = (Phase(random_share=share),)
    plan = plan_of([part], group_of=[group_N], batch_size=64, curriculum=curriculum)
    assert plan.duplicates <= 4


def test_epochs_may_use_other_communities():
    small, large = partition_of(46, 2, seed=1), partition_of(46, 6, seed=2)
    plan = plan_batches(
        [[small, large]],
        group_of=[np.arange(46, dtype=np.int32)],
        spec=BatchSpec(batch_size=12, curriculum=(Phase(epochs=2, k=2), Phase(epochs=2, k=6))),
        rng=np.random.default_rng(0),
        variant_of=[0, 0, 1, 1],
    )
    plan.check([46])
    for epoch, part in enumerate([small, small, large, large]):
        mine = plan.epoch_S == epoch
        kept = plan.community_SB[mine] >= 0
        assert kept.mean() > 0.7
        assert (part.label_N[plan.row_SB[mine]] == plan.community_SB[mine])[kept].all()


@given(
    rows=st.integers(12, 70),
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    data=st.data(),
)
@settings(max_examples=examples(150), deadline=None)
def test_the_contract_holds_for_any_curriculum(rows, seeds, data):
    """Partitions of several k in turn, shares of random rows, phases that end inside an epoch."""
    ks = [2, 3, 6]
    phases, variant_of = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        variant_of.append(data.draw(st.integers(0, 2)))
        share = data.draw(st.sampled_from([0, 0.1, 0.5, 1]))
        early = data.draw(st.sampled_from([0.25, 0.5, 1 / 3]))
        k = ks[variant_of[-1]]
        phases += [
            Phase(epochs=early, random_share=1),
            Phase(epochs=1 - early, random_share=share, k=k),
        ]
    groups = np.random.default_rng(seeds[0]).integers(0, rows, rows).astype(np.int32)
    plan = plan_batches(
        [[partition_of(rows, k, seeds[0]) for k in ks]],
        group_of=[groups],
        spec=BatchSpec(batch_size=12, curriculum=tuple(phases)),
        rng=np.random.default_rng(seeds[1]),
        variant_of=variant_of,
    )
    plan.check([rows])
    assert len(plan.row_SB) == len(variant_of) * (rows // 12)


def order_of(mixing, weights=(1.0, 1.0)):
    spec = BatchSpec(batch_size=4, mixing=mixing, curriculum=(Phase(),))
    plan = plan_batches(
        [[partition_of(400, 4)], [partition_of(200, 4)]],
        group_of=[np.arange(rows, dtype=np.int32) for rows in (400, 200)],
        spec=spec,
        rng=np.random.default_rng(0),
        weight_of=weights,
    )
    plan.check([400, 200])
    return plan.dataset_S


def test_datasets_take_turns_while_they_last():
    assert order_of("round-robin").tolist() == [0, 1] * 50 + [0] * 50


def test_a_heavier_dataset_comes_earlier():
    first = order_of("weighted", (1.0, 3.0))[:40]
    assert 22 <= first.sum() <= 38  # 3 of 4 expected
    assert 6 <= order_of("proportional")[:40].sum() <= 21  # 1 of 3
