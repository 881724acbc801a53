"""What a measurement ran on."""

import platform
from pathlib import Path
from typing import Any

from b3_core.machine import cores
from b3_core.usage import torch_on_gpu
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
    found = {"cpus": cores(), "cpu": _cpu(), "versions": installed(_LIBRARIES)}
    torch = torch_on_gpu()
    return found if torch is None else {**found, "gpu": str(torch.cuda.get_device_name())}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
