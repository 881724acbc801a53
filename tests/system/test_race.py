"""32 writers make the same artifact at once, 50 times, and readers look all the time.

    4 processes x 8 threads:   barrier -> publish bytes of one's own -> read what won
    2 processes x 2 threads:   poll the address of the round: nothing, or an artifact that is whole

What a reader gets has been checked against its record's sha256; only its first look at an artifact
fetches the bytes. A round ends when the readers have polled 200 times since it began. One JSON line
of figures is printed for each kind of store (``pytest -s``).
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import uuid

import pytest
import s3fs

from b3_core.artifacts import Address
from b3_core.errors import CorruptArtifactError
from b3_core.store import ArtifactStore
from tests.conftest import ROOT, free_port, serving, use_s3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PROCESSES, THREADS, ROUNDS = 4, 8, 50
READERS, READER_THREADS = 2, 2
POLLS = 200  # a round
FILES = ("sub/one.bin",)


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, monkeypatch):
    """A folder, or a bucket on a server of its own."""
    if request.param == "local":
        yield str(tmp_path / "store")
        return
    port = free_port()
    command = [sys.executable, "-m", "tests.system.atomic_moto", str(port)]
    with serving(command, port, cwd=ROOT) as url:
        use_s3(monkeypatch, url)
        s3fs.S3FileSystem().call_s3("create_bucket", Bucket="race")
        yield "s3://race/store"
        s3fs.S3FileSystem.clear_instance_cache()


def address(number):
    return Address("race", "stage", f"round{number:03d}")


def write(root, shared, number):
    """Publish in every round, all writers at once; return who won and what its bytes are."""
    barrier, started, polls, mark = shared
    store = ArtifactStore(root)
    seen = []
    for round_number in range(ROUNDS):
        if barrier.wait() == 0:  # one of the 32, whichever
            started.value, mark.value = round_number, polls.value
        barrier.wait()
        with store.draft(address(round_number), lineage={}, settings={}) as draft:
            for name in FILES:
                draft.path(name).write_bytes(os.urandom(1000) + b"%d" % number)
            draft.counts["writer"] = number
        artifact = store.get(address(round_number))
        digests = [hashlib.sha256(artifact.path(name).read_bytes()).hexdigest() for name in FILES]
        assert digests == [artifact.files[name].sha256 for name in FILES]
        seen.append((artifact.record["writer"], artifact.counts["writer"], *digests))
        if barrier.wait() == 0:
            while polls.value < mark.value + POLLS:
                time.sleep(0.002)
    if barrier.wait() == 0:
        started.value = ROUNDS
    return seen


def read(root, shared, _):
    """Poll the round at hand; count what was seen: nothing, whole, torn."""
    _, started, polls, _ = shared
    store = ArtifactStore(root)
    counts = {"nothing": 0, "whole": 0, "torn": 0}
    while started.value < 0:
        time.sleep(0.002)
    while (round_number := started.value) < ROUNDS:
        artifact = store.find(address(round_number))
        if artifact is None:
            counts["nothing"] += 1
        else:
            try:
                whole = [artifact.path(name).stat().st_size for name in FILES]
            except (CorruptArtifactError, FileNotFoundError, KeyError):
                whole = []
            counts["whole" if whole else "torn"] += 1
        with polls.get_lock():
            polls.value += 1
    return counts


def in_threads(work, root, shared, arguments, folder):
    """Run ``work`` in this process, a thread for each argument, with a cache of its own."""
    tempfile.tempdir = os.path.join(folder, uuid.uuid4().hex)
    os.mkdir(tempfile.tempdir)
    with concurrent.futures.ThreadPoolExecutor(len(arguments)) as pool:
        futures = [pool.submit(work, root, shared, argument) for argument in arguments]
        return [future.result() for future in futures]


def test_one_of_32_writers_wins_and_no_reader_sees_a_part(root, tmp_path):
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    writers = PROCESSES * THREADS
    with context.Manager() as manager:
        results = manager.list()
        shared = (
            context.Barrier(writers, timeout=300),
            *(context.Value("i", value) for value in (-1, 0, 0)),
        )
        folder = tmp_path / "caches"
        folder.mkdir()
        groups = [(write, range(p * THREADS, (p + 1) * THREADS)) for p in range(PROCESSES)]
        groups += [(read, range(READER_THREADS))] * READERS
        processes = [
            context.Process(target=run, args=(results, work, root, shared, numbers, str(folder)))
            for work, numbers in groups
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * len(processes)
        seen = [each for name, each in results if name == "write"]
        polled = [each for name, each in results if name == "read"]
    assert len(seen) == writers
    rounds = list(zip(*seen, strict=True))
    assert len(rounds) == ROUNDS
    winners = [set(views) for views in rounds]
    counts = {kind: sum(each[kind] for each in polled) for kind in ("nothing", "whole", "torn")}
    figures = {
        "store": root.split(":")[0] if "://" in root else "local",
        "writers": writers,
        "rounds": ROUNDS,
        "rounds_with_one_winner": sum(len(won) == 1 for won in winners),
        "writers_that_won_once": len({who for won in winners for _, who, *_ in won}),
        "polls": sum(counts.values()),
        **counts,
        "seconds": round(time.monotonic() - began, 1),
    }
    print("\n" + json.dumps({"race": figures}))
    assert figures["rounds_with_one_winner"] == ROUNDS
    assert counts["torn"] == 0
    assert sum(counts.values()) >= ROUNDS * POLLS
    assert counts["nothing"] and counts["whole"] and figures["writers_that_won_once"] > 1


def run(results, work, *arguments):
    """Be the process: hand back each thread's result under the work's name."""
    results.extend([(work.__name__, each) for each in in_threads(work, *arguments)])
