"""What work takes of the machine: seconds, and memory of this process."""

import contextlib
import functools
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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


def torch_on_amx() -> Any:
    """Return torch if this process has it in use and the CPU multiplies tiles of bf16, or None."""
    return sys.modules.get("torch") if has_amx() else None


@functools.cache
def has_amx() -> bool:
    """Say whether this CPU multiplies tiles of bf16 (Linux: elsewhere nobody knows)."""
    with contextlib.suppress(OSError):
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return False


def torch_on_gpu() -> Any:
    """Return torch if this process has it in use and it sees a GPU, else None; never imports it."""
    torch: Any = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None


def gpu_peak() -> dict[str, float]:
    """Return ``gpu_peak_mb``, the most memory that torch had for tensors; empty without a GPU.

    Since this process began, or the last reset of torch's own peak. What CUDA and its libraries
    take besides is in nobody's count.
    """
    torch = torch_on_gpu()
    if torch is None:
        return {}
    return {"gpu_peak_mb": float(torch.cuda.max_memory_allocated()) / (1 << 20)}


class TreePeak:
    """The most memory that this process and those it started had at once, as far as was seen."""

    mb: float = 0.0


@contextlib.contextmanager
def tree_peak(every: float = 1.0) -> Iterator[TreePeak]:
    """Watch the memory of this process and its descendants while the block runs (Linux).

    What several share counts once (PSS); pages of mapped files that are in memory count too.
    """
    seen, ended = TreePeak(), threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            seen.mb = max(seen.mb, sum(map(_pss_mb, _tree(os.getpid()))))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = folder.joinpath("stat").read_text(encoding="utf-8", errors="replace")
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(
                int(folder.name)
            )
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def _pss_mb(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
