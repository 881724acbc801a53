"""Intervals by hand and by simulation; the table of arms by hand."""

import numpy as np
import pytest

from b3_core.evaluate import compare
from b3_core.evaluate.compare import Interval, arms_table, paired_bootstrap


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
    interval = paired_bootstrap(a_SQ, none, rng=rng(), tasks=[900, 30])
    # Nothing differs within a task, so nothing is uncertain.
    assert [interval.mean, interval.low, interval.high] == pytest.approx([0.5] * 3)
    one = paired_bootstrap(a_SQ, none, rng=rng(), tasks=[930])
    assert one == paired_bootstrap(a_SQ, none, rng=rng())
    with pytest.raises(ValueError, match="of 930 in all"):
        paired_bootstrap(a_SQ, none, rng=rng(), tasks=[900])


def test_the_spread_of_seeds_alone():
    # Differences 0 and 1 by seed, the same for every query: resampling two seeds gives
    # 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    a_SQ = np.repeat([[0.0], [1.0]], 30, axis=1)
    at = {
        level: paired_bootstrap(a_SQ, np.zeros_like(a_SQ), rng=rng(), level=level)
        for level in (0.9, 0.3)
    }
    assert at[0.9] == Interval(0.5, 0.0, 1.0)
    assert at[0.3] == Interval(0.5, 0.5, 0.5)


def test_the_spread_of_queries_alone():
    # The mean of Q resampled values has standard deviation std / sqrt(Q).
    a_SQ = np.repeat(rng(3).normal(size=(1, 400)), 3, axis=0)
    interval = paired_bootstrap(a_SQ, np.zeros_like(a_SQ), rng=rng())
    half = 1.96 * a_SQ[0].std() / 20
    assert interval.mean == pytest.approx(a_SQ.mean())
    assert interval.high - interval.mean == pytest.approx(half, rel=0.1)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.1)


def test_slow_twin():
    """Draw seeds and queries one by one: the same distribution of means."""
    a_SQ, b_SQ = rng(4).normal(size=(2, 5, 40))
    a_SQ += rng(5).normal(size=(5, 1))
    difference_SQ, draw = a_SQ - b_SQ, rng(6)
    means = [
        difference_SQ[draw.integers(5, size=5)][:, draw.integers(40, size=40)].mean()
        for _ in range(20_000)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    fast = paired_bootstrap(a_SQ, b_SQ, rng=rng(), resamples=20_000)
    assert fast.low == pytest.approx(low, abs=0.02 * (high - low))
    assert fast.high == pytest.approx(high, abs=0.02 * (high - low))


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
    sizes = [len(part) for part in compare._resampled([np.zeros((3, 50))], rng(), 20)]
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
