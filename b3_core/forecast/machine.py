"""The machine that a plan is for: this one, or one that somebody thinks of."""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from b3_core.errors import InputError
from b3_core.machine import cores, memory_bytes

#: What may have a price: per hour, while the run takes it.
PRICED = ("cpu-hour", "gpu-hour", "machine-hour")


@dataclass(frozen=True)
class Machine:
    """What there is to run on."""

    cpus: int
    memory_gb: float
    disk_gb: float | None
    """None: not known, as of a bucket."""
    gpus: int = 0
    prices: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def here(cls, root: str) -> Self:
        """Look at this machine, and at the disk of a store's root; not at GPUs (gpus_here)."""
        return cls(cores(), memory_bytes() / 1e9, _disk_gb(root))

    def money(self, seconds: float) -> float | None:
        """Return what renting it for so long costs; None without prices."""
        if not self.prices:
            return None
        an_hour = (
            self.prices.get("machine-hour", 0.0)
            + self.prices.get("cpu-hour", 0.0) * self.cpus
            + self.prices.get("gpu-hour", 0.0) * self.gpus
        )
        return seconds / 3600 * an_hour


def gpus_here() -> int:
    """Count the GPUs that torch sees, which is seconds to import."""
    import torch  # noqa: PLC0415

    return int(torch.cuda.device_count())


def read_prices(given: Iterable[str]) -> dict[str, float]:
    """Read prices such as ``gpu-hour=2.5``.

    Raises
    ------
    InputError
        It is no such pair, nothing that has a price, or no number of zero or more.
    """
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if name not in PRICED or not equals or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", value):
            raise InputError(
                f"price {each!r} cannot be read",
                expected=f"one of {', '.join(f'{name}=NUMBER' for name in PRICED)}",
                remedy="for example --price gpu-hour=2.5",
            )
        found[name] = float(value)
    return found


def _disk_gb(root: str) -> float | None:
    if "://" in root:
        return None
    folder = Path(root).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9
