import os
import subprocess
import sys

import pytest

from b3_core import machine
from b3_core.machine import cgroup_limits, memory_bytes


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
    for name, limit in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    assert sorted(cgroup_limits(lines, tmp_path)) == limits


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
