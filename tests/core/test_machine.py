import subprocess
import sys

import pytest

from b3_core.machine import cgroup_limits, memory_bytes


def test_cores_are_those_that_the_process_may_use():
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
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


def test_this_process_has_memory():
    assert memory_bytes() > 1e8
