"""Requests of every store operation, and for a dataset, broken in every way: nothing is wrong.

A run without faults counts the requests of each kind. Then the same operations run once for each
request and fault, or for at most eight that are evenly spread. One JSON line of counts is printed
at the end (``pytest -s``).
"""

import collections
import functools
import json
import math
import os
import shutil
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from b3_core import remote
from b3_core.artifacts import Address
from b3_core.errors import B3Error
from b3_core.source import read_rows, source_digest
from b3_core.store import RECORD, ArtifactStore
from tests.conftest import use_s3
from tests.system.fault_proxy import ANY_KIND, OF_BODIES, FaultProxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ADDRESS = Address("data", "stage", "f00d")
SMALL = {"sub/one.bin": os.urandom(5000), "two.bin": b"2" * 100}
PART = 5 << 20  # bytes; S3 takes no smaller part
LARGE = {"large.bin": os.urandom(2 * PART + 1000)}  # three parts
ROWS = {side: [f"{side} {i * 7919 % 9973} {i}" for i in range(6000)] for side in ("q", "a")}
COLUMNS = {"query": "q", "positive": "a"}


@pytest.fixture(scope="module")
def tally():
    """Kind -> fault -> how it went; printed when all is done."""
    counts = collections.defaultdict(dict)
    yield counts
    whole = collections.Counter()
    for faults in counts.values():
        for count in faults.values():
            whole.update(count)
    print("\n" + json.dumps({"faults": counts, "all": whole}))


@pytest.fixture
def proxied(s3_server, s3_bucket, monkeypatch, tmp_path):
    """A proxy, a bucket behind it, and the way round the proxy."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    direct = s3fs.S3FileSystem(endpoint_url=s3_server, use_listings_cache=False)
    with FaultProxy(s3_server) as proxy:
        use_s3(monkeypatch, proxy.url)
        yield proxy, s3_bucket, direct


def exercise(root, direct, contents):
    """Do everything a store can do; fail if any result is not the right one."""
    store = ArtifactStore(root)
    store.check_writable()
    assert store.find(ADDRESS) is None
    with store.draft(ADDRESS, lineage={"up": "1"}, settings={}) as draft:
        for name, content in contents.items():
            draft.path(name).write_bytes(content)
        draft.counts["files"] = len(contents)
    artifact = store.get(ADDRESS)
    assert store.find(ADDRESS).record == artifact.record
    assert artifact.counts == {"files": len(contents)}
    shutil.rmtree(f"{tempfile.gettempdir()}/b3-cache-{os.getuid()}", ignore_errors=True)
    assert {name: artifact.path(name).read_bytes() for name in artifact.files} == contents
    paths = {f"{ADDRESS.path}/{name}" for name in (*store.named_files(ADDRESS.path), RECORD)}
    assert set(store.files()) == paths
    # What the server holds, asked without the proxy.
    base = root.removeprefix("s3://")
    stored = {entry.path: contents[name] for name, entry in artifact.files.items()}
    there = {path.removeprefix(f"{base}/{ADDRESS.path}/") for path in direct.find(base)}
    assert there == {*stored, RECORD}
    for path, content in stored.items():
        assert direct.cat_file(f"{base}/{ADDRESS.path}/{path}") == content
    assert json.loads(direct.cat_file(f"{base}/{ADDRESS.path}/{RECORD}")) == artifact.record
    for path in paths:
        store.remove(path)
    assert direct.find(base) == []


def read_dataset(root, direct):
    """Read a dataset of three files, as a folder and by a pattern; fail if a row is not right."""
    with direct.open(f"{root}/d/sub/c.parquet", "wb") as sink:
        pq.write_table(pa.table(ROWS).slice(4000), sink)
    for place, name in enumerate(("a", "b")):
        with direct.open(f"{root}/d/{name}.parquet", "wb") as sink:
            pq.write_table(pa.table(ROWS).slice(2000 * place, 2000), sink, row_group_size=500)
    whole = read_rows(f"{root}/d", COLUMNS)
    assert whole.to_pydict() == {"query": ROWS["q"], "positive": ROWS["a"]}
    assert read_rows(f"{root}/d/*.parquet", COLUMNS) == whole.slice(0, 4000)
    assert read_rows(f"{root}/*/*/c.parquet", COLUMNS) == whole.slice(4000)
    direct.invalidate_cache()
    assert source_digest(f"{root}/d") == source_digest(f"{root}/d")


def break_each(proxied, kind, work, tallied, faults=None):
    """Do the work once for each request of a kind and each fault."""
    proxy, bucket, direct = proxied
    proxy.plan("", "")
    work(f"{bucket}/whole", direct)
    requests = range(1, proxy.seen[kind] + 1)
    assert requests
    chosen = [*requests[:: math.ceil(len(requests) / 8)]]
    chosen *= math.ceil(3 / len(chosen))  # the few that are there, more than once
    for fault in faults or ANY_KIND + (OF_BODIES if kind == "get" else []):
        count = collections.Counter(injected=0, survived=0, refused=0, wrong=0)
        # Twice, since aiohttp sends again by itself what got no answer.
        times = 2 if fault in ("reset", "lost") else 1
        for nth in chosen:
            proxy.plan(kind, fault, nth=nth, times=times)
            try:
                work(f"{bucket}/{fault}-{nth}", direct)
                outcome = "survived"
            except B3Error:
                outcome = "refused"
            except Exception as error:
                print(f"{kind} {fault} {nth}: {type(error).__name__}: {error}")
                outcome = "wrong"
            count[outcome] += 1
            count["injected"] += proxy.injected > 0
        tallied[fault] = count
        assert count["injected"] == count["survived"] == len(chosen), (fault, count)
        assert count["wrong"] == 0


@pytest.mark.parametrize("kind", ["put", "create", "get", "head", "list", "delete"])
def test_a_broken_request_changes_nothing(kind, proxied, tally):
    break_each(proxied, kind, functools.partial(exercise, contents=SMALL), tally[kind])


@pytest.mark.parametrize("kind", ["begin", "part", "complete", "get"])
def test_a_broken_request_of_a_large_file_changes_nothing(kind, proxied, tally, monkeypatch):
    """s3fs cuts files above 100 MiB into parts; here, above 10 MiB."""
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda *_, **__: PART)
    monkeypatch.setattr("s3fs.S3FileSystem.default_block_size", PART)
    work = functools.partial(exercise, contents=LARGE)
    break_each(proxied, kind, work, tally[f"{kind} of a large file"])


@pytest.mark.parametrize("kind", ["list", "head", "get"])
def test_a_broken_request_for_a_dataset_changes_no_row(kind, proxied, tally, monkeypatch):
    """Ranges come without a checksum: that no bit of them is flipped, TLS must see to."""
    monkeypatch.setattr(remote, "BLOCK", 16 << 10)
    faults = ANY_KIND + [fault for fault in OF_BODIES if kind == "get" and fault != "flipped"]
    break_each(proxied, kind, read_dataset, tally[f"{kind} for a dataset"], faults)
