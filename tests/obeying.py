"""What a process of the tests of ``b3_core.isolated`` does: as it is told."""

import os
import time

from b3_core.errors import InputError

MIB = 1 << 20


def obeying(settings):
    kept = []

    def answer(question):
        kind, value = question
        if kind == "say":
            return [settings, value]
        if kind == "exit":
            os._exit(value)
        if kind == "signal":
            os.kill(os.getpid(), value)
        if kind == "take":
            return len(bytearray(value * MIB))
        if kind == "keep":  # a leak: the innocent come after it
            kept.append(bytearray(value * MIB))
            return len(kept)
        if kind == "sleep":
            time.sleep(value)
            return value
        if kind == "refuse":
            raise InputError(value, expected="x", remedy="y")
        if kind == "write":
            with open(value, "wb") as file:
                file.write(b"x")
            return "written"
        if kind == "print":
            os.write(1, b"what a C library prints\n")
            os.write(2, b"x" * value)
            return "printed"
        raise ValueError(value)

    return answer
