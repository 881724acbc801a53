"""SIGKILL in every stage, then the same command: it goes on to manifests of the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Stage -> the command that goes as far. Stages that Ray workers publish are killed from outside.
IN_PROCESS = {
    "pairs": "mine",
    "embeddings": "mine",
    "ranks": "mine",
    "graph": "mine",
    "communities": "mine",
    "manifest": "mine",
    "results": "run",
}
BY_WORKERS = {"shard": "mine", "student": "run", "evaluation": "run"}


def records(store: Path) -> dict[str, dict]:
    """Published artifacts by their path below the store."""
    found = store.glob("*/*/*/record.json")
    return {str(file.parent.relative_to(store)): json.loads(file.read_text()) for file in found}


def manifest_hashes(store: Path) -> dict[str, list[str]]:
    """Every manifest's data files: the names carry the content's hash."""
    return {
        path: sorted(file["sha256"] for file in record["files"].values())
        for path, record in records(store).items()
        if record["stage"] == "manifest"
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Manifests of an undisturbed run, filled by the first test."""
    return {}


def undisturbed(expected, b3, write_config, tmp_path):
    """Return the manifests of the same CONFIG, never killed, in another store."""
    if not expected:
        config = write_config("whole.yaml", store={"root": str(tmp_path / "whole")})
        b3("mine", config)
        expected |= manifest_hashes(tmp_path / "whole")
    return expected


@pytest.mark.parametrize("stage", IN_PROCESS)
def test_killed_before_a_record(stage, b3, write_config, tmp_path, prefect_home, expected):
    whole = undisturbed(expected, b3, write_config, tmp_path)
    config = write_config()
    killed = subprocess.run(
        [sys.executable, "-m", "tests.system.killed", stage, IN_PROCESS[stage], str(config)],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(prefect_home)},
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    store = tmp_path / "store"
    before = records(store)
    assert not any(record["stage"] == stage for record in before.values())
    goes_on(b3, IN_PROCESS[stage], config, store=store, before=before, whole=whole)


@pytest.mark.parametrize("stage", BY_WORKERS)
def test_killed_between_two_parts_of_a_stage(
    stage, b3, write_config, tmp_path, prefect_home, expected
):
    """These are published by Ray workers: kill the command when the first one is there."""
    whole = undisturbed(expected, b3, write_config, tmp_path)
    config = write_config()
    store = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", BY_WORKERS[stage], str(config)],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(prefect_home)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 280
    while not list(store.glob(f"*/{stage}/*/record.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = records(store)
    assert any(record["stage"] == stage for record in before.values())
    last = {"mine": "manifest", "run": "results"}[BY_WORKERS[stage]]
    assert not any(record["stage"] == last for record in before.values())
    goes_on(b3, BY_WORKERS[stage], config, store=store, before=before, whole=whole)


def test_killed_within_a_training(b3, write_config, tmp_path, prefect_home):
    """The same command goes on from the last checkpoint, in another Ray, to the same student."""
    long = {
        "arms": ["b3"],
        "batches": {"batch_size": 32, "curriculum": [{"epochs": 60}]},
        "compute": {"workers": 1, "shard_rows": 256, "checkpoint_minutes": 0.005},
    }
    config = write_config(**long)
    store = tmp_path / "store"
    b3("mine", config)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "train", str(config)],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(prefect_home)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 280
    while not list(store.glob("*/checkpoint/*/record.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list(store.glob("*/student/*/record.json"))
    killed_at = max(
        record["settings"]["step"]
        for record in records(store).values()
        if record["stage"] == "checkpoint"
    )
    b3("train", config, timeout=600)
    (file,) = store.glob("*/student/*/model/model.*.safetensors")
    (loss,) = store.glob("*/student/*/loss.*.json")
    assert killed_at > 0
    assert not list(store.glob("*/checkpoint/*/record.json"))

    whole = write_config("whole.yaml", **long, store={"root": str(tmp_path / "whole")})
    b3("train", whole, timeout=600)
    (whole,) = (tmp_path / "whole").glob("*/student/*/model/model.*.safetensors")
    assert file.read_bytes() == whole.read_bytes()
    (expected,) = (tmp_path / "whole").glob("*/student/*/loss.*.json")
    assert loss.read_bytes() == expected.read_bytes()


def goes_on(b3, verb, config, *, store, before, whole):
    """Run again: what was published is kept as it was, and the manifests are the right ones."""
    b3(verb, config)
    after = records(store)
    assert {path: after[path]["writer"] for path in before} == {
        path: record["writer"] for path, record in before.items()
    }
    assert manifest_hashes(store) == whole
