import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core.batches import plan_batches
from b3_core.communities import Partition
from b3_core.config import BatchSpec, Phase
from b3_core.neighbours import RankTable
from b3_core.quality import describe, similarity
from tests.conftest import examples


def table_of(neighbour_NM):
    row_NM = np.array(neighbour_NM, np.int32)
    score_NM = np.where(row_NM < 0, -np.inf, -np.arange(row_NM.shape[1])).astype(np.float32)
    return RankTable(row_NM, score_NM)


def partition_of(labels, k):
    return Partition(np.array(labels, np.int32), k=k, moved=0, objective=0.0)


def random_table(rng, rows, width):
    """Distinct neighbours in random order; some rows end early."""
    row_NM = np.array([rng.permutation(np.delete(np.arange(rows), i))[:width] for i in range(rows)])
    for i in np.flatnonzero(rng.random(rows) < 0.2):
        row_NM[i, rng.integers(width) :] = -1
    return table_of(row_NM)


def brute(labels, ranks, p, m, group_N):
    """Look at all pairs of rows that share a label, one after the other; -1 is no label."""
    rank_of = [
        {int(other): rank for rank, other in enumerate(row) if other >= 0}
        for row in ranks.neighbour_NM
    ]
    sums = dict.fromkeys(("window", "too_hard", "mutual", "same_group"), 0)
    for i, j in itertools.permutations(range(len(labels)), 2):
        if labels[i] != labels[j] or labels[i] < 0:
            continue
        there, back = rank_of[i].get(j, p + m), rank_of[j].get(i, p + m)
        sums["too_hard"] += there < p
        sums["window"] += p <= there < p + m
        sums["mutual"] += p <= there < p + m and p <= back < p + m
        sums["same_group"] += group_N[i] == group_N[j]
    return sums


def test_four_rows_by_hand():
    """Communities {0, 1} and {2, 3}, p = 1, m = 1.

    Row 0 ranks 1 second: in its window; row 1 ranks 0 second: in its window too, so mutual.
    Row 2 ranks 3 first: too hard; row 3 ranks 2 second: in its window, not mutual.
    """
    ranks = table_of([[2, 1], [3, 0], [3, 0], [1, 2]])
    group_N = np.array([7, 7, 8, 9], np.int32)
    figures = describe(partition_of([0, 0, 1, 1], 2), ranks, p=1, m=1, group_N=group_N)
    assert figures == pytest.approx(
        {
            "window": 3 / 4,
            "too_hard": 1 / 4,
            "mutual": 2 / 4,
            "same_group": 2 / 4,
            # One partner among three others: any two rows meet with probability 1/3.
            "random_window": 4 / 3 / 4,
            "random_too_hard": 4 / 3 / 4,
            "random_mutual": 2 / 3 / 4,
            "random_same_group": 2 / 3 / 4,
        }
    )
    assert "same_group" not in describe(partition_of([0, 0, 1, 1], 2), ranks, p=1, m=1)


@given(seed=st.integers(0, 2**32), rows=st.integers(4, 20), k=st.integers(2, 6))
@settings(max_examples=examples(60), deadline=None)
def test_figures_are_those_of_a_walk_over_all_pairs(seed, rows, k):
    rng = np.random.default_rng(seed)
    p, m = int(rng.integers(0, rows - 1)), int(rng.integers(1, rows))
    ranks = random_table(rng, rows, min(p + m, rows - 1))
    group_N = rng.integers(0, rows, rows).astype(np.int32)
    labels = rng.permutation(rows) // k
    figures = describe(partition_of(labels, k), ranks, p=p, m=m, group_N=group_N)
    for name, count in brute(labels, ranks, p, m, group_N).items():
        assert figures[name] == pytest.approx(count / rows), name


