"""What work takes of the machine: seconds, and memory of this process."""

import contextlib
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Usage:
    """A measurement that has begun.

    The peak is the whole process's: of two that overlap, the later one hides the earlier one's.
    """

    started: float
    before_mb: float

    @classmethod
    def start(cls) -> Self:
        """Begin, and forget the peak of what was before, where the system can (Linux)."""
        with contextlib.suppress(OSError):
            _PROC.joinpath("clear_refs").write_text("5", encoding="ascii")
        return cls(time.perf_counter(), peak_mb())

    def so_far(self) -> dict[str, float]:
        """Return ``seconds``, ``before_mb`` resident at the start, and ``peak_mb`` since."""
        return {
            "seconds": round(time.perf_counter() - self.started, 3),
            "before_mb": round(self.before_mb, 1),
            "peak_mb": round(peak_mb(), 1),
        }


def peak_mb() -> float:
    """Return the most memory this process had resident, in MB, since its start or the last reset.

    From VmHWM where there is a /proc: ru_maxrss survives exec on Linux, so a child would report
    at least what its parent had when it was started.
    """
    try:
        status = _PROC.joinpath("status").read_text(encoding="ascii")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
