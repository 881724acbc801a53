"""Intervals by hand and by simulation; the table of arms by hand."""

import numpy as np
import pytest

from b3_core.evaluate import compare
from b3_core.evaluate.compare import (
    Task,
    arms_table,
    independent,
    paired_bootstrap,
    sentences,
)


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_what_seed_and_query_share_cancels():
    seed_S1, query_Q = rng(1).normal(size=(4, 1)), rng(2).normal(size=50)
    b_SQ = 10 * seed_S1 + 10 * query_Q
    interval = paired_bootstrap(b_SQ + 0.25, b_SQ, rng=rng())
    assert [interval.mean, interval.low, interval.high] == pytest.approx([0.25] * 3)


def test_tasks_count_alike_however_many_queries_they_have():
    a_SQ = np.concatenate([np.full((2, 900), 0.2), np.full((2, 30), 0.8)], axis=1)
    none = np.zeros_like(a_SQ)
    interval = paired_bootstrap(a_SQ, none, rng=rng(), tasks=independent(900, 30))
    # Nothing differs within a task, so nothing is uncertain.
    assert [interval.mean, interval.low, interval.high] == pytest.approx([0.5] * 3)
    one = paired_bootstrap(a_SQ, none, rng=rng(), tasks=independent(930))
    assert one == paired_bootstrap(a_SQ, none, rng=rng())
    with pytest.raises(ValueError, match="of 930 in all"):
        paired_bootstrap(a_SQ, none, rng=rng(), tasks=independent(900))


def test_the_spread_of_seeds_alone():
    # Differences 0 and 1 by seed, the same for every query: resampling two seeds gives
    # 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4, spread by the root of 2 / (2 - 1).
    a_SQ = np.repeat([[0.0], [1.0]], 30, axis=1)
    at = {
        level: paired_bootstrap(a_SQ, np.zeros_like(a_SQ), rng=rng(), level=level)
        for level in (0.9, 0.3)
    }
    half = np.sqrt(2) / 2
    for level, spread in ((0.9, half), (0.3, 0)):
        found = [at[level].mean, at[level].low, at[level].high]
        assert found == pytest.approx([0.5, 0.5 - spread, 0.5 + spread])


def test_the_spread_of_queries_alone():
    # The mean of Q resampled values has standard deviation std / sqrt(Q).
    a_SQ = np.repeat(rng(3).normal(size=(1, 400)), 3, axis=0)
    interval = paired_bootstrap(a_SQ, np.zeros_like(a_SQ), rng=rng())
    half = 1.96 * a_SQ[0].std() / 20
    assert interval.mean == pytest.approx(a_SQ.mean())
    assert interval.high - interval.mean == pytest.approx(half, rel=0.1)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.1)


def test_slow_twin():
    """Draw seeds and units one by one, in two tasks of one stratum and a third of its own."""
    draw = rng(6)
    units = [draw.integers(0, 12, 40), draw.integers(0, 12, 25), draw.integers(0, 9, 30)]
    sizes = np.cumsum([len(unit_Q) for unit_Q in units])
    difference_SQ = rng(4).normal(size=(5, sizes[-1])) + rng(5).normal(size=(5, 1))
    difference_SQ += np.concatenate(units)  # what a unit has in common
    parts = np.split(difference_SQ, sizes[:-1], axis=1)
    strata = ["a", "a", "b"]
    there = {"a": np.union1d(units[0], units[1]), "b": np.unique(units[2])}
    means = []
    for _ in range(6000):
        drawn = {name: draw.choice(unit_U, len(unit_U)) for name, unit_U in there.items()}
        seed_S = draw.integers(5, size=5)
        found = []
        for unit_Q, part_SQ, stratum in zip(units, parts, strata, strict=True):
            queries = np.concatenate([np.flatnonzero(unit_Q == u) for u in drawn[stratum]])
            mean_S = part_SQ[:, queries].mean(axis=1)
            found.append(mean_S.mean() + np.sqrt(5 / 4) * (mean_S[seed_S].mean() - mean_S.mean()))
        means.append(np.mean(found))
    low, high = np.quantile(means, [0.025, 0.975])
    tasks = [Task(unit_Q, stratum) for unit_Q, stratum in zip(units, strata, strict=True)]
    none = np.zeros_like(difference_SQ)
    fast = paired_bootstrap(difference_SQ, none, rng=rng(), resamples=20_000, tasks=tasks)
    assert fast.low == pytest.approx(low, abs=0.03 * (high - low))
    assert fast.high == pytest.approx(high, abs=0.03 * (high - low))
    alone = paired_bootstrap(
        difference_SQ, none, rng=rng(), tasks=independent(*(len(unit_Q) for unit_Q in units))
    )
    assert alone.high - alone.low < 0.9 * (fast.high - fast.low)


