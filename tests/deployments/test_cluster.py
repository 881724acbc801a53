"""How programs of the local installation are ended, on a real supervisor."""

import contextlib
import sys
import time
from pathlib import Path

import psutil
import pytest

from b3_core.errors import B3Error
from deployments import cluster as module
from deployments.cluster import Cluster

IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
PROGRAMS = {
    "steady": "sleep 600",
    "failing": "sh -c 'exit 3'",  # started again and again: BACKOFF
    "leaving": "sleep 1.5",  # stays up long enough to be EXITED, and is started again
    "deaf": f"{sys.executable} -c '{IGNORES}'",
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """An installation whose keeper keeps other programs."""
    lines = [
        f"[supervisord]\nlogfile={tmp_path}/log\npidfile={tmp_path}/supervisord.pid",
        f"[unix_http_server]\nfile={tmp_path}/ctl",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        f"[supervisorctl]\nserverurl=unix://{tmp_path}/ctl",
    ]
    for name, command in PROGRAMS.items():
        lines += [f"[program:{name}]\ncommand={command}", "autorestart=true\nstartretries=1000"]
        lines += ["stopwaitsecs=600"]
    conf = tmp_path / "supervisord.conf"
    conf.write_text("\n".join(lines))
    monkeypatch.setattr(module, "_CONF", conf)
    made = Cluster(
        tmp_path,
        {
            "ports": dict.fromkeys(("prefect", "ray", "s3", "worker"), 1),
            **dict.fromkeys(("ray_token", "s3_key", "s3_secret"), "none"),
        },
    )
    made.run(Path(sys.executable).with_name("supervisord"), "-c", conf)
    keeper = psutil.Process(int(until(lambda: read(tmp_path / "supervisord.pid"))))
    try:
        yield made
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            left = keeper.children(recursive=True)
            for process in [keeper, *left]:  # it would start them again
                process.kill()


def read(file):
    return file.exists() and file.read_text()


def until(holds):
    deadline = time.monotonic() + 20
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def state(cluster, program):
    return cluster.control("status", program).split()[1]


def test_what_would_be_started_again_is_ended(cluster):
    until(lambda: state(cluster, "failing") == "BACKOFF")
    cluster.end("failing")
    assert state(cluster, "failing") == "STOPPED"


@pytest.mark.parametrize("program", ["steady", "leaving"])
def test_a_program_is_gone_and_stays_down(cluster, program):
    until(lambda: state(cluster, program) == "RUNNING")
    cluster.end(program)
    assert cluster.pid(program) is None
    assert state(cluster, program) == "STOPPED"
    cluster.end(program)  # there is nothing to do


def test_what_does_not_end_is_named_in_time(cluster, monkeypatch):
    monkeypatch.setattr(module, "_END_SECONDS", 1)
    until(lambda: state(cluster, "deaf") == "RUNNING")
    pid = cluster.pid("deaf")
    with pytest.raises(B3Error, match=rf"deaf \(process {pid}\) is STOPPING 1 s after"):
        cluster.end("deaf")


def test_all_is_stopped_though_one_program_does_not_end(cluster, monkeypatch):
    monkeypatch.setattr(module, "_END_SECONDS", 1)
    monkeypatch.setattr(module, "_KEEPER_SECONDS", 1)
    monkeypatch.setattr(module, "PROGRAMS", ("steady", "deaf"))
    until(lambda: state(cluster, "deaf") == state(cluster, "steady") == "RUNNING")
    processes = [psutil.Process(cluster.pid(program)) for program in module.PROGRAMS]
    cluster.stop()
    assert all(module._is_over(process) for process in processes)
    assert cluster.supervisor is None


def test_the_deadline_is_behind_the_keepers_own():
    conf = Path(module.__file__).with_name("supervisord.conf").read_text()
    waits = [int(line.split("=")[1]) for line in conf.splitlines() if "stopwaitsecs" in line]
    assert max(waits) + 10 < module._END_SECONDS
