"""What of this machine a process may use: less than there is in a container or a batch job."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the cores that this process may use.

    Its affinity (``taskset``, Slurm) and the quotas of its container and of the cgroups it is in
    count, and so does ``LOKY_MAX_CPU_COUNT``.
    """
    import joblib  # noqa: PLC0415 - a cached run never asks

    # joblib knows the quota of the outermost group alone: of a container, but of no systemd unit.
    return min([int(joblib.cpu_count()), *core_limits(_own_groups(), _CGROUPS)])


def memory_bytes() -> int:
    """Return the memory this process may have: the machine's, or less by a cgroup it is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *memory_limits(_own_groups(), _CGROUPS)])


def memory_limits(lines: list[str], root: Path) -> list[int]:
    """Return the limits of memory, in bytes, of the groups that ``/proc/self/cgroup`` names."""
    limits = []
    for folder, version in _groups(lines, root, "memory"):
        name = "memory.limit_in_bytes" if version == 1 else "memory.max"
        limits += [int(limit) for limit in _read(folder / name) if limit.isdigit()]  # "max": none
    return limits


def core_limits(lines: list[str], root: Path) -> list[int]:
    """Return the quotas, in cores begun, of the groups that ``/proc/self/cgroup`` names."""
    limits = []
    for folder, version in _groups(lines, root, "cpu"):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if version == 1 else ("cpu.max",)
        said = [word for name in names for word in _read(folder / name)]
        if len(said) == 2 and all(map(str.isdigit, said)):  # "max" and -1: none
            quota, period = map(int, said)
            if period:
                limits.append(max(1, -(-quota // period)))
    return limits


def _own_groups() -> list[str]:
    try:
        return Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _groups(lines: list[str], root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of groups that limit what a controller hands out, and their version.

    Each group is within those above it, whose limits hold too. In a container the groups named
    may be the host's, of which only the root is there to be read.
    """
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue  # none: version 2, one tree for all
        tree = root / controller if controllers else root
        inside = PurePosixPath(group.lstrip("/"))
        for part in (inside, *inside.parents):
            yield tree / part, 1 if controllers else 2


def _read(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except OSError:
        return []
