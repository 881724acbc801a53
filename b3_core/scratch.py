"""Temporary folders that are told from those that killed processes left: by who made them."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "b3-scratch-"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary folder for the length of the block."""
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as folder:
        yield Path(folder)


def left() -> list[Path]:
    """List folders of processes of this machine that are gone."""
    found = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        pid = folder.name.removeprefix(_PREFIX).split("-", 1)[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            found.append(folder)
    return found
