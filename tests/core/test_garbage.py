"""Orphans: only what no record names, and only what is old."""

import time

import pytest

from b3_core.artifacts import Address
from b3_core.errors import CorruptArtifactError
from b3_core.garbage import find_orphans, remove

ADDRESS = Address("faq", "ranks", "0123456789abcdef0123")


def make(store, address=ADDRESS):
    with store.draft(address, lineage={}, settings={}) as draft:
        draft.write_json("deep/a.json", 1)


def leave(store, path, content=b"litter"):
    target = store._path(path)
    store.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
    store.fs.pipe_file(target, content)


GROUP = ".ray/" + 8 * "0a1b"
LITTER = [
    "faq/ranks/0123456789abcdef0123/deep/a.000000000000.json",  # a writer that lost the race
    "faq/graph/ffffffffffffffffffff/attract.npy",  # killed before its record
    ".drafts/b3-draft-1/score.npy",
    ".probe-1",
    f"{GROUP}/.validate_storage_marker",  # a group of Ray Train, which ended whichever way
]


def test_only_what_no_record_names(store):
    make(store)
    assert find_orphans(store, older_than=-1) == []
    for path in LITTER:
        leave(store, path)
    # What is no artifact, though it lies as deep: Ray's, a cluster's data, datasets in the bucket.
    for path in (
        ".ray/results/x",
        f"x/{GROUP}/y",
        f"{GROUP}.json",
        "cluster/postgres/base/5/1259",
        "data/faq/train/part-0.parquet",
    ):
        leave(store, path, b"of others")
    found = find_orphans(store, older_than=-1)
    assert [orphan.path for orphan in found] == sorted(LITTER)
    assert {orphan.size for orphan in found} == {6}
    remove(store, [*found, found[0]])
    assert find_orphans(store, older_than=-1) == []
    assert store.get(ADDRESS).path("deep/a.json").read_bytes() == b"1\n"


def test_what_was_written_again_since_it_was_listed_stays(store):
    """A run that is tried again writes the same names."""
    for path in LITTER[1:3]:
        leave(store, path)
    found = find_orphans(store, older_than=-1)
    was = [orphan._replace(changed=orphan.changed - 60) for orphan in found[:1]]
    remove(store, [*was, *found[1:]])
    assert [orphan.path for orphan in find_orphans(store, older_than=-1)] == [was[0].path]


def test_a_run_at_work_is_left_alone(store):
    leave(store, "faq/graph/ffffffffffffffffffff/attract.npy")
    assert find_orphans(store, older_than=3600) == []
    assert len(find_orphans(store, older_than=3600, now=time.time() + 3700)) == 1


def test_a_group_of_ray_goes_whole_once_all_of_it_is_old(store):
    for name in (".validate_storage_marker", "checkpoint_1/x"):
        leave(store, f"{GROUP}/{name}")
    old = find_orphans(store, older_than=-1)
    assert len(old) == 2
    time.sleep(1.1)  # some servers tell seconds
    leave(store, f"{GROUP}/checkpoint_2/x")  # the group is at work
    assert find_orphans(store, older_than=0, now=old[0].changed + 0.5) == []
    remove(store, find_orphans(store, older_than=-1))
    assert not [path for path in store.files() if path.startswith(".ray")]


def test_a_record_that_cannot_be_read_stops_it(store):
    make(store)
    leave(store, f"{ADDRESS.path}/record.json", b"{")
    with pytest.raises(CorruptArtifactError, match="is no JSON"):
        find_orphans(store, older_than=-1)
