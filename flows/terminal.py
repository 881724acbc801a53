"""What a person at a terminal sees: bars while it runs, tables at the end, all on stderr."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from b3_core.progress import Progress as ProgressCallback

_HEADINGS = {"hit@1": "hit@1", "hit@10": "hit@10", "mrr": "MRR"}


#: What a step counts, by its title; a step that is not here counts parts.
_UNITS = {
    "embed": "rows",
    "ranks": "rows",
    "labels": "rows",
    "shard": "rows",
    "pairs": "media",
    "communities": "passes",
    "train": "steps",
    "verify": "manifests",
    "evaluate": "models",
    "mine": "datasets",
    "probes": "probes",
}
_SHOWN_SECONDS = 0.05  # steps that took less leave no line
_DETAIL_SECONDS = 10.0  # between two lines of one step in a log


class _Rate(ProgressColumn):
    """Units a second, of late."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "parts")
        return Text("" if not speed else f"{rate(speed)} {unit}/s", style="progress.data.speed")


class TerminalReporter:
    """Bars on a terminal; elsewhere one line a step, so that logs stay readable.

    Parameters
    ----------
    detail
        Where there are no bars, say every few seconds how far a step is.
    """

    def __init__(self, console: Console, *, detail: bool = False) -> None:
        self.console = console
        self._detail = detail and not console.is_terminal
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Show bars while the block runs."""
        with self._bars:
            yield

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[ProgressCallback]:
        """Show one step; a line with its duration and rate stays when it ends."""
        unit = _UNITS.get(title, "parts")
        bar = self._bars.add_task(title, total=None, unit=unit)
        pace = Pace(time.monotonic())

        def progress(done: int, total: int) -> None:
            self._bars.update(bar, completed=done, total=total or None)
            pace.note(done, total, time.monotonic())
            if self._detail and pace.due(_DETAIL_SECONDS):
                self._print(f"{title:<12} {pace.so_far(unit)}")

        try:
            yield progress
        finally:
            self._bars.remove_task(bar)
        seconds = time.monotonic() - pace.began
        if seconds >= _SHOWN_SECONDS:
            self._print(f"{title:<12} {seconds:7.1f} s{pace.at_end(unit, seconds)}")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


@dataclass
class Pace:
    """How fast one step goes; what was done before it began does not count."""

    began: float
    first: int | None = None
    done: int = 0
    total: int = 0
    last: float = 0.0
    said: float = 0.0

    def note(self, done: int, total: int, now: float) -> None:
        """Take note that ``done`` of ``total`` units are finished."""
        if self.first is None:
            # The first call tells what was there: nothing, or the parts of an earlier run.
            self.first = done if now - self.began < 1 and done < total else 0
            self.said = self.began
        self.done, self.total, self.last = done, total, now

    def due(self, seconds: float) -> bool:
        """Say whether it is time for another line, and take it that there is one now."""
        if self.last - self.said < seconds or self.done >= self.total:
            return False
        self.said = self.last
        return True

    def speed(self, seconds: float) -> float:
        """Return units a second; 0 where nothing is known."""
        return (self.done - (self.first or 0)) / seconds if seconds > 0 else 0.0

    def so_far(self, unit: str) -> str:
        """Say how far the step is, how fast, and how long it will still take."""
        speed = self.speed(self.last - self.began)
        left = f", {duration((self.total - self.done) / speed)} left" if speed else ""
        share = self.done / max(self.total, 1)
        return f"{share:7.0%}, {rate(speed)} {unit}/s{left}"

    def at_end(self, unit: str, seconds: float) -> str:
        """Say how many units there were and how fast; blank where nobody counted them."""
        if not self.total or self.total == 1:
            return ""
        return f"  {self.done:,} {unit}, {rate(self.speed(seconds))}/s"


def rate(speed: float) -> str:
    """Write a number a second in three digits or so."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


def arms_table(
    results: dict[str, Any], *, title: str = "Held-out queries against all positives"
) -> Table:
    """Lay the arms out side by side; the spread is the standard deviation over seeds."""
    table = Table(
        title=f"{title}: mean (± spread) over seeds",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    # Where there is no room, names give way to figures.
    table.add_column("arm", overflow="fold", min_width=8)
    for heading in (*_HEADINGS.values(), "examples", "train s", "seeds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results["arms"]:
        spread = row["mrr_spread"]
        cells = {name: f"{row[name]:.4f}" for name in _HEADINGS}
        cells["mrr"] += "" if spread is None else f" ± {spread:.4f}"
        table.add_row(
            row["arm"],
            *cells.values(),
            f"{row['examples_seen']:,}",
            f"{row['seconds']:.0f}",
            str(len(row["seeds"])),
        )
    return table


def duration(seconds: float) -> str:
    """Write a time as a person says it: 42 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, next_size, next_name in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size} {name}" + (f" {rest} {next_name}" if rest else "")
    return f"{whole} s"


def figures_table(rows: list[dict[str, Any]]) -> Table:
    """Lay the rows of a measurement out, a column a figure."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, name in enumerate(rows[0]):
        table.add_column(name.replace("_", " "), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(_figure(value) for value in row.values()))
    return table


def _figure(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def change_rows(outcome: dict[str, Any]) -> list[dict[str, Any]]:
    """Lay out what ``b3_core.diff`` found, a row a value that has a before and an after."""
    changes = {name: outcome[name] for name in ("batches", "left_out")}
    for section in ("settings", "libraries"):
        changes |= {f"{section}.{key}": pair for key, pair in outcome[section].items()}
    for name, data in outcome["datasets"].items():
        for section in ("inputs", "quality"):
            found = data.get(section, {})
            changes |= {f"{name}: {section}.{key}": pair for key, pair in found.items()}
    return [
        {"what": what, "before": before, "after": after}
        for what, (before, after) in changes.items()
    ]
