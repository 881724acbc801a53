"""This machine's copies: old ones are collected, those in use are not."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from b3_core import copies
from b3_core.artifacts import Address
from b3_core.mined import MinedBatches
from b3_core.scratch import scratch
from b3_core.store import ArtifactStore
from tests.trainers import small_manifest

DAY = 86_400


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(copies, "_held", {})
    return copies.cache_folder()


def put(folder: Path, name: str, days: float) -> Path:
    file = folder / name
    file.write_bytes(b"12345")
    then = time.time() - days * DAY
    os.utime(file, (then, then))
    return file


def test_old_copies_are_listed_and_deleted(folder: Path) -> None:
    old, new = put(folder, "a.npy", 2), put(folder, "b.npy", 0.5)
    assert copies.unused(older_than=DAY) == [(old, 5)]
    assert copies.unused(older_than=DAY, now=time.time() + DAY) == [(old, 5), (new, 5)]
    assert copies.collect([old, folder / "gone"]) == [old]
    assert os.listdir(folder) == ["b.npy"]


def test_drafts_of_killed_processes_are_listed_when_all_of_them_is_old(folder: Path) -> None:
    left, at_work = (folder.parent / f"{copies.DRAFT}{name}" for name in ("left", "work"))
    for draft in (left, at_work):
        (draft / "deep").mkdir(parents=True)
        put(draft / "deep", "a.npy", 2)
        for path in (draft / "deep", draft):
            os.utime(path, (time.time() - 2 * DAY,) * 2)
    put(at_work / "deep", "b.npy", 0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = left.parent / f"b3-scratch-{ended.pid}-x"  # checkpoints of a training that was killed
    gone.mkdir()
    os.utime(gone, (time.time() - 2 * DAY,) * 2)
    with scratch():
        found = copies.left_behind(older_than=DAY)
    assert [path for path, _ in found] == [left, gone]
    assert found[0][1] >= 5


def test_what_was_used_is_young(folder: Path) -> None:
    old = put(folder, "a.npy", 2)
    copies.used(old)
    copies.used(folder / "gone")
    assert copies.unused(older_than=DAY) == []


def test_what_another_process_holds_stays_until_it_ends(folder: Path) -> None:
    held = put(folder, "a.arrow", 2)
    code = (
        "import sys, tempfile; from pathlib import Path; from b3_core import copies\n"
        "tempfile.tempdir = sys.argv[1]\n"
        "print(copies.hold(Path(sys.argv[2])), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder.parent), str(held)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        assert copies.unused(older_than=DAY) == []  # held is used
        assert copies.collect([held]) == []
        assert held.exists()
        holder.communicate()
    assert copies.collect([held]) == [held]


def test_what_is_gone_cannot_be_held(folder: Path, tmp_path: Path) -> None:
    file = put(folder, "a.arrow", 0)
    assert copies.hold(file) and copies.hold(file)
    assert copies.collect([file]) == []
    assert not copies.hold(folder / "gone.arrow")
    elsewhere = tmp_path / "no-copy"
    assert not copies.hold(elsewhere)
    elsewhere.touch()
    assert copies.hold(elsewhere)
    assert list(copies._held) == [file]


def test_a_copy_is_younger_for_being_read(folder: Path) -> None:
    store, address = ArtifactStore("memory://copies"), Address("faq", "ranks", "0" * 20)
    with store.draft(address, lineage={}, settings={}) as draft:
        draft.write_json("a.json", 1)
    first = store.get(address).path("a.json")
    os.utime(first, (0, 0))
    assert copies.unused(older_than=DAY) == [(first, 2)]
    assert store.get(address).path("a.json") == first
    assert copies.unused(older_than=DAY) == []


def test_rows_are_read_when_their_copies_were_collected_and_not_while_they_are_open(
    folder: Path, tmp_path: Path
) -> None:
    artifact, _ = small_manifest(tmp_path, datasets=1)
    mined = MinedBatches.open(artifact.uri)
    (arrow,) = folder.glob("*.arrow")
    assert copies.collect([arrow]) == []
    text = mined.rows[3]["query"]
    copies._held.clear()  # as if another process had opened it
    arrow.unlink()
    assert mined.rows[3]["query"] == text  # what is mapped stays
    assert MinedBatches.open(artifact.uri).rows[3]["query"] == text
    assert arrow.exists()
