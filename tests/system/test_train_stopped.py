"""SIGTERM at random steps of trainings: each keeps the step it is at, and none is done twice."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest

from b3_core.checkpoints import STAGE
from b3_core.store import ArtifactStore
from tests import tiny
from tests.conftest import ROOT, topic_table
from tests.core.test_train import TEXTS
from tests.system.test_kill import records
from tests.system.test_train_killed import STEPS, batches, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STOPS = 10


def wait_for(found, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_a_process_of_its_own(tmp_path):
    model = tiny.bert([text for pair in TEXTS for text in pair], tmp_path)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert start(whole, model, 1000).wait(300) == 0, (whole / "stderr.log").read_text()
    (expected,) = batches(whole)
    store = ArtifactStore(str(stopped / "store"))

    rng = random.Random(0)
    before = 0
    seconds = []
    for target in sorted(rng.sample(range(2, STEPS - 5), STOPS)):
        if target <= before:
            continue
        process = start(stopped, model, 1000)  # no checkpoint but at SIGTERM
        while sum(map(len, batches(stopped))) < target and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 3, (stopped / "stderr.log").read_text()
        seconds.append(time.monotonic() - told)
        (kept,) = store.artifacts("demo", STAGE)
        before = kept.record["settings"]["step"]
        assert before == sum(map(len, batches(stopped)))
    assert start(stopped, model, 1000).wait(300) == 0, (stopped / "stderr.log").read_text()
    assert sum(batches(stopped), []) == expected
    (ours,), (theirs,) = ((each / "model").glob("model.safetensors") for each in (stopped, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    print(f"\n{len(seconds)} SIGTERMs, {max(seconds):.1f} s to the end at most; no step twice")


@pytest.fixture
def config(write_config, tmp_path):
    """Two students whose training takes a while, mined."""
    pq.write_table(topic_table(3000), tmp_path / "pairs.parquet")
    return write_config(
        arms=["random", "b3"],
        batches={"batch_size": 32, "curriculum": [{"epochs": 100}]},
        compute={"shard_rows": 100_000, "train_workers": 1},
    )


@contextlib.contextmanager
def training(config, prefect_home):
    """``b3 train``, and the first process below it that is at work on a student."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "train", str(config), "--json"],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(prefect_home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def busy():
        assert process.poll() is None, process.communicate()
        for each in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # gone meanwhile
                worker = "ray::Warm" in " ".join(each.cmdline())
                # Getting ready takes some ten seconds of a core, each training some thirty.
                if worker and sum(each.cpu_times()[:2]) > 14:
                    return each
        return None

    try:
        yield process, wait_for(busy, 280)
    finally:
        process.kill()
        process.communicate()


def kept_steps(store):
    """Steps of the checkpoints in a store."""
    found = records(store).values()
    return [record["settings"]["step"] for record in found if record["stage"] == STAGE]


def weights(store):
    """Weights of all students, by their hash."""
    return {
        path: [file["sha256"] for name, file in record["files"].items() if "safetensors" in name]
        for path, record in records(store).items()
        if record["stage"] == "student"
    }


def test_a_run_of_flows_and_then_a_worker_of_it(b3, config, prefect_home, tmp_path):
    b3("mine", config)
    store, whole = tmp_path / "store", tmp_path / "whole"
    shutil.copytree(store, whole)
    with training(config, prefect_home) as (run, _):
        told = time.monotonic()
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=120)
        seconds = time.monotonic() - told
    assert run.returncode == 143
    assert said.splitlines()[-1] == "b3: told to end; the same command continues where it stopped"
    first = kept_steps(store)
    assert first

    with training(config, prefect_home) as (run, worker):
        worker.send_signal(signal.SIGTERM)
        wait_for(lambda: set(kept_steps(store)) - set(first))
        assert run.wait(280) == 0  # it goes on in another process, by itself
    assert not kept_steps(store)
    b3("train", rooted(config, whole))
    assert len(weights(store)) == 2
    assert weights(store) == weights(whole)
    print(f"\nsteps {first} kept {seconds:.1f} s after SIGTERM; same weights")


def rooted(config, store):
    """The same CONFIG with another store."""
    file = config.with_name("whole.yaml")
    file.write_text(json.dumps(json.loads(config.read_text()) | {"store": {"root": str(store)}}))
    return file
