"""Calls of Ray that are under way, and their end before Ray's: who asks it later starts it anew.

A session begins -> every call of its threads is counted, ended or not
it is left       -> ``end``: whoever waits for Ray gives up, and the last to do so lets Ray end
"""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from b3_core.errors import StoppedError


class Calls:
    """The calls of one session; safe for many threads."""

    def __init__(self) -> None:
        #: Done when all are to end.
        self.ending: Future[None] = Future()
        self.under_way = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Count a call while the block runs.

        Raises
        ------
        StoppedError
            All are to end.
        """
        with self._changed:
            self.check()
            self.under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self.under_way -= 1
                self._changed.notify_all()

    def check(self) -> None:
        """Refuse to go on where all are to end.

        Raises
        ------
        StoppedError
            They are.
        """
        if self.ending.done():
            raise StoppedError(
                "this run is ending, and what it had begun with it",
                remedy="the same command goes on",
            )

    def wait_for(self, future: "Future[Any]", seconds: float | None = None) -> bool:
        """Wait for what Ray was asked for, so many seconds at most; say whether it is there.

        Raises
        ------
        StoppedError
            All are to end.
        """
        wait([future, self.ending], timeout=seconds, return_when=FIRST_COMPLETED)
        self.check()
        return future.done()

    def end(self, seconds: float) -> bool:
        """Have all calls end, and wait for that; say whether they did in so many seconds."""
        with self._changed:
            if not self.ending.done():
                self.ending.set_result(None)
            return self._changed.wait_for(lambda: not self.under_way, timeout=seconds)
