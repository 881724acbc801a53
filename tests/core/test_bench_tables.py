"""The arithmetic of ``b3 bench batch-size`` and ``b3 bench cost``, by hand."""

import pytest

from b3_core.bench.batch_size import of_size, rows_of, with_worth
from b3_core.bench.cost import exponents
from b3_core.config import parse_config


def rows(**mrr):
    """Rows of arms at sizes 64, 256 and 1,024."""
    return [
        {"arm": arm, "batch_size": size, "mrr": value}
        for arm, values in mrr.items()
        for size, value in zip((64, 256, 1024), values, strict=True)
    ]


def test_a_batch_is_worth_the_smallest_random_one_that_does_as_well():
    table = with_worth(rows(random=(0.1, 0.3, 0.2), b3=(0.15, 0.3, 0.31), paper=(0.05, 0.1, 0.25)))
    worth = {arm: [row["worth"] for row in table if row["arm"] == arm] for arm in ("b3", "paper")}
    assert worth == {"b3": [256, 256, None], "paper": [64, 64, 256]}
    assert [row["worth"] for row in table if row["arm"] == "random"] == [64, 256, 1024]


def test_rows_say_what_an_arm_gained_over_random_of_its_size():
    gain = {"mean": 0.02, "low": 0.01, "high": 0.03}
    arms = [
        {"arm": arm, "mrr": 0.2, "mrr_low": 0.1, "mrr_high": 0.3, "seeds": [0, 1]}
        for arm in ("random", "b3")
    ]
    random, b3 = rows_of(128, {"arms": arms, "differences": {"b3 - random": gain}})
    assert random["less_random"] is None
    assert b3 == {
        "arm": "b3",
        "batch_size": 128,
        "mrr": 0.2,
        "low": 0.1,
        "high": 0.3,
        "seeds": 2,
        "less_random": gain,
    }


def test_only_the_batch_size_changes(tmp_path):
    dataset = {"name": "d", "uri": "x.parquet", "query": "q", "positive": "p"}
    spec = parse_config(
        {"datasets": [dataset], "batches": {"curriculum": [{"epochs": 2}]}}, base=tmp_path
    )
    other = of_size(spec, 512)
    assert other.batches.batch_size == 512
    assert other.batches.curriculum == spec.batches.curriculum
    assert of_size(other, 64) == spec
    with pytest.raises(ValueError, match="multiple of k"):
        of_size(spec, 100)


def cost(stage, sizes, seconds, memory):
    return [
        {"stage": stage, "rows": size, "seconds": s, "peak_mb": 500 + m, "above_mb": m}
        for size, s, m in zip(sizes, seconds, memory, strict=True)
    ]


def test_exponents_of_known_powers():
    sizes = (10, 20, 40)
    table = cost("ranks", sizes, [s**2 for s in sizes], [30 * s for s in sizes])
    table += cost("graph", sizes, [0.1, 0.1, 5.0], [1.0, 25.0, 50.0])
    assert exponents(table) == [
        {"stage": "ranks", "seconds_exponent": 2.0, "memory_exponent": 1.0},
        {"stage": "graph", "seconds_exponent": None, "memory_exponent": 1.0},
    ]
