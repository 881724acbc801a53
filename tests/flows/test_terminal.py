"""What a person sees of a step: rates and time left, and in a log one line a step."""

import io

import pytest
from rich.console import Console

from flows.terminal import Pace, TerminalReporter, arms_table, duration


def shown(*, terminal, detail=False):
    out = io.StringIO()
    reporter = TerminalReporter(
        Console(file=out, force_terminal=terminal, width=120), detail=detail
    )
    return out, reporter


def test_in_a_log_a_step_is_one_line_with_its_rate(monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("flows.terminal.time.monotonic", lambda: float(next(clock)))
    out, reporter = shown(terminal=False)
    with reporter.live(), reporter.step("ranks") as progress:
        progress(0, 8000)
        progress(4000, 8000)
        progress(8000, 8000)
    assert out.getvalue() == "ranks           16.0 s  8,000 rows, 500/s\n"


def test_in_a_log_with_detail_there_are_lines_on_the_way(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("flows.terminal.time.monotonic", lambda: now[0])
    out, reporter = shown(terminal=False, detail=True)
    with reporter.step("train") as progress:
        for step in range(0, 101, 10):
            progress(step, 100)
            now[0] += 3
    lines = out.getvalue().splitlines()
    assert lines[0] == "train            40%, 3.33 steps/s, 18 s left"
    assert len(lines) == 3 and lines[-1].startswith("train           33.0 s  100 steps")


def test_a_step_that_nobody_counts_has_no_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("flows.terminal.time.monotonic", lambda: now[0])
    out, reporter = shown(terminal=False)
    with reporter.step("graph"):
        now[0] += 2
    assert out.getvalue() == "graph            2.0 s\n"


def test_a_bar_shows_rate_and_time_left():
    out, reporter = shown(terminal=True)
    with reporter.live(), reporter.step("embed") as progress:
        for rows in range(0, 4001, 1000):
            progress(rows, 4096)
        reporter._bars.refresh()
    assert "4000/4096" in out.getvalue() and "rows/s" in out.getvalue()


def test_what_was_done_before_is_not_counted_as_fast():
    pace = Pace(100.0)
    pace.note(900, 1000, 100.1)
    pace.note(950, 1000, 110.0)  # 50 rows in 10 s
    assert pace.speed(10) == pytest.approx(5)
    assert pace.so_far("rows") == "    95%, 5 rows/s, 10 s left"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.42, "0.4 s"),
        (42, "42 s"),
        (59.9, "60 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (3 * 86_400 + 4 * 3600 + 59, "3 d 4 h"),
    ],
)
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize("arm", ["paper-curriculum", "an-arm-of-ones-own-with-a-long-name"])
def test_figures_of_arms_are_whole_on_a_narrow_terminal(arm):
    row = {"hit@1": 0.13581, "hit@10": 0.32794, "mrr": 0.20124, "mrr_spread": 0.00141}
    row |= {"arm": arm, "examples_seen": 179_904, "seconds": 50.5, "seeds": [0, 1, 2, 3, 4]}
    out = io.StringIO()
    Console(file=out, width=80).print(arms_table({"arms": [row]}))
    for figure in ("0.1358", "0.3279", "0.2012 ± 0.0014", "179,904", "train s"):
        assert figure in out.getvalue()
    name, rest = out.getvalue().splitlines()[4], out.getvalue().splitlines()[5:]
    assert "".join(line[:25].split("  ")[0].strip() for line in (name, *rest)) == arm
