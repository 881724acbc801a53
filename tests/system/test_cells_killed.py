"""A worker is killed while cells are ranked: its cell alone is ranked again, to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, topic_table
from tests.system.test_kill import manifest_hashes, records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS, CELL_ROWS = 24_000, 600  # 40 cells: two blocks, and seams between them
PARTS = ("cell-ranks", "block-communities", "seam")


def of_parts(store):
    """Published parts, and when each record was written."""
    return {
        path: (store / path / "record.json").stat().st_mtime_ns
        for path, record in records(store).items()
        if record["stage"] in PARTS
    }


def tree(pid):
    """Every process below another, as far as it is still there."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def command(process):
    """What a process says it is; nothing once it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def config(write_config, tmp_path):
    """A CONFIG of many cells, for a store by name."""
    file = tmp_path / "many.parquet"
    pq.write_table(topic_table(ROWS, topics=200), file)
    columns = {"name": "faq", "query": "question", "positive": "answer"}

    def write(name):
        return write_config(
            f"{name}.yaml",
            datasets=[{"uri": str(file), **columns}],
            mining={"p": 5, "m": 40, "k": 8, "cell_rows": CELL_ROWS},
            arms=["b3"],
            store={"root": str(tmp_path / name)},
            compute={"workers": 2, "shard_rows": 100_000},
        )

    return write


def test_a_killed_worker_loses_its_cells_alone(config, b3, tmp_path, prefect_home):
    b3("mine", config("whole"))
    whole, store = manifest_hashes(tmp_path / "whole"), tmp_path / "store"
    assert len([path for path in of_parts(tmp_path / "whole") if "cell-ranks" in path]) > 8

    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "mine", str(config("store")), "--json"],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(prefect_home)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline, killed = time.monotonic() + 400, 0
    while killed < 2:
        assert process.poll() is None and time.monotonic() < deadline
        done = [path for path in of_parts(store) if "cell-ranks" in path]
        working = [child for child in tree(process.pid) if "ray::run_part" in command(child)]
        if len(done) > 3 * killed and working:
            before = of_parts(store)
            working[0].send_signal(signal.SIGKILL)
            killed += 1
        time.sleep(0.02)
    said, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert json.loads(said)["manifest"]
    assert manifest_hashes(store) == whole
    after = of_parts(store)
    assert before and all(after[path] == written for path, written in before.items())
    assert set(after) == {
        path.replace(str(tmp_path / "whole"), str(store)) for path in of_parts(tmp_path / "whole")
    }
