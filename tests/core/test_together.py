"""Several jobs told as one."""

from b3_core.ray_train import _Together


def test_progress_of_jobs_side_by_side_adds_up() -> None:
    told: list[tuple[int, int]] = []
    together = _Together(lambda done, total: told.append((done, total)), 3)
    together.of(0)(1, 10)
    together.of(2)(5, 10)
    together.of(1)(2, 4)
    assert told == [(1, 30), (6, 30), (8, 24)]
    alone: list[tuple[int, int]] = []
    _Together(lambda done, total: alone.append((done, total)), 1).of(0)(3, 7)
    assert alone == [(3, 7)]
