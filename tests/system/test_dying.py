"""SIGKILL of everything that an installation consists of, in the middle of runs.

Five seeds a kind (``B3_SEEDS`` for more); the table is printed: ``pytest -m slow -s``.
"""

import contextlib
import json
import os
import random
import statistics
import time
from dataclasses import dataclass, field

import psutil
import pytest

from deployments.cluster import BUCKET
from deployments.steps import read_config
from tests.system.conftest import until

SEEDS = int(os.environ.get("B3_SEEDS", "5"))
RAY_WORKERS = ("ray::ShardWorker", "ray::Warm", "ray::evaluate_run", "ray::RayTrainWorker")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 * SEEDS)]


def processes(*names):
    """Processes whose command line holds one of these."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if any(name in line for name in names):
            found.append(process)
    return found


def kill(found):
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_ray_worker(installation, rng):
    """One worker at work."""
    workers = processes(*RAY_WORKERS)
    if workers:
        kill([rng.choice(sorted(workers, key=lambda each: each.pid))])
    return bool(workers)


def kill_ray_node(installation, rng):
    """A node with all its workers; supervisor starts another in its place."""
    node = psutil.Process(installation.cluster.pid(f"ray-node:{rng.choice('01')}"))
    kill([*node.children(recursive=True), node])
    return True


def kill_flow(installation, rng):
    found = processes("prefect.engine")
    kill(found)
    return bool(found)


def killing(program):
    def kill_program(installation, rng):
        kill([psutil.Process(installation.cluster.pid(program))])
        return True

    return kill_program


def kill_machine(installation, rng):
    """The worker together with its run: nobody is left to say that the run has crashed."""
    kill([psutil.Process(installation.cluster.pid("prefect-worker"))])
    return kill_flow(installation, rng)


KINDS = {
    "ray worker": kill_ray_worker,
    "ray node": kill_ray_node,
    "flow process": kill_flow,
    "worker and flow": kill_machine,
    "prefect worker": killing("prefect-worker"),
    "prefect server": killing("prefect-server"),
    "s3 gateway": killing("s3"),
}


@dataclass
class Dying:
    """One CONFIG that is run again and again, each time into an empty store."""

    installation: object
    name: str
    spec: dict
    undisturbed: dict = field(default_factory=dict)
    """Flow -> (manifest's files, seconds)."""
    table: list = field(default_factory=list)

    def start(self, flow, place):
        """Start a run whose store is ``place``; return its id."""
        root = f"s3://{BUCKET}/{self.name}/{place}"
        spec = self.spec | {"store": {"root": root, "single_writer": True}}
        return self.installation.start(flow, self.name, parameters={"spec": spec})

    def manifests(self, place):
        """Hash of every file of every manifest in a store."""
        files = self.installation.files()
        records = files.glob(f"{BUCKET}/{self.name}/{place}/*/manifest/*/record.json")
        return {
            record.split("/")[-2]: sorted(
                each["sha256"] for each in json.loads(files.cat_file(record))["files"].values()
            )
            for record in records
        }

    def baseline(self, flow):
        if flow not in self.undisturbed:
            began = time.monotonic()
            run = self.installation.ended(self.start(flow, f"whole-{flow}"))
            assert run["state_type"] == "COMPLETED", run["state"]
            seconds = time.monotonic() - began
            self.undisturbed[flow] = self.manifests(f"whole-{flow}"), seconds
        return self.undisturbed[flow]


@pytest.fixture(scope="module")
def dying(installation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dying")
    # A teacher that takes its time, so that there is something to kill.
    name = installation.deploy(folder, "faq", rows=1200, teacher="minilm")
    installation.hush(name)  # what runs here is what is killed, and nothing else
    made = Dying(installation, name, read_config(str(folder / f"{name}.yaml"))["spec"])
    yield made
    print("\nkind            injected  unharmed  crashed, then whole  seconds lost (median, most)")
    for kind, injected, unharmed, again, lost in made.table:
        worst = f"{statistics.median(lost):.0f}, {max(lost):.0f}"
        print(f"{kind:15} {injected:8} {unharmed:9} {again:20}  {worst}")


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_yet_whole(kind, installation, dying):
    injected = unharmed = again = 0
    lost = []
    for seed in range(SEEDS):
        flow = "pipeline" if seed % 5 == 4 else "mine"
        expected, usual = dying.baseline(flow)
        rng = random.Random(f"{kind} {seed}")
        place = f"{kind.replace(' ', '-')}-{seed}"
        began = time.monotonic()
        run_id = dying.start(flow, place)
        until(lambda run_id=run_id: installation.state(run_id) == "RUNNING", 120, "a running run")
        if kind == "ray worker":  # its time is short
            until(lambda: processes(*RAY_WORKERS), 200, "a Ray worker")
            time.sleep(rng.uniform(0, 5))
        else:
            time.sleep(rng.uniform(0, 0.8 * usual))
        injected += KINDS[kind](installation, rng)
        until(installation.healthy, 120, "every program up again")
        run = installation.ended(run_id)
        if run["state_type"] == "COMPLETED":
            unharmed += 1
        else:
            assert run["state_type"] in ("CRASHED", "FAILED"), run["state"]
            print(f"{kind}, seed {seed}: {run['state_type']}: {run['state']['message']}")
            run = installation.ended(dying.start(flow, place))
            assert run["state_type"] == "COMPLETED", run["state"]
            again += 1
        lost.append(time.monotonic() - began - usual)
        assert dying.manifests(place) == expected
        until(lambda: not processes("prefect.engine", "ray::Shard"), 60, "nothing left running")
    dying.table.append((kind, injected, unharmed, again, lost))
    assert injected == SEEDS
    assert unharmed + again == SEEDS
