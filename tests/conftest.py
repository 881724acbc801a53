"""Small real data, and commands run the way a person runs them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from hypothesis import settings

ROOT = Path(__file__).parents[1]
_CASES = {"share": 1.0}


def pytest_configure(config):
    """Where slow tests are left out, a property is tried on a quarter of its cases."""
    if config.option.markexpr == "not slow":
        _CASES["share"] = 0.25
        settings.register_profile("fast", max_examples=examples(100))
        settings.load_profile("fast")
    # A shell without job control has what it starts in the background ignore Ctrl-C, and so would
    # all that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def examples(most):
    """How many of at most so many cases a property is tried on in this run."""
    return max(int(most * _CASES["share"]), 2)


def pytest_collection_modifyitems(items):
    """Side by side, commands first: one process serves Prefect, and no long test is the last."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith("tests/flows/"))


def topic_table(rows: int, *, topics: int = 24, seed: int = 0) -> pa.Table:
    """Questions and answers about a few topics, every text different."""
    rng = np.random.default_rng(seed)
    nouns = ["river", "engine", "violin", "harbour", "library", "orchard", "tunnel", "market"]
    verbs = ["open", "repair", "measure", "paint", "close", "visit", "describe", "rent"]
    picks = rng.integers(0, topics, rows)
    queries = [
        f"how do I {verbs[t % 8]} the {nouns[t // 3 % 8]} number {i} in week {i % 52}"
        for i, t in enumerate(picks)
    ]
    positives = [
        f"to {verbs[t % 8]} {nouns[t // 3 % 8]} {i}, call the {nouns[(t + i) % 8]} at {i * 7}"
        for i, t in enumerate(picks)
    ]
    return pa.table({"question": queries, "answer": positives})


@pytest.fixture
def dataset(tmp_path):
    """A parquet file of 600 pairs."""
    file = tmp_path / "pairs.parquet"
    pq.write_table(topic_table(600), file)
    return file


@pytest.fixture
def write_config(tmp_path, dataset):
    """Return a function that writes a small CONFIG with some keys changed."""

    def write(name="config.yaml", **changes):
        config = {
            "name": "small",
            "datasets": [
                {"name": "faq", "uri": str(dataset), "query": "question", "positive": "answer"}
            ],
            "mining": {"p": 2, "m": 20, "k": 8},
            "batches": {
                "batch_size": 32,
                "curriculum": [{"epochs": 1, "random_share": 1}, {"epochs": 1}],
            },
            "train": {"student": "static", "dim": 32},
            "arms": ["random", "paper", "b3"],
            "seeds": [0],
            "store": {"root": str(tmp_path / "store")},
            "compute": {"workers": 1, "shard_rows": 256},
        } | changes
        file = tmp_path / name
        file.write_text(json.dumps(config))  # JSON is YAML
        return file

    return write


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory):
    """One Prefect database for all commands of the test run: migrating one takes seconds."""
    return tmp_path_factory.getbasetemp() / "prefect"


@pytest.fixture(scope="session")
def b3(prefect_home):
    """Return a function that runs ``b3`` as a person would, in a process of its own."""

    def run(*arguments, check=True, timeout=280, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "flows", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "PREFECT_HOME": str(prefect_home), **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(command, port, **options):
    """Run a server until the block ends; it begins when the port answers."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, **quiet, **options)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def use_s3(monkeypatch, url, key="testing", secret="testing"):
    """Let the environment lead to a server."""
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def s3_server():
    """Moto's S3 server on a loopback port, as a process of its own; yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, port) as url:
        yield url


@pytest.fixture
def s3_bucket(s3_server, monkeypatch):
    """A bucket on the server, and the environment that leads to it; yields its URI."""
    use_s3(monkeypatch, s3_server)
    bucket = f"b3-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem().call_s3("create_bucket", Bucket=bucket)
    yield f"s3://{bucket}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def gateway_server(tmp_path_factory):
    """JuiceFS's S3 gateway over a local folder: a durable server, which ignores If-None-Match."""
    folder = tmp_path_factory.mktemp("gateway")
    juicefs = Path(sys.executable).with_name("juicefs")
    meta = f"sqlite3://{folder}/meta.db"
    subprocess.run(
        [juicefs, "format", meta, "b3-gateway", "--storage", "file", "--bucket", f"{folder}/data/"],
        check=True,
        capture_output=True,
    )
    port = free_port()
    owner = {**os.environ, "MINIO_ROOT_USER": "testing", "MINIO_ROOT_PASSWORD": "testing1"}
    gateway = [juicefs, "gateway", meta, f"127.0.0.1:{port}", "--no-usage-report"]
    with serving(gateway, port, env=owner, cwd=folder) as url:
        yield url


@pytest.fixture
def gateway_bucket(gateway_server, monkeypatch):
    """The gateway's bucket, and the environment that leads to it; yields its URI."""
    use_s3(monkeypatch, gateway_server, secret="testing1")
    yield "s3://b3-gateway"
    s3fs.S3FileSystem.clear_instance_cache()
