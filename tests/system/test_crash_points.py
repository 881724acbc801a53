"""SIGKILL at every call of the file system in a run of mining on S3; then the same run goes on.

    counting run: which calls, in which order       reads: killed before
    for each call and moment: a child dies there    writes: before, halfway through the body, after
    then: every record names files that are whole; a run to the end makes the same manifests

Calls are caught at fsspec's file system, below the store. One JSON line of counts is printed
(``pytest -s``).
"""

import concurrent.futures
import contextlib
import hashlib
import http.client
import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
import s3fs

from b3_core.config import PipelineSpec
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.embed import ShardWorker
from b3_core.plan import Plan
from b3_core.stage import missing
from b3_core.store import RECORD, ArtifactStore
from tests.conftest import topic_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

READS = ("cat_file", "exists", "find", "get_file", "info", "size")
WRITES = ("pipe_file", "put_file", "rm_file")
WRITE_MOMENTS = ("before", "halfway", "after")
AT_ONCE = 4  # children; each waits for the server half of its time
ONE_THREAD = {
    "NUMBA_NUM_THREADS": "1",
    "NUMBA_THREADING_LAYER": "workqueue",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def mine(spec: PipelineSpec) -> None:
    """Do what ``b3 mine`` does, in this process."""
    store = ArtifactStore(spec.store.root)
    store.check_writable()
    refs = [PairsRef.of(d, Pairs.of(d, spec.evaluate).run(store)) for d in spec.datasets]
    leg = Plan.of(spec, refs, store).legs[0]
    for vectors in leg.vectors:
        if store.find(vectors.address) is None:
            for shard in missing(vectors.shards, store):
                ShardWorker(store.root).run(shard)
            vectors.run(store)
    for stage in itertools.chain(leg.ranks, leg.graphs, leg.communities, leg.manifests.values()):
        if store.find(stage.address) is None:
            stage.run(store)


def interpose(root, at, moment):
    """Count the calls of the file system; die at number ``at``."""
    fs = ArtifactStore(root).fs._fs
    calls = []

    def counted(name, call):
        def inner(*args, **kwargs):
            calls.append(name)
            die = len(calls) - 1 == at
            if die and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if die and moment == "halfway":
                send_half(name, args)
            try:
                return call(*args, **kwargs)
            finally:
                if die:
                    os.kill(os.getpid(), signal.SIGKILL)

        return inner

    for name in READS + WRITES:
        setattr(fs, name, counted(name, getattr(fs, name)))
    return calls


def send_half(name, args):
    """Send half the body of an object, and die; a removal has no half."""
    if name == "rm_file":
        os.kill(os.getpid(), signal.SIGKILL)
    local_or_stored, stored_or_body = args[:2]
    if name == "put_file":
        stored, body = stored_or_body, Path(local_or_stored).read_bytes()
    else:
        stored, body = local_or_stored, stored_or_body
    server = http.client.HTTPConnection(urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc)
    server.putrequest("PUT", f"/{stored}")
    server.putheader("Content-Length", str(len(body)))
    server.endheaders(body[: len(body) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def child(spec, environment, at, moment, answer):
    """Mine in a process of its own, with a cache of its own, and die at a call."""
    os.environ |= environment
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        calls = interpose(spec.store.root, at, moment)
        mine(spec)
        answer.send(calls)


def run_child(context, spec, at=None, moment=""):
    """Return the calls of a run, or None if it was killed."""
    mine_end, child_end = context.Pipe()
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    process = context.Process(target=child, args=(spec, environment, at, moment, child_end))
    process.start()
    child_end.close()
    calls = None
    with contextlib.suppress(EOFError):
        calls = mine_end.recv()
    process.join()
    assert process.exitcode == (0 if at is None else -signal.SIGKILL)
    return calls


def look(root, direct):
    """Return the records of a store, those with files not there or not right, and the state.

    The state says what lies where, but not when and by whom a record was made.
    """
    base = root.removeprefix("s3://")
    found = direct.find(base)
    bodies = dict(direct.cat(found)) if found else {}
    digests = {path: hashlib.sha256(body).hexdigest() for path, body in bodies.items()}
    records = {path: json.loads(b) for path, b in bodies.items() if path.endswith(f"/{RECORD}")}
    partial = [
        path
        for path, record in records.items()
        for entry in record["files"].values()
        if digests.get(path.removesuffix(RECORD) + entry["path"]) != entry["sha256"]
    ]
    state = {
        path.removeprefix(base): records[path]["files"] if path in records else digest
        for path, digest in digests.items()
        if "/.probe-" not in path
    }
    return records, partial, json.dumps(state, sort_keys=True)


def manifests(records):
    return sorted(
        (record["fingerprint"], sorted(entry["sha256"] for entry in record["files"].values()))
        for record in records.values()
        if record["stage"] == "manifest"
    )


def spec_of(bucket, name, file):
    return PipelineSpec.model_validate(
        {
            "name": "small",
            "datasets": [
                {"name": "faq", "uri": str(file), "query": "question", "positive": "answer"}
            ],
            "mining": {"p": 2, "m": 10, "k": 4},
            "batches": {
                "batch_size": 8,
                "curriculum": [{"epochs": 1, "random_share": 1}, {"epochs": 1}],
            },
            "arms": ["b3"],
            "seeds": [0],
            "store": {"root": f"{bucket}/{name}"},
        }
    )


@contextlib.contextmanager
def fork_server(tmp_path, monkeypatch):
    """Yield a context whose children have everything imported, loaded and compiled.

    The server has mined once, on one thread and with the pool of numba that survives a fork.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.system.warm"])
    with monkeypatch.context() as patch:  # numba refuses to go on here if it stays
        for name, value in ONE_THREAD.items():
            patch.setenv(name, value)
        patch.setenv("B3_TEST_PAIRS", str(tmp_path / "pairs.parquet"))
        multiprocessing.forkserver.ensure_running()
    yield context
    multiprocessing.forkserver._forkserver._stop()


def test_killed_at_every_call(s3_server, s3_bucket, tmp_path, monkeypatch):
    began = time.monotonic()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = tmp_path / "pairs.parquet"
    pq.write_table(topic_table(80), file)
    direct = s3fs.S3FileSystem(endpoint_url=s3_server, use_listings_cache=False)
    with fork_server(tmp_path, monkeypatch) as context:
        calls = run_child(context, spec_of(s3_bucket, "whole", file))
        records, partial, _ = look(f"{s3_bucket}/whole", direct)
        whole = manifests(records)
        assert whole and not partial
        points = [
            (at, moment)
            for at, name in enumerate(calls)
            for moment in (WRITE_MOMENTS if name in WRITES else ("before",))
        ]
        good: dict[str, bool] = {}

        def crash(point):
            """Return how many files were missing or wrong, and whether the run went on right."""
            at, moment = point
            spec = spec_of(s3_bucket, f"{at}-{moment}", file)
            assert run_child(context, spec, at, moment) is None
            _, partial, state = look(spec.store.root, direct)
            if state not in good:  # a read leaves the store as it was
                run_child(context, spec)
                records, broken, _ = look(spec.store.root, direct)
                good[state] = manifests(records) == whole and not broken
            return len(partial), good[state]

        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            outcomes = list(pool.map(crash, points))
    count = {
        "calls": len(calls),
        "crashes": len(outcomes),
        "partial": sum(partial for partial, _ in outcomes),
        "identical": sum(identical for _, identical in outcomes),
    }
    count["states"] = len(good)
    count["seconds"] = round(time.monotonic() - began)
    print("\n" + json.dumps({"crash_points": count, "by_call": {n: calls.count(n) for n in calls}}))
    assert count["crashes"] == count["identical"] == len(points)
    assert count["partial"] == 0
