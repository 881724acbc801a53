"""Who is told how far a run is, and how long each step took.

The command line shows bars; a flow that a worker runs writes to Prefect's log. Tasks know
neither: they ask for a step and report to it.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Protocol

from b3_core.progress import Progress, silent


class Reporter(Protocol):
    """Shows steps to a person."""

    def step(self, title: str) -> contextlib.AbstractContextManager[Progress]:
        """Open a step; what it yields is told ``(done, total)``."""


#: Steps that take long enough for somebody to watch them on the run's page.
_LONG = {"embed", "mine", "train", "evaluate"}


class LogReporter:
    """Writes a line when a step ends, and shows a bar on the run's page for the long ones."""

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Progress]:
        """Log the step's end and duration."""
        started = time.monotonic()
        if title in _LONG:
            from tasks.artifacts import open_progress  # noqa: PLC0415 - Prefect, only in a run

            yield open_progress(title)
        else:
            yield silent
        _log().info("%s: done in %.1f s", title, time.monotonic() - started)


def _log() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Return the log of the run's page; the process's own outside a run."""
    from prefect.exceptions import MissingContextError  # noqa: PLC0415 - Prefect, only in a run
    from prefect.logging import get_run_logger  # noqa: PLC0415

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("prefect.b3")


_current: Reporter = LogReporter()
#: Seconds spent in each step of this process, by title.
seconds: dict[str, float] = {}


def use(reporter: Reporter) -> None:
    """Send the steps of this process to ``reporter``."""
    global _current  # noqa: PLW0603 - one terminal a process
    _current = reporter


@contextlib.contextmanager
def step(title: str) -> Iterator[Progress]:
    """Open a step and add its duration to ``seconds``."""
    started = time.monotonic()
    try:
        with _current.step(title) as progress:
            yield progress
    finally:
        seconds[title] = round(seconds.get(title, 0.0) + time.monotonic() - started, 2)
