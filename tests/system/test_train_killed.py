"""SIGKILL at twenty random steps of one training: it ends as the one that was left alone."""

import os
import random
import subprocess
import sys
import time

import pytest

from tests import tiny
from tests.conftest import ROOT
from tests.core.test_train import TEXTS
from tests.system.trained import PLAN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KILLS = 20
STEPS = len(PLAN.row_SB)


def start(folder, model, seconds):
    folder.mkdir(exist_ok=True)
    with (folder / "stderr.log").open("a") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.system.trained", str(folder), str(model), str(seconds)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=stderr,
        )


def batches(folder) -> list[list[str]]:
    """The batches of every start, none if there was no start yet; half a line counts for none."""
    file = folder / "batches.log"
    text = file.read_text() if file.exists() else ""
    starts = text[: text.rfind("\n") + 1].split("start\n")[1:]
    return [part.splitlines() for part in starts] or [[]]


def test_killed_twenty_times(tmp_path):
    model = tiny.bert([text for pair in TEXTS for text in pair], tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(whole, model, 1000)
    assert undisturbed.wait(300) == 0, (whole / "stderr.log").read_text()
    (expected,) = batches(whole)
    assert len(expected) == STEPS

    rng = random.Random(0)
    injected = 0
    for target in sorted(rng.sample(range(2, STEPS - 1), KILLS)):
        process = start(killed, model, 0.0)
        # The log grows by a line a step; where this start began is known from its first batch.
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            log = batches(killed)[-1]
            if log and expected.index(log[0]) + len(log) >= target:
                break
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)  # somewhere in a step, or in a checkpoint
        injected += process.poll() is None
        process.kill()
        process.wait()
    last = start(killed, model, 0.0)
    assert last.wait(300) == 0, (killed / "stderr.log").read_text()

    assert injected == KILLS
    done = 0
    for log in batches(killed):
        if not log:
            continue  # killed before its first batch
        first = expected.index(log[0])
        assert first <= done and log == expected[first : first + len(log)]
        done = first + len(log)
    assert done == STEPS
    assert batches(killed)[-1] == expected[-len(batches(killed)[-1]) :]
    (ours,), (theirs,) = ((each / "model").glob("model.safetensors") for each in (killed, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    redone = sum(map(len, batches(killed))) - STEPS
    print(f"\n{injected} kills at random steps of {STEPS}; {redone} steps done twice; same weights")
