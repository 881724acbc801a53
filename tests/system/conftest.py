"""A whole installation, started once for the tests that need one."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import s3fs

from deployments.cluster import BUCKET, PROGRAMS, Cluster
from tests.conftest import ROOT, topic_table

ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class Installation:
    """A running cluster as a test sees it: commands, the API, the bucket."""

    cluster: Cluster

    def command(self, *arguments, timeout=500):
        """Run a command of the environment's bin folder as an operator would."""
        program = Path(sys.executable).with_name(arguments[0])
        return subprocess.run(
            [program, *map(str, arguments[1:])],
            cwd=ROOT,
            env={**self.cluster.environment, "COLUMNS": "200", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def api(self, path, **body):
        """POST to Prefect's API."""
        url = self.cluster.client_environment["PREFECT_API_URL"]
        answer = httpx.post(f"{url}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def runs(self, flow, deployment):
        """Return the runs of a deployment that are not just planned, oldest first."""
        found = self.api(
            "flow_runs/filter",
            flows={"name": {"any_": [flow]}},
            deployments={"name": {"any_": [deployment]}},
            sort="START_TIME_ASC",
        )
        return [run for run in found if run["state_type"] != "SCHEDULED"]

    def run(self, run_id):
        """Read a run; wait for the server where it is just starting."""
        url = self.cluster.client_environment["PREFECT_API_URL"]
        for _ in range(60):
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/flow_runs/{run_id}", timeout=30).json()
            time.sleep(1)
        raise AssertionError("the Prefect server does not answer")

    def state(self, run_id):
        return self.run(run_id)["state_type"]

    def patch(self, path, **body):
        """PATCH at Prefect's API, as its UI does."""
        url = self.cluster.client_environment["PREFECT_API_URL"]
        httpx.patch(f"{url}/{path}", json=body, timeout=30).raise_for_status()

    def described(self, flow, name):
        """Read a deployment."""
        url = self.cluster.client_environment["PREFECT_API_URL"]
        return httpx.get(f"{url}/deployments/name/{flow}/{name}", timeout=30).json()

    def deployment(self, flow, name):
        return self.described(flow, name)["id"]

    def start(self, flow, name, **settings):
        """Start a run through the API; return its id."""
        where = f"deployments/{self.deployment(flow, name)}/create_flow_run"
        return self.api(where, **settings)["id"]

    def hush(self, name):
        """Let nothing of a CONFIG start by itself: no schedule, no trigger."""
        url = self.cluster.client_environment["PREFECT_API_URL"]
        self.api(f"deployments/{self.deployment('watch', name)}/pause_deployment")
        for flow in ("mine", "train", "evaluate"):
            owner = f"prefect.deployment.{self.deployment(flow, name)}"
            httpx.delete(f"{url}/automations/owned-by/{owner}", timeout=30).raise_for_status()

    def healthy(self):
        """Tell whether every program is up and the server answers."""
        with contextlib.suppress(httpx.HTTPError):
            url = self.cluster.client_environment["PREFECT_API_URL"]
            answer = httpx.get(f"{url}/health", timeout=5)
            return answer.is_success and all(map(self.cluster.pid, PROGRAMS))
        return False

    def ended(self, run_id, timeout=400):
        """Wait until a run has ended; return it."""
        return until(
            lambda: (run := self.run(run_id))["state_type"] in ENDED and run, timeout, run_id
        )

    def files(self):
        """The bucket, for s3fs."""
        named = self.cluster.client_environment
        return s3fs.S3FileSystem(
            key=named["AWS_ACCESS_KEY_ID"],
            secret=named["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=named["AWS_ENDPOINT_URL"],
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def put(self, table, path):
        """Write a parquet file to the bucket."""
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            pq.write_table(table, file.name)
            self.files().put_file(file.name, f"{BUCKET}/{path}")

    def deploy(self, folder, *datasets, rows=600, **changes):
        """Put datasets of some rows and deploy a small CONFIG on them; return its name."""
        name = f"t{uuid.uuid4().hex[:8]}"
        for seed, dataset in enumerate(datasets):
            self.put(topic_table(rows, seed=seed), f"{name}/{dataset}/part-0.parquet")
        config = {
            "name": name,
            "datasets": [
                {
                    "name": dataset,
                    "uri": f"s3://{BUCKET}/{name}/{dataset}",
                    "query": "question",
                    "positive": "answer",
                }
                for dataset in datasets
            ],
            "mining": {"p": 2, "m": 20, "k": 8},
            "batches": {"batch_size": 32, "curriculum": [{"epochs": 1}]},
            "train": {"student": "static", "dim": 32},
            "arms": ["b3"],
            "store": {"root": f"s3://{BUCKET}/{name}/artifacts", "single_writer": True},
            "compute": {"workers": 2, "shard_rows": 256},
        } | changes
        file = Path(folder, f"{name}.yaml")
        file.write_text(json.dumps(config))
        seconds = ["--watch-seconds", "20"]
        done = self.command("python", "-m", "deployments.bootstrap", file, *seconds)
        assert done.returncode == 0, done.stdout + done.stderr
        return name


def until(check, timeout, what):
    """Poll until ``check`` returns something true; return that."""
    deadline = time.monotonic() + timeout
    while not (found := check()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.5)
    return found


@pytest.fixture(scope="session")
def installation():
    """`make cluster` in a folder of its own, and down again at the end.

    B3_CLUSTER_HOME names one that is up, and stays up: for somebody at work on these tests.
    """
    if "B3_CLUSTER_HOME" in os.environ:
        yield Installation(Cluster.at(Path(os.environ["B3_CLUSTER_HOME"])))
        return
    home = Path(tempfile.mkdtemp(prefix="b3-", dir="/tmp"))
    command = [sys.executable, "-m", "deployments.cluster"]
    up = [*command, "up", "--home", home, "--pairs", "2000"]
    started = subprocess.run(
        list(map(str, up)),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        installation = Installation(Cluster.at(home))
        installation.hush("laptop")  # it would mine by itself beside what is tested
        yield installation
    finally:
        subprocess.run([*command, "down", "--home", home], cwd=ROOT, check=True, timeout=120)