def test_a_query_that_is_there_five_times_tells_no_more_than_once():
    a_SQ = rng(10).normal(size=(2, 60))
    none, unit_Q = np.zeros((2, 300)), np.tile(np.arange(60), 5)
    once = paired_bootstrap(a_SQ, none[:, :60], rng=rng())
    five = paired_bootstrap(np.tile(a_SQ, 5), none, rng=rng(), tasks=[Task(unit_Q, "x")])
    assert [five.low, five.high] == pytest.approx([once.low, once.high])


def test_a_task_of_which_nothing_is_drawn_counts_with_its_mean():
    a_SQ = np.array([[0.0, 0.0, 0.0, 1.0]])
    tasks = [Task(np.arange(3), "x"), Task(np.array([7]), "x")]
    found = paired_bootstrap(a_SQ, np.zeros_like(a_SQ), rng=rng(), tasks=tasks)
    assert [found.mean, found.low, found.high] == pytest.approx([0.5] * 3)


def test_words_tell_what_an_interval_does_not():
    found = {"mean": 0.01, "low": -0.002, "high": 0.022}
    one, three = (sentences({"b3 - random": {**found, "seeds": n}})[0] for n in (1, 3))
    assert one.startswith("b3 - random: MRR +0.0100, 95 % interval [-0.0020, +0.0220] (")
    assert "the luck of one seed is not in it" in one and "over seeds and queries" in three


def test_three_seeds_cover_more_than_they_would_unscaled():
    """Where seeds are all that matters: .79 of 95 %, and .71 if their draws were not scaled."""
    draw, hits, trials = rng(11), 0, 800
    for _ in range(trials):
        a_SQ = draw.normal(0, 1, (3, 1)) + draw.normal(0, 0.5, 40)
        interval = paired_bootstrap(a_SQ, np.zeros_like(a_SQ), rng=draw, resamples=300)
        hits += interval.low <= 0 <= interval.high
    assert hits / trials > 0.755


@pytest.mark.parametrize("effect", [0.0, 0.3])
def test_coverage_when_both_seeds_and_queries_vary(effect):
    draw, hits, trials = rng(7), 0, 200
    for _ in range(trials):
        seed_S1, query_Q = draw.normal(0, 0.2, (12, 1)), draw.normal(0, 1, 60)
        a_SQ = effect + seed_S1 + query_Q + draw.normal(0, 0.5, (12, 60))
        interval = paired_bootstrap(a_SQ, np.zeros_like(a_SQ), rng=draw, resamples=300)
        hits += interval.low <= effect <= interval.high
    # Twelve seeds make it a little too narrow; queries or seeds alone would cover far less.
    assert 0.89 <= hits / trials <= 0.99


def test_blocks_do_not_show(monkeypatch):
    monkeypatch.setattr(compare, "_BLOCK", 50 * 7)
    strata = compare._strata([np.zeros((3, 50))], independent(50))
    sizes = [len(part) for part in compare._resampled(strata, rng(), 20)]
    assert sizes == [7, 7, 6]
    monkeypatch.undo()
    a_SQ = rng(8).normal(size=(3, 50))
    whole = paired_bootstrap(a_SQ, np.zeros_like(a_SQ), rng=rng(), resamples=4000)
    monkeypatch.setattr(compare, "_BLOCK", 50 * 7)
    cut = paired_bootstrap(a_SQ, np.zeros_like(a_SQ), rng=rng(), resamples=4000)
    assert cut.low == pytest.approx(whole.low, abs=0.02)
    assert cut.high == pytest.approx(whole.high, abs=0.02)


def test_the_generator_decides():
    a_SQ, b_SQ = rng(9).normal(size=(2, 3, 20))
    first, again, other = (paired_bootstrap(a_SQ, b_SQ, rng=rng(seed)) for seed in (0, 0, 1))
    assert first == again
    assert first.mean == other.mean
    assert first.low != other.low


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((3,), (3,)), ((0, 3), (0, 3))])
def test_shapes_that_do_not_pair(shapes):
    with pytest.raises(ValueError, match="not both"):
        paired_bootstrap(*(np.zeros(shape) for shape in shapes), rng=rng())


def test_arms_table_by_hand():
    table = arms_table(
        {
            "random": [{"mrr": 0.2, "hit@1": 0.1}, {"mrr": 0.4, "hit@1": 0.1}],
            "b3": [{"mrr": 0.5, "hit@1": 0.3}],
        }
    )
    assert table == [
        {
            "arm": "random",
            "runs": 2,
            "mrr": pytest.approx(0.3),
            "mrr_spread": pytest.approx(np.sqrt(0.02)),
            "hit@1": pytest.approx(0.1),
            "hit@1_spread": pytest.approx(0.0),
        },
        {
            "arm": "b3",
            "runs": 1,
            "mrr": 0.5,
            "mrr_spread": None,
            "hit@1": 0.3,
            "hit@1_spread": None,
        },
    ]
