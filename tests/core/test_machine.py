import os
import subprocess
import sys

import pytest

from b3_core import machine
from b3_core.machine import core_limits, cores, memory_bytes, memory_limits


def test_cores_are_those_that_the_process_may_use():
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from b3_core import machine
from b3_core.machine import cores
print(cores())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("lines", "limits"),
    [
        (["0::/slurm/job_7/step_0"], [300, 700]),  # version 2: those above count too
        (["12:cpu:/x", "11:memory:/slurm/job_7"], [200, 900]),  # version 1: a tree a controller
        (["0::/../elsewhere"], [700]),  # in a container the host's name of the group
        (["0::/"], [700]),
        ([], []),
    ],
)
def test_memory_is_limited_by_every_group_above(tmp_path, lines, limits):
    files = {
        "memory.max": 700,
        "slurm/memory.max": "max",
        "slurm/job_7/memory.max": 300,
        "memory/memory.limit_in_bytes": 900,
        "memory/slurm/job_7/memory.limit_in_bytes": 200,
    }
    write(tmp_path, files)
    assert sorted(memory_limits(lines, tmp_path)) == limits


@pytest.mark.parametrize(
    ("lines", "limits"),
    [
        (["0::/system.slice/run-7.service"], [2, 6]),
        (["0::/system.slice/small.scope"], [1, 6]),  # a tenth of a core is one that was begun
        (["0::/system.slice"], [6]),
        (["0::/../elsewhere"], [6]),
        (["5:cpuset:/x", "4:cpu,cpuacct:/slurm/job_7"], [3, 8]),
        (["4:cpu:/slurm"], [8]),
        (["4:cpuset:/slurm/job_7"], []),
        ([], []),
    ],
)
def test_cores_are_limited_by_every_group_above(tmp_path, lines, limits):
    files = {
        "cpu.max": "550000 100000",
        "system.slice/cpu.max": "max 100000",
        "system.slice/run-7.service/cpu.max": "200000 100000",
        "system.slice/small.scope/cpu.max": "10000 100000",
        "cpu/cpu.cfs_quota_us": 800_000,
        "cpu/cpu.cfs_period_us": 100_000,
        "cpu/slurm/cpu.cfs_quota_us": -1,
        "cpu/slurm/cpu.cfs_period_us": 100_000,
        "cpu/slurm/job_7/cpu.cfs_quota_us": 125_000,
        "cpu/slurm/job_7/cpu.cfs_period_us": 50_000,
    }
    write(tmp_path, files)
    assert sorted(core_limits(lines, tmp_path)) == limits


def test_a_quota_of_a_group_counts_beside_the_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    before = cores()
    for quota, most in ((100_000, 1), ("max", before), (99_900_000, before)):
        older = -1 if quota == "max" else quota
        files = {"cpu.max": f"{quota} 100000", "cpu/cpu.cfs_quota_us": older}
        write(tmp_path, files | {"cpu/cpu.cfs_period_us": 100_000})
        assert cores() == most


def write(root, files):
    for name, said in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{said}\n")


@pytest.mark.parametrize(("limit", "share"), [(None, 1), ("max", 1), (1 << 62, 1), (1 << 20, 0)])
def test_the_machines_memory_is_there_where_nothing_limits_it(tmp_path, monkeypatch, limit, share):
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    for folder in (tmp_path, tmp_path / "memory"):
        folder.mkdir(exist_ok=True)
        for name in ("memory.max", "memory.limit_in_bytes"):
            if limit is not None:
                (folder / name).write_text(f"{limit}\n")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes() == (whole if share else 1 << 20)
