"""What a stage takes: the peak of this stage, not of what the process did before."""

import mmap
import sys

import numpy as np
import pytest

from b3_core.artifacts import Address
from b3_core.store import ArtifactStore
from b3_core.usage import Usage, peak_mb

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset a peak")


def fill(megabytes: int) -> None:
    """Write to pages that are new to the process, whatever its heap has left over."""
    with mmap.mmap(-1, megabytes << 20) as area:
        whole = np.frombuffer(area, np.uint8)
        whole[:] = 1
        del whole


@LINUX
def test_the_peak_is_what_happened_since():
    fill(400)
    used = Usage.start()
    assert used.before_mb < peak_mb() + 1
    fill(100)
    found = used.so_far()
    assert 80 < found["peak_mb"] - found["before_mb"] < 200
    assert 0 < found["seconds"] < 10


@LINUX
def test_a_record_says_what_the_stage_took(tmp_path):
    store = ArtifactStore(str(tmp_path))
    address = Address.of("d", "stage", version=1, settings={}, inputs={})
    with store.draft(address, lineage={}, settings={}) as draft:
        fill(100)
        draft.write_json("a.json", 1)
    record = store.get(address).record
    assert 80 < record["peak_mb"] - record["before_mb"] < 200
    assert record["seconds"] > 0
