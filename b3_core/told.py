"""A process that is told to end takes note of it, and ends where it can go on from.

A spot instance that is taken back, Slurm, ``docker stop`` and Kubernetes all send SIGTERM, wait a
while, and kill. A training uses that while to keep the step it is at
(:class:`b3_core.checkpoints.Checkpoints`).
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_told = threading.Event()


def note_sigterm() -> None:
    """Take note of the next SIGTERM instead of dying of it; of the one after it, die.

    To be called in the main thread, where Python runs handlers of signals.
    """
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        _told.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, note)


@contextlib.contextmanager
def noting_sigterm() -> Iterator[None]:
    """Take note of SIGTERM as :func:`note_sigterm` does, for a while."""
    before = signal.getsignal(signal.SIGTERM)
    note_sigterm()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def keep_handler() -> None:
    """Put this process's own handler of SIGTERM before one that native code has installed since.

    Ray's prints a stack of addresses first. Nothing is done outside the main thread.
    """
    own = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and own is not None:
        signal.signal(signal.SIGTERM, own)


def is_told() -> bool:
    """Say whether SIGTERM came since ``note_sigterm``."""
    return _told.is_set()
