"""A process that is told to end takes note of it, and ends where it can go on from.

A spot instance that is taken back, Slurm, ``docker stop`` and Kubernetes all send SIGTERM, wait a
while, and kill. A training uses that while to keep the step it is at
(:class:`b3_core.checkpoints.Checkpoints`).
"""

import contextlib
import ctypes
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


@contextlib.contextmanager
def keeping_handler() -> Iterator[None]:
    """Have SIGTERM handled after the block as before, whatever native code installs in it.

    Ray's handler prints a stack of addresses, and ends the process three seconds later. Python
    sets handlers in the main thread alone; this is for any.
    """
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.argtypes, get.restype = [ctypes.c_int], ctypes.c_void_p
    put.argtypes, put.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    before = get(signal.SIGTERM)
    try:
        yield
    finally:
        put(signal.SIGTERM, before)


def is_told() -> bool:
    """Say whether SIGTERM came since ``note_sigterm``."""
    return _told.is_set()
