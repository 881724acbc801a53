"""What an operator does, on a whole installation: deploy, run, change data, cancel."""

import http.server
import json
import re
import subprocess
import sys
import threading
import time

import psutil
import pytest

from deployments.cluster import BUCKET
from tests.conftest import ROOT, topic_table
from tests.system.conftest import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REACTING = ("mine", "train", "evaluate")


def manifests(installation, run_id):
    """URIs of the manifests on a run's page."""
    subflows = installation.api(
        "flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [run_id]}}
    )
    ids = [run_id, *(run["id"] for run in subflows)]
    found = installation.api(
        "artifacts/filter",
        artifacts={"flow_run_id": {"any_": ids}, "key": {"any_": ["laptop-manifests"]}},
    )
    return re.findall(r"`(s3://[^`]+)`", "".join(each["data"] for each in found))


def test_a_deployed_run_ends_well_and_its_manifest_is_sound(installation):
    done = installation.command(
        "prefect", "deployment", "run", "pipeline/laptop", "--watch", "--watch-timeout", "400"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run_id = re.search(r"UUID: (\S+)", done.stdout)[1]
    uris = manifests(installation, run_id)
    assert len(uris) == 2
    for uri in uris:
        verified = installation.command("b3", "verify", uri)
        assert verified.returncode == 0, verified.stderr
        assert "sound" in verified.stdout


def test_a_bad_parameter_is_named_and_starts_nothing(installation):
    before = installation.api("flow_runs/count", flows={"name": {"any_": ["pipeline"]}})
    spec = '{"datasets": [{"name": "a", "uri": "x", "query": "q", "positive": "p"}], '
    spec += '"mining": {"k": 1}}'
    done = installation.command(
        "prefect", "deployment", "run", "pipeline/laptop", "--param", f"spec={spec}", "--watch"
    )
    assert done.returncode == 1
    assert "spec.mining.k" in done.stdout + done.stderr
    after = installation.api("flow_runs/count", flows={"name": {"any_": ["pipeline"]}})
    assert after == before


def test_bootstrap_again_changes_nothing(installation):
    def deployed():
        assert (
            installation.command("python", "-m", "deployments.bootstrap", "laptop").returncode == 0
        )
        kinds = ("deployments", "automations", "work_pools", "work_pools/b3/queues")
        found = {kind: installation.api(f"{kind}/filter") for kind in kinds}
        return {kind: sorted(each["name"] for each in some) for kind, some in found.items()}

    def switches():
        return {
            (flow, each["slug"]): (each["active"], each["schedule"].get("interval"))
            for flow in ("pipeline", "watch")
            for each in installation.described(flow, "laptop")["schedules"]
        }

    first = deployed()
    assert len(first["automations"]) >= 4
    assert switches()["pipeline", "weekly"] == (False, None)
    # What somebody switched in the UI stays as they want it.
    for flow, active, schedule in (
        ("pipeline", True, {}),
        ("watch", False, {"schedule": {"interval": 777}}),
    ):
        (each,) = installation.described(flow, "laptop")["schedules"]
        where = f"deployments/{each['deployment_id']}/schedules/{each['id']}"
        installation.patch(where, active=active, **schedule)
    off = next(each for each in installation.api("automations/filter") if "mine" in each["name"])
    installation.patch(f"automations/{off['id']}", enabled=False)
    wanted = switches()
    assert wanted == {("pipeline", "weekly"): (True, None), ("watch", "poll"): (False, 777.0)}
    assert deployed() == first
    assert switches() == wanted
    enabled = {each["name"]: each["enabled"] for each in installation.api("automations/filter")}
    assert not enabled.pop(off["name"]) and all(enabled.values())
    installation.hush("laptop")


def counts(installation, name):
    return {flow: len(installation.runs(flow, name)) for flow in REACTING}


def quiet(installation, name):
    """Tell whether every run of a CONFIG's deployments has ended, evaluations among them."""
    runs = [run for flow in REACTING for run in installation.runs(flow, name)]
    return bool(installation.runs("evaluate", name)) and all(
        run["state_type"] == "COMPLETED" for run in runs
    )


def test_a_changed_dataset_is_mined_by_itself(installation, tmp_path):
    name = installation.deploy(tmp_path, "still", "moving")
    until(lambda: quiet(installation, name), 400, "the first mining, training and evaluation")

    def pairs(dataset):
        return set(installation.files().ls(f"{BUCKET}/{name}/artifacts/{dataset}/pairs"))

    settled, polls = counts(installation, name), len(installation.runs("watch", name))
    until(lambda: len(installation.runs("watch", name)) >= polls + 10, 500, "ten polls")
    assert counts(installation, name) == settled

    before = {dataset: pairs(dataset) for dataset in ("still", "moving")}
    installation.put(topic_table(40, seed=9), f"{name}/moving/part-1.parquet")
    changed = time.monotonic()
    until(lambda: len(installation.runs("mine", name)) > settled["mine"], 90, "a mine run")
    print(f"a mine run began {time.monotonic() - changed:.0f} s after the change")
    until(
        lambda: (
            len(installation.runs("evaluate", name)) > settled["evaluate"]
            and quiet(installation, name)
        ),
        300,
        "training and evaluation after it",
    )
    assert pairs("still") == before["still"]
    assert len(pairs("moving")) == len(before["moving"]) + 1
    assert counts(installation, name) == {flow: settled[flow] + 1 for flow in REACTING}


def working():
    """Ray workers that have something of ours to do."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0].startswith("ray::ShardWorker")
    ]


def test_cancelling_stops_the_work(installation, tmp_path):
    name = installation.deploy(tmp_path, "large", rows=30_000, teacher="minilm")
    run_id = installation.start("mine", name)
    until(working, 120, "Ray workers")
    time.sleep(5)
    cancelled = time.monotonic()
    installation.api(f"flow_runs/{run_id}/set_state", state={"type": "CANCELLING"})
    until(lambda: not working(), 60, "the end of Ray's work")
    seconds = time.monotonic() - cancelled
    print(f"Ray's work ended {seconds:.1f} s after the cancellation")
    assert seconds < 10
    assert installation.ended(run_id, 60)["state_type"] == "CANCELLED"


def test_a_worker_told_to_stop_lets_its_run_end(installation, tmp_path):
    # One actor: two that import torch at once take half of the time that the worker waits.
    few = {"workers": 1, "shard_rows": 100_000}
    name = installation.deploy(tmp_path, "faq", compute=few)
    installation.hush(name)
    run_id = installation.start("mine", name)
    until(lambda: installation.state(run_id) == "RUNNING", 120, "a running run")
    installation.cluster.end("prefect-worker")
    try:
        assert installation.ended(run_id, 10)["state_type"] == "COMPLETED"
    finally:
        installation.cluster.control("start", "prefect-worker")


def hashes(installation, root):
    """Files of every manifest in a store: the names carry the content's hash."""
    return sorted(
        path.split("/manifest/")[1]
        for path in installation.files().find(f"{BUCKET}/{root}")
        if "/manifest/" in path and not path.endswith("record.json")
    )


def test_datasets_are_mined_side_by_side_to_the_same_bytes(installation, tmp_path):
    name = installation.deploy(tmp_path, "one", "other")
    installation.hush(name)
    assert installation.ended(installation.start("mine", name))["state_type"] == "COMPLETED"
    tasks = installation.api("task_runs/filter", deployments={"name": {"any_": [name]}})
    assert {"mine one", "mine other"} <= {task["name"] for task in tasks}
    config = json.loads((tmp_path / f"{name}.yaml").read_text())
    config["store"]["root"] = f"s3://{BUCKET}/{name}/alone"
    file = tmp_path / "alone.json"
    file.write_text(json.dumps(config))
    alone = {
        key: value
        for key, value in installation.cluster.environment.items()
        if key not in ("RAY_ADDRESS", "PREFECT_API_URL", "RAY_AUTH_TOKEN")
    }
    subprocess.run(
        [sys.executable, "-m", "flows", "mine", file],
        cwd=ROOT,
        env=alone | {"PREFECT_HOME": str(tmp_path / "prefect")},
        check=True,
        timeout=300,
    )
    assert hashes(installation, f"{name}/artifacts") == hashes(installation, f"{name}/alone")


def test_a_second_run_waits_for_the_first(installation, tmp_path):
    name = installation.deploy(tmp_path, "faq")
    installation.hush(name)
    runs = [installation.start(flow, name) for flow in ("mine", "pipeline", "mine")]
    at_once = 0
    deadline = time.monotonic() + 500
    while (states := [installation.state(run) for run in runs]) != ["COMPLETED"] * 3:
        assert time.monotonic() < deadline, states
        assert not {"FAILED", "CRASHED", "CANCELLED"} & set(states)
        at_once = max(at_once, states.count("RUNNING"))
        time.sleep(0.5)
    assert at_once == 1


def test_a_failed_run_is_told(installation, tmp_path, monkeypatch):
    told = []

    class Told(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(self.rfile.read(int(self.headers["content-length"])).decode())
            assert self.headers["content-type"] == "application/json"
            self.send_response(200)
            self.end_headers()

    server = http.server.HTTPServer(("127.0.0.1", 0), Told)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("B3_NOTIFY_URL", f"http://127.0.0.1:{server.server_port}/hook")
    name = installation.deploy(tmp_path, "faq")
    installation.hush(name)
    installation.files().rm_file(f"{BUCKET}/{name}/faq/part-0.parquet")
    run = installation.ended(installation.start("mine", name))
    assert run["state_type"] == "FAILED"
    assert "no file matches" in run["state"]["message"]
    until(lambda: told, 60, "the notification")
    said = json.loads(told[0])["text"]
    assert f"mine/{name}" in said
    assert run["state"]["message"] in said
    server.shutdown()
    server.server_close()
