"""Progress of long work, told to whoever listens: a terminal, a Prefect artifact, or nobody.

Numeric code calls ``report(done, total)``; it never knows what shows it.
"""

from typing import Protocol


class Progress(Protocol):
    """Told how far a long step is: ``done`` of ``total`` units, both non-negative."""

    def __call__(self, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` units are finished."""


def silent(done: int, total: int) -> None:
    """Listen to nothing: the default."""