def test_the_random_figure_is_the_mean_over_all_partitions():
    rng = np.random.default_rng(0)
    ranks, group_N = random_table(rng, 7, 4), np.array([0, 0, 0, 1, 1, 2, 3], np.int32)
    # Every way to place seven rows in communities of 3, 3 and 1.
    placings = set(itertools.permutations([0, 0, 0, 1, 1, 1, 2]))
    assert len(placings) == 140
    figures = [
        describe(partition_of(labels, 3), ranks, p=1, m=3, group_N=group_N)
        for labels in sorted(placings)
    ]
    for name in ("window", "too_hard", "mutual", "same_group"):
        mean = np.mean([figure[name] for figure in figures])
        assert mean > 0
        assert figures[0][f"random_{name}"] == pytest.approx(mean), name


@pytest.mark.parametrize("mixing", ["proportional", "across"])
def test_a_plan_is_described_by_the_batches_of_all_epochs(mixing):
    rng = np.random.default_rng(1)
    rows, other = 30, 16
    parts = [partition_of(rng.permutation(n) // 2, 2) for n in (other, rows)]
    groups = [rng.integers(0, n, n).astype(np.int32) for n in (other, rows)]
    at_random = (Phase(epochs=3, random_share=float(mixing == "across")),)
    spec = BatchSpec(batch_size=16, mixing=mixing, curriculum=at_random)
    plan = plan_batches([[part] for part in parts], group_of=groups, spec=spec, rng=rng)
    assert plan.is_across == (mixing == "across")
    ranks = random_table(rng, rows, 9)
    figures = describe(plan, ranks, p=3, m=6, group_N=groups[1], dataset=1)
    total = dict.fromkeys(("window", "too_hard", "mutual", "same_group"), 0)
    placed = 0
    for epoch in range(3):
        labels = np.full(rows, -1)
        for batch in np.flatnonzero(plan.epoch_S == epoch):
            labels[plan.row_SB[batch][plan.dataset_SB[batch] == 1]] = batch
        placed += (labels >= 0).sum()
        for name, count in brute(labels, ranks, 3, 6, groups[1]).items():
            total[name] += count
    for name, count in total.items():
        assert figures[name] == pytest.approx(count / placed), name
    if plan.is_across:
        return
    assert placed == 48  # 16 of 30 rows, three times
    # A row is in the batch with probability 16/30, and then meets any other with 15/29.
    held = int((ranks.neighbour_NM[:, 3:] >= 0).sum())
    assert figures["random_window"] == pytest.approx(held * 16 / 30 * 15 / 29 / 16)


def unit(rng, rows):
    vector_ND = rng.normal(size=(rows, 5))
    return (vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)).astype(np.float32)


def test_similarity_is_the_mean_over_ordered_pairs():
    rng = np.random.default_rng(0)
    query_ND, positive_ND = unit(rng, 10), unit(rng, 10)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3])
    score_NN = query_ND.astype(float) @ positive_ND.T.astype(float)
    of_C = [
        [score_NN[i, j] for i, j in itertools.permutations(np.flatnonzero(labels == c), 2)]
        for c in range(3)
    ]
    figures = similarity(partition_of(labels, 3), query_ND, positive_ND)
    assert figures["similarity"] == pytest.approx(np.mean(np.concatenate(of_C)))
    assert figures["spread"] == pytest.approx(np.std([np.mean(x) for x in of_C]))
    assert figures["random_similarity"] == pytest.approx(score_NN[~np.eye(10, dtype=bool)].mean())
    assert figures == similarity(partition_of(labels, 3), query_ND, positive_ND)


def test_communities_of_likes_are_more_similar_than_random_ones():
    rng = np.random.default_rng(0)
    topic_ND = np.repeat(unit(rng, 8), 16, axis=0)
    figures = similarity(partition_of(np.arange(128) // 16, 16), topic_ND, topic_ND)
    assert figures["similarity"] == pytest.approx(1)
    assert figures["spread"] == pytest.approx(0, abs=1e-6)
    assert figures["random_similarity"] < 0.5
    assert 0 < figures["random_spread"] < 0.2
