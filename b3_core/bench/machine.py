"""What a measurement ran on, and what it took of it."""

import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"cpus": os.cpu_count(), "cpu": _cpu(), "versions": versions}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
