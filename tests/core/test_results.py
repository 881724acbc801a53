"""Arms side by side: tables of all tasks and of each, and what a person reads of them."""

import numpy as np
import pytest

from b3_core import results
from b3_core.evaluate.retrieval import EvalReport

EFFORT = {"seeds": [0], "batch_size": 8, "examples_seen": 80, "seconds": 1.0}


def reports(*ranks):
    """Return a report a task, of queries that each are drawn by themselves."""
    return [
        EvalReport(
            name, np.array(rank_Q), np.arange(len(rank_Q)), np.arange(len(rank_Q)), 9, name, {}
        )
        for name, rank_Q in zip(("faq", "forum"), ranks, strict=True)
    ]


@pytest.fixture
def runs():
    """Return the reports of arms, a seed each, on a task of four queries and one of two."""
    return {"random": [reports([2, 2, 4, 4], [1, 5])], "b3": [reports([1, 2, 2, 1], [1, 4])]}


def test_tasks_differ_in_the_metric_that_the_whole_does(runs):
    effort = dict.fromkeys(runs, EFFORT)
    whole = results._table(runs, effort)
    assert whole["differences"]["b3 - random"]["mean"] == pytest.approx((0.375 + 0.025) / 2)
    assert whole["metric"] == "mrr" and "hit@1_differences" not in whole
    alone = {arm: [[run[0]] for run in found] for arm, found in runs.items()}
    faq = results._table(alone, effort, also=("hit@1",))
    assert faq["metric"] == "mrr"
    assert faq["differences"]["b3 - random"]["mean"] == pytest.approx(0.375)
    assert faq["hit@1_differences"]["b3 - random"]["mean"] == pytest.approx(0.5)
    for row in faq["arms"]:
        assert all(row[f"{m}_low"] <= row[m] <= row[f"{m}_high"] for m in ("mrr", "hit@1"))
    first, second = results.told(faq)
    assert first.startswith("b3 - random: MRR +0.3750, 95 % interval")
    assert second.startswith("b3 - random: hit@1 +0.5000, 95 % interval")


def test_what_is_to_be_known_before_stands_before_the_table(runs):
    table = results._table(runs, dict.fromkeys(runs, EFFORT))
    said = "4 of 5 held-out rows of faq are trained on"
    text = results._report("Held-out", table, [said])
    assert text.index(f"**Warning**: {said}.") < text.index("| arm |")
    assert "Warning" not in results._report("Held-out", table)
