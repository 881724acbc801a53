"""What of this machine a process may use: less than there is in a container or a batch job."""

import os
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the cores that this process may use.

    Its affinity (``taskset``, Slurm) and the quota of its container count, and so does
    ``LOKY_MAX_CPU_COUNT``.
    """
    import joblib  # noqa: PLC0415 - a cached run never asks

    return int(joblib.cpu_count())


def memory_bytes() -> int:
    """Return the memory this process may have: the machine's, or less by a cgroup it is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return min([total, *cgroup_limits(lines, _CGROUPS)])


def cgroup_limits(lines: list[str], root: Path) -> list[int]:
    """Return the limits of memory, in bytes, of the groups that ``/proc/self/cgroup`` names.

    Each group is within those above it, whose limits hold too. In a container the groups named
    may be the host's, of which only the root is there to be read.
    """
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):  # "": version 2, one tree for all
            continue
        tree = root / "memory" if controllers else root
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        inside = PurePosixPath(group.lstrip("/"))
        for folder in (inside, *inside.parents):
            try:
                limit = (tree / folder / name).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if limit.isdigit():  # "max": none
                limits.append(int(limit))
    return limits
