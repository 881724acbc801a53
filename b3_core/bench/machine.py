"""What a measurement ran on, and what it took of it."""

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from b3_core.versions import installed

_LIBRARIES = (
    "faiss-cpu",
    "faiss-gpu",
    "igraph",
    "leidenalg",
    "pymetis",
    "kaminpar",
    "torch",
    "numpy",
    "numba",
    "sentence-transformers",
)


def peak_mb() -> float:
    """Return the most memory this process ever had resident, in MB.

    From VmHWM where there is a /proc: ru_maxrss survives exec on Linux, so a child would report
    at least what its parent had when it was started.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def machine() -> dict[str, Any]:
    """Name the CPUs and the versions of what decides speed."""
    return {"cpus": os.cpu_count(), "cpu": _cpu(), "versions": installed(_LIBRARIES)}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
