"""Ctrl-C and SIGTERM in the middle: one line, its exit code, nothing left; then it goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, topic_table
from tests.system.test_kill import records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SOON = 40  # seconds, with other work on the machine: Ray alone takes some to end
SAID = {
    signal.SIGINT: (130, "b3: interrupted; the same command continues where it stopped"),
    signal.SIGTERM: (143, "b3: told to end; the same command continues where it stopped"),
}


def started_by(mark):
    """Every process that has the mark in its environment: below a command, or left by it."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if each.environ().get("B3_TEST_MARK") == mark and each.status() != "zombie":
                found.append(each)
    return found


def foreground(*arguments, home, stderr=subprocess.STDOUT, **environment):
    """Start a command as a terminal does, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows", *arguments],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(home), **environment},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def seconds_to_end(verb, config, prefect_home, *, at, number):
    """Run a command in the foreground, signal it once ``at`` holds of its mark; time its end.

    Ctrl-C goes to the whole group, as a terminal sends it; SIGTERM to the command alone.
    """
    mark = uuid.uuid4().hex
    process = foreground(verb, str(config), home=prefect_home, B3_TEST_MARK=mark)
    try:
        deadline = time.monotonic() + 280
        while not at(mark):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        began = time.monotonic()
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        said, _ = process.communicate(timeout=3 * SOON)
        seconds = time.monotonic() - began
        code, line = SAID[number]
        assert (process.returncode, said.splitlines()[-1]) == (code, line), said
        while left := started_by(mark):  # they see that it is gone, and go
            assert time.monotonic() < began + seconds + SOON, left
            time.sleep(0.2)
    finally:
        for each in started_by(mark):
            with contextlib.suppress(psutil.Error):
                each.kill()
        process.communicate()
    print(f"\n{verb}: exit {code} after {seconds:.1f} s")
    return seconds


def ray_is_starting(mark):
    return any("raylet" in each.name() for each in started_by(mark))


@pytest.mark.parametrize(
    ("number", "when"),
    [(signal.SIGINT, "starting"), (signal.SIGINT, "embedding"), (signal.SIGTERM, "embedding")],
)
def test_a_mining(number, when, b3, write_config, tmp_path, prefect_home):
    pq.write_table(topic_table(6000), tmp_path / "pairs.parquet")
    config = write_config(compute={"workers": 2, "shard_rows": 256}, arms=["b3"])
    store = tmp_path / "store"

    def shards():
        return sum(record["stage"] == "shard" for record in records(store).values())

    at = ray_is_starting if when == "starting" else lambda _: shards()
    assert seconds_to_end("mine", config, prefect_home, at=at, number=number) < SOON
    some = shards()
    b3("mine", config)
    assert some < shards()  # it was in the middle
    assert any(record["stage"] == "manifest" for record in records(store).values())


@pytest.mark.parametrize("when", ["starting", "training"])
def test_trainings_side_by_side(when, b3, write_config, tmp_path, prefect_home):
    epochs = 2 if when == "starting" else 60
    config = write_config(
        arms=["b3"],
        seeds=[0, 1],
        batches={"batch_size": 32, "curriculum": [{"epochs": epochs}]},
        compute={"workers": 2, "shard_rows": 4096, "checkpoint_minutes": 0.005},
    )
    b3("mine", config)
    store = tmp_path / "store"

    def stages():
        return [record["stage"] for record in records(store).values()]

    def processes_are_starting(mark):
        return any("ray::Warm" in " ".join(each.cmdline()) for each in started_by(mark))

    at = processes_are_starting if when == "starting" else lambda _: "checkpoint" in stages()
    assert seconds_to_end("train", config, prefect_home, at=at, number=signal.SIGINT) < SOON
    assert stages().count("student") < 2
    b3("train", config)
    assert stages().count("student") == 2


@pytest.mark.parametrize("seconds", [0, 0.05, 0.3])
def test_the_end_after_the_result(seconds, write_config, prefect_home):
    """Prefect's threads take a second to end: Ctrl-C then ends them, and says nothing."""
    config = write_config(arms=["random"], compute={"workers": 1, "shard_rows": 100_000})
    arguments = ("mine", str(config), "--json")
    process = foreground(*arguments, home=prefect_home, stderr=subprocess.PIPE)
    assert json.loads(process.stdout.readline())["manifests"]
    time.sleep(seconds)
    assert process.poll() is None  # it still ends
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in err and "Exception" not in err, err
