"""What a measurement ran on."""

import os
import platform
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


def machine() -> dict[str, Any]:
    """Name the CPUs, the GPU if torch is in use and sees one, and versions that decide speed."""
    found = {"cpus": os.cpu_count(), "cpu": _cpu(), "versions": installed(_LIBRARIES)}
    return found | ({"gpu": gpu} if (gpu := _gpu()) else {})


def _gpu() -> str | None:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
