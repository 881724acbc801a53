"""What a person at a terminal sees: bars while it runs, tables at the end, all on stderr."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from b3_core.progress import Progress as ProgressCallback

_HEADINGS = {"hit@1": "hit@1", "hit@10": "hit@10", "mrr": "MRR"}


class TerminalReporter:
    """Bars on a terminal; elsewhere one line a step, so that logs stay readable."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
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
        """Show one step; a line with its duration stays when it ends."""
        bar = self._bars.add_task(title, total=None)
        started = time.monotonic()

        def progress(done: int, total: int) -> None:
            self._bars.update(bar, completed=done, total=total or None)

        try:
            yield progress
        finally:
            self._bars.remove_task(bar)
        seconds = time.monotonic() - started
        if seconds >= 0.05:
            self.console.print(f"{title:<12} {seconds:7.1f} s", highlight=False)


def arms_table(
    results: dict[str, Any], *, title: str = "Held-out queries against all positives"
) -> Table:
    """Lay the arms out side by side; the spread is the standard deviation over seeds."""
    table = Table(title=f"{title}: mean (± spread) over seeds", box=SIMPLE_HEAD)
    table.add_column("arm", no_wrap=True)
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
