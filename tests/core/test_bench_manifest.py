import sys

from b3_core.bench.manifest import bench_manifest
from b3_core.store import ArtifactStore


def test_every_format_has_a_row_and_gives_the_batch(tmp_path):
    found = bench_manifest(
        rows=3000,
        batch_size=64,
        batch=40,
        store=str(tmp_path),
        mds_python=sys.executable,  # which has no mosaicml-streaming
        repeats=2,
    )
    ours, theirs, mds = found["results"]
    assert found["batches"] == 46
    assert ours["format"] == "b3" and theirs["format"] == "datasets"
    assert 16 < ours["bytes_a_row"] < theirs["bytes_a_row"]
    assert ours["reads"] == 2 and ours["verify_seconds"] >= 0
    assert ours["low"] <= ours["first_batch_seconds"] <= ours["high"]
    assert "streaming" in mds["failed"]


def test_it_writes_anew_each_time(tmp_path):
    given = {"batch_size": 64, "batch": 1, "store": str(tmp_path), "mds_python": None, "repeats": 1}
    bench_manifest(rows=1000, **given)
    (before,) = ArtifactStore(str(tmp_path)).artifacts("bench", "manifest")
    bench_manifest(rows=1000, **given)
    (after,) = ArtifactStore(str(tmp_path)).artifacts("bench", "manifest")
    assert before.record["writer"] != after.record["writer"]
    assert before.files == after.files
