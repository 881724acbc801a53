"""What ``b3 bench scale`` makes of its measurements."""

import pytest

from b3_core.bench.scale import exponent, simulate, summary
from b3_core.config import MiningSpec

STAGES = [
    {"stage": "cells", "parts": 1, "seconds": 40.0, "longest": 40.0, "peak_mb": 900.0},
    {"stage": "cell-ranks", "parts": 4, "seconds": 80.0, "longest": 22.0, "peak_mb": 700.0},
    {"stage": "block-communities", "parts": 1, "seconds": 7.0, "longest": 7.0, "peak_mb": 300.0},
    {"stage": "ranks", "parts": 1, "seconds": 3.0, "longest": 3.0, "peak_mb": 200.0},
]


def test_at_the_size_measured_on_one_worker_it_is_what_was_measured():
    guess = simulate(STAGES, rows=400, at=400, cell_rows=100, workers=1, list_seconds=9.0)
    assert guess["hours"]["all"] == pytest.approx(130 / 3600, abs=1e-3)
    assert guess["worker_mb"] == 700


def test_parts_are_shared_out_and_what_runs_in_one_process_is_not():
    guess = simulate(STAGES, rows=400, at=40_000, cell_rows=100, workers=50, list_seconds=0.0)
    assert guess["hours"]["cells"] == pytest.approx(40 * 1000 / 3600, abs=1e-3)
    assert guess["hours"]["cell-ranks"] == pytest.approx(20 * 400 / 50 / 3600, abs=1e-3)
    assert guess["hours"]["ranks"] == pytest.approx(3 * 100 / 3600, abs=1e-3)
    assert guess["hours"]["block-communities"] == pytest.approx(7 * 2 / 3600, abs=1e-3)


def test_seams_come_where_there_is_more_than_one_block():
    within, beyond = (
        simulate(STAGES, rows=400, at=at, cell_rows=100, workers=2, list_seconds=0.0)["hours"]
        for at in (3_200, 3_300)
    )
    assert "seam" not in within
    assert beyond["seam"] == pytest.approx(8 * 9 * 2 * 7 / 4 / 3600, abs=1e-3)
    seams = {"stage": "seam", "parts": 16, "seconds": 32.0, "longest": 2.0, "peak_mb": 300.0}
    known = simulate([*STAGES, seams], rows=400, at=4_000, cell_rows=100, workers=2, list_seconds=0)
    assert known["hours"]["seam"] == pytest.approx(80 * 2 / 3600, abs=1e-3)


def test_lists_that_are_more_take_each_cell_longer():
    few = simulate(STAGES, rows=400, at=40_000, cell_rows=100, workers=50, list_seconds=0.0)
    many = simulate(STAGES, rows=400, at=40_000, cell_rows=100, workers=50, list_seconds=1e-3)
    more = 100 * (40_000 - 400) / 256 * 1e-3 * 400 / 50
    rise = many["hours"]["cell-ranks"] - few["hours"]["cell-ranks"]
    assert rise == pytest.approx(more / 3600, abs=2e-3)


def test_the_exponent_is_of_all_core_seconds():
    assert exponent({100: 2.0}) is None
    assert exponent({100: 2.0, 1000: 20.0, 10_000: 200.0}) == pytest.approx(1.0)
    sizes = [
        {"rows": rows, "cells": {"stages": [{**STAGES[1], "seconds": rows**1.1}]} | kept}
        for rows, kept in (
            (100, {"window": 2.0, "too_hard": 0.5}),
            (900, {"window": 1.9, "too_hard": 0.4}),
        )
    ]
    sizes[0]["whole"] = {"window": 2.1, "too_hard": 0.5}
    told = summary(sizes, MiningSpec(cell_rows=100), at=9000, workers=[1, 8], list_seconds=0.0)
    assert told["exponent"] == pytest.approx(1.1, abs=1e-3)
    assert [row["mined"] for row in told["kept"]] == ["cells", "whole", "cells"]
    assert [guess["workers"] for guess in told["extrapolated"]] == [1, 8]
