"""Who handles SIGTERM."""

import ctypes
import os
import signal
import threading
import time

from b3_core.told import keeping_handler


def test_native_code_takes_sigterm_from_nobody():
    """In a thread that is not the main one, as Ray is opened by a task."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))

    def start():
        with keeping_handler():
            ctypes.pythonapi.PyOS_setsig(signal.SIGTERM, ctypes.c_void_p(int(signal.SIG_IGN)))

    try:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 5
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard
