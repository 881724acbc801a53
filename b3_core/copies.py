"""Copies of stored files on a machine: named by content, held while of use, then collected.

Whatever is in their folder may be deleted at any time but for what a process holds: a copy that a
process has opened stays readable when it is gone, and one whose path a process keeps, to open it
later or in a process of its own, is locked by it until it ends.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from b3_core import scratch

#: What the folder of an artifact in the making is called.
DRAFT = "b3-draft-"

_held: dict[Path, int] = {}


def cache_folder() -> Path:
    """Return this machine's folder of copies.

    It is below the folder for temporary files (``TMPDIR``).
    """
    folder = Path(tempfile.gettempdir(), f"b3-cache-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def used(copy: Path) -> None:
    """Note that a copy is of use: its age is counted from now."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(copy)


def hold(file: Path) -> bool:
    """Keep a copy from being collected for as long as this process, or one forked from it, lives.

    A file that is no copy needs no holding.

    Returns
    -------
    bool
        False if it is not there any more.
    """
    if file.parent != cache_folder() or file in _held:
        return file.exists()
    try:
        opened = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    fcntl.flock(opened, fcntl.LOCK_SH)  # waits for no more than a deletion
    if os.fstat(opened).st_nlink == 0:
        os.close(opened)
        return False
    _held[file] = opened
    used(file)
    return True


def unused(*, older_than: float, now: float | None = None) -> list[tuple[Path, int]]:
    """List copies that were last used more than ``older_than`` seconds ago, with their sizes.

    Parameters
    ----------
    now
        Seconds since the epoch; the present by default.
    """
    latest = (time.time() if now is None else now) - older_than
    found = []
    for file in sorted(cache_folder().iterdir()):
        with contextlib.suppress(FileNotFoundError):
            info = file.stat()
            if info.st_mtime < latest:
                found.append((file, info.st_size))
    return found


def left_behind(*, older_than: float, now: float | None = None) -> list[tuple[Path, int]]:
    """List what killed processes of this user left in TMPDIR, with sizes: drafts, checkpoints.

    Parameters
    ----------
    older_than, now
        As for :func:`unused`, of the last change of any of its files.
    """
    latest = (time.time() if now is None else now) - older_than
    found = []
    drafts = sorted(Path(tempfile.gettempdir()).glob(f"{DRAFT}*"))
    for folder in [*drafts, *scratch.left()]:
        with contextlib.suppress(FileNotFoundError):
            infos = [file.stat() for file in (folder, *folder.rglob("*"))]
            if infos[0].st_uid == os.getuid() and max(each.st_mtime for each in infos) < latest:
                found.append((folder, sum(each.st_size for each in infos[1:])))
    return found


def collect(copies: Sequence[Path]) -> list[Path]:
    """Delete copies that no process holds; return those deleted."""
    gone = []
    for copy in copies:
        with contextlib.suppress(FileNotFoundError):
            opened = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                copy.unlink()
                gone.append(copy)
            except BlockingIOError:  # somebody holds it, or writes what it stands for
                continue
            finally:
                os.close(opened)
    return gone
