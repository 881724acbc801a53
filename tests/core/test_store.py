import json
import os
import pickle
import random
import shutil
import threading

import fsspec
import numpy as np
import pytest

from b3_core import remote
from b3_core.artifacts import Address, canonical_json
from b3_core.errors import (
    B3Error,
    CorruptArtifactError,
    InputError,
    RefusedError,
    UnreachableError,
    reason,
)
from b3_core.store import ArtifactStore, _sealed, open_artifact
from tests.conftest import use_s3
from tests.system import fault_proxy
from tests.system.fault_proxy import FaultProxy

ADDRESS = Address("data", "stage", "f00d")


def publish(store, body=b"hello", address=ADDRESS):
    with store.draft(address, lineage={"up": "1"}, settings={"k": 2}) as draft:
        draft.path("sub/hello.bin").write_bytes(body)
        draft.counts["bytes"] = len(body)
    return store.get(address)


def test_what_was_written_is_read_back(store):
    assert store.find(ADDRESS) is None
    artifact = publish(store)
    assert artifact.path("sub/hello.bin").read_bytes() == b"hello"
    assert artifact.counts == {"bytes": 5}
    assert artifact.record["lineage"] == {"up": "1"}
    with artifact.folder("sub") as folder:
        assert [file.name for file in folder.iterdir()] == ["hello.bin"]


def test_a_draft_that_fails_leaves_nothing_to_see(store):
    with (
        pytest.raises(ZeroDivisionError),
        store.draft(ADDRESS, lineage={}, settings={}) as draft,
    ):
        draft.path("half.bin").write_bytes(b"half")
        raise ZeroDivisionError
    assert store.find(ADDRESS) is None


def test_files_without_a_record_are_no_artifact_and_are_made_again(store):
    artifact = publish(store)
    store.fs.rm_file(f"{store._base}/{ADDRESS.path}/record.json")
    assert store.find(ADDRESS) is None
    assert publish(store).files == artifact.files


def test_a_record_whose_file_is_gone_is_no_artifact_and_is_replaced(store):
    artifact = publish(store)
    stored = artifact.files["sub/hello.bin"].path
    store.fs.rm_file(f"{store._base}/{ADDRESS.path}/{stored}")
    assert store.find(ADDRESS) is None
    healed = publish(store)  # the same bytes make the old record true again
    assert healed.record == artifact.record
    store.fs.rm_file(f"{store._base}/{ADDRESS.path}/{stored}")
    again = publish(store, b"other")
    assert again.path("sub/hello.bin").read_bytes() == b"other"


def test_the_first_of_two_writers_wins_and_both_succeed(store):
    winner = publish(store, b"first")
    assert publish(store, b"second").record == winner.record
    assert store.get(ADDRESS).path("sub/hello.bin").read_bytes() == b"first"


def test_racing_writers_leave_one_whole_artifact(tmp_path):
    store = ArtifactStore(str(tmp_path))
    bodies = [bytes([i]) * (i + 1) for i in range(8)]
    barrier = threading.Barrier(len(bodies))

    def write(body):
        barrier.wait()
        publish(store, body)

    threads = [threading.Thread(target=write, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get(ADDRESS).path("sub/hello.bin").read_bytes() in bodies
    assert not list((tmp_path / ".drafts").iterdir())


def test_one_flipped_bit_is_found(tmp_path):
    artifact = publish(ArtifactStore(str(tmp_path)))
    file = artifact.path("sub/hello.bin")
    file.write_bytes(b"hellp")
    with pytest.raises(CorruptArtifactError, match=r"hello\.2cf24dba5fb0\.bin"):
        artifact.path("sub/hello.bin")


def test_an_artifact_opens_by_its_uri(store):
    artifact = publish(store)
    assert open_artifact(artifact.uri).record == artifact.record
    assert open_artifact(artifact.uri + "/record.json").record == artifact.record
    for wrong in (artifact.uri + "x", "nowhere", store.root):
        with pytest.raises(InputError, match="no whole artifact"):
            open_artifact(wrong)


def test_a_store_travels_without_its_connections(store):
    publish(store)
    assert pickle.loads(pickle.dumps(store)).get(ADDRESS).counts == {"bytes": 5}


def test_a_store_that_ignores_conditions_is_refused_unless_one_run_writes(store, request):
    if "gateway" in request.node.name:
        with pytest.raises(InputError, match="overwrites objects .*single_writer: true"):
            store.check_writable()
    else:
        store.check_writable()
    store.check_writable(single_writer=True)
    assert store.files() == {}


def test_a_store_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        ArtifactStore(str(tmp_path / "file" / "store")).check_writable()


def test_a_record_of_another_schema_is_refused_by_name(tmp_path):
    store = ArtifactStore(str(tmp_path))
    publish(store)
    record = tmp_path / ADDRESS.path / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"schema": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        store.find(ADDRESS)


@pytest.mark.parametrize(
    "root",
    [
        "s3://KEY:hunter2@bucket/prefix",
        "KEY:hunter2@bucket/prefix",  # without its scheme
        "https://host/prefix?X-Amz-Signature=hunter2",
    ],
)
def test_credentials_in_the_root_are_refused_and_not_repeated(root):
    with pytest.raises(InputError, match="carries credentials") as caught:
        ArtifactStore(root)
    assert "hunter2" not in str(caught.value)


def test_an_address_hashes_what_is_made_and_nothing_else():
    def address(**changed):
        whole = {"version": 1, "settings": {"a": 1, "b": 2}, "inputs": {"x": "y"}} | changed
        return Address.of("data", "stage", **whole)

    assert address() == address(settings={"b": 2, "a": 1})
    others = [address(version=2), address(settings={"a": 1}), address(inputs={"x": "z"})]
    assert len({address().fingerprint, *(a.fingerprint for a in others)}) == 4
    with pytest.raises(TypeError):
        address(settings={"path": os.fspath})
    with pytest.raises(TypeError):
        address(settings={"a": np.int64(1)})
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


@pytest.fixture
def proxied(s3_server, s3_bucket, monkeypatch):
    """A store behind a proxy that can break requests; retries do not wait."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0)
    with FaultProxy(s3_server) as proxy:
        use_s3(monkeypatch, proxy.url)
        yield proxy, ArtifactStore(f"{s3_bucket}/store")


def test_a_transient_error_is_tried_again_by_one_layer_and_not_for_ever(proxied):
    proxy, store = proxied
    artifact = publish(store)
    for fault in ("409", "429", "500", "503", "reset"):
        proxy.plan("head", fault)
        assert store.get(ADDRESS).record == artifact.record
        assert proxy.injected == 1
        proxy.plan("head", fault, times=99)
        with pytest.raises(UnreachableError, match="failed 6 times"):
            store.find(ADDRESS)
        # aiohttp itself sends once more what it sent on a connection that had been used before.
        assert proxy.injected == remote.ATTEMPTS * (2 if fault == "reset" else 1)


def test_a_permanent_error_is_not_tried_again(proxied):
    proxy, store = proxied
    for fault in ("400", "403", "404"):
        proxy.plan("put", fault, times=99)
        with pytest.raises(RefusedError, match="planned"):
            publish(store)
        assert proxy.injected == 1
    assert store.files() == {}


def test_what_a_server_refuses_is_one_line_with_the_uri_and_what_to_do(proxied):
    proxy, store = proxied
    artifact = publish(store)
    for kind, verb, call in (
        ("put", "write", lambda: publish(store, address=Address("data", "stage", "beef"))),
        ("get", "read", lambda: store.find(ADDRESS)),
        ("get", "read", lambda: store.read("data/x", 0, 9)),
        ("head", "look at", lambda: store._size("data/x")),
        ("list", "list", lambda: store.artifacts("data", "stage")),
        ("list", "list", store.files),
        ("delete", "delete", lambda: store.discard(ADDRESS)),
    ):
        proxy.plan(kind, "403", times=99)
        with pytest.raises(RefusedError) as caught:
            call()
        said = str(caught.value)
        assert said.startswith(f"the server refused to {verb} {store.root}"), said
        assert f"; expected permission to {verb}; check its permissions" in said
        assert said.endswith("AWS_* environment") and "\n" not in said
        assert caught.value.exit_code == 1 and proxy.injected == 1
    proxy.plan("", "")
    assert store.find(ADDRESS).record == artifact.record


def test_a_bucket_that_vanishes_is_one_line_and_what_is_looked_for_is_not_there(
    s3_bucket, monkeypatch, tmp_path
):
    store = ArtifactStore(s3_bucket)
    artifact = publish(store)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # no copy of it is there
    store.fs.rm(f"{s3_bucket}/data", recursive=True)
    store.fs.call_s3("delete_bucket", Bucket=s3_bucket.removeprefix("s3://"))
    assert store.find(ADDRESS) is None
    store.discard(ADDRESS)
    with pytest.raises(RefusedError, match=r"write s3://.* bucket does not exist; expected its b"):
        publish(store)
    with pytest.raises(RefusedError, match=r"refused to read s3://.*hello.*; expected it to be"):
        artifact.path("sub/hello.bin")
    with pytest.raises(RefusedError, match=r"refused to read s3://.*hello.*; expected it to be"):
        artifact.open("sub/hello.bin").read(3)
    with pytest.raises(InputError, match="cannot be written: the server refused to write s3://"):
        store.check_writable()


def test_what_no_server_said_is_no_refusal():
    """A full disk or a fault of the program keeps its own error."""
    fs = remote.Remote(Errors())
    for error in (OSError(28, "No space left on device"), KeyError("x"), FileExistsError("x")):
        with pytest.raises(type(error)) as caught:
            fs.info(error)
        assert caught.value is error


class Errors:
    """A file system that raises what it is asked about."""

    def info(self, error):
        raise error


def test_no_credentials_are_in_an_error(proxied, monkeypatch):
    proxy, store = proxied
    key, secret, token = "AKIDEXAMPLE7", "wJalr/XUtn+FEMI=", "token/0+1"
    monkeypatch.setitem(fault_proxy.ANSWERS, "403", (403, f"{key} {secret} {token} Denied"))
    monkeypatch.setitem(fault_proxy.ANSWERS, "503", (503, f"{key} {secret} {token} SlowDown"))
    use_s3(monkeypatch, proxy.url, key=key, secret=secret)
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    own = ArtifactStore(store.root)
    for kind, fault, error in (("put", "403", RefusedError), ("put", "503", UnreachableError)):
        proxy.plan(kind, fault, times=99)
        with pytest.raises(error) as caught:
            publish(own)
        assert proxy.injected
        said = str(caught.value)
        assert own.root in said and ("Denied" in said or "SlowDown" in said), said
        assert not [word for word in (key, secret, token) if word in said]
    url = ConnectionError("no way to https://user:hunter2@host/b?X-Amz-Signature=abc")
    assert reason(url) == "no way to https://host/b"
    named = remote.Remote(fsspec.filesystem("memory"))
    monkeypatch.setattr(named._fs, "unstrip_protocol", lambda path: f"https://u:hunter2@h/{path}")
    assert named.uri("b/c?X-Amz-Signature=abc") == "https://h/b/c"


def test_other_bytes_than_there_are_are_fetched_again(proxied, monkeypatch, tmp_path):
    proxy, store = proxied
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    artifact = publish(store)
    for fault in ("truncated", "short", "flipped"):
        proxy.plan("get", fault)
        assert store.get(ADDRESS).record == artifact.record
        assert proxy.injected == 1
        shutil.rmtree(tmp_path, ignore_errors=True)  # nothing is fetched yet
        tmp_path.mkdir()
        proxy.plan("get", fault)
        assert artifact.path("sub/hello.bin").read_bytes() == b"hello"
        assert proxy.injected == 1


def test_a_lost_reply_to_the_creation_of_a_record_is_no_failure(proxied, monkeypatch):
    proxy, store = proxied
    proxy.plan("create", "lost")
    mine = publish(store).record
    assert proxy.injected == 1
    monkeypatch.setattr(remote, "ATTEMPTS", 1)  # even if nothing is tried again
    proxy.plan("create", "lost")
    other = Address("data", "stage", "beef")
    assert publish(store, address=other).record["writer"] != mine["writer"]
    store.check_writable()
    proxy.plan("create", "lost")
    store.check_writable()
    assert proxy.injected == 1


def test_a_cached_copy_that_has_rotted_is_fetched_again(s3_bucket, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    artifact = publish(ArtifactStore(s3_bucket))
    artifact.path("sub/hello.bin").write_bytes(b"hellp")
    assert artifact.path("sub/hello.bin").read_bytes() == b"hello"


def test_a_retry_leaves_the_global_generator_alone(monkeypatch):
    before = random.getstate()
    monkeypatch.setattr(remote, "FIRST_WAIT", 0)
    fs = remote.Remote(None)
    fails = iter([ConnectionResetError(), ConnectionResetError()])

    def flaky():
        for error in fails:
            raise error
        return "done"

    assert fs._tried(flaky) == "done"
    assert random.getstate() == before


def test_a_flipped_bit_in_any_byte_of_a_record_is_found(tmp_path):
    store = ArtifactStore(str(tmp_path))
    with store.draft(ADDRESS, lineage={}, settings={"small": 1e-05, 10: "ten", 9: "nine"}) as draft:
        draft.counts["share"] = 1e-05  # 1E-05 is the same number, but not the same byte
    record = tmp_path / ADDRESS.path / "record.json"
    body = record.read_bytes()
    for place in range(len(body)):
        for bit in (0, 5):
            flipped = bytearray(body)
            flipped[place] ^= 1 << bit
            record.write_bytes(flipped)
            with pytest.raises(B3Error, match=r"record\.json is|schema version"):
                store.find(ADDRESS)
    record.write_bytes(body)
    assert store.find(ADDRESS)


@pytest.mark.parametrize("way", ["sha256", "path", "name", "absolute", "lacking"])
def test_a_record_cannot_name_a_file_elsewhere(tmp_path, way):
    """Whoever can write a record can seal it: what it names must not lead out of its folder."""
    store = ArtifactStore(str(tmp_path))
    artifact = publish(store)
    record = tmp_path / ADDRESS.path / "record.json"
    changed = json.loads(record.read_bytes())
    (name, entry), *_ = changed["files"].items()
    match way:
        case "sha256":
            entry["sha256"] = "../../home/me/.ssh/authorized_keys"
        case "path":
            entry["path"] = "../../other"
        case "absolute":
            entry["path"] = "/etc/passwd"
        case "name":
            changed["files"]["../" + name] = entry
        case "lacking":
            del entry["sha256"]
    del changed["sha256"]
    record.write_bytes(_sealed(changed))
    with pytest.raises(CorruptArtifactError, match="outside its folder"):
        ArtifactStore(str(tmp_path)).get(artifact.address)
    with pytest.raises(CorruptArtifactError):
        store.discard(ADDRESS)


def test_a_record_of_the_version_before_is_still_read(tmp_path):
    store = ArtifactStore(str(tmp_path))
    artifact = publish(store)
    record = tmp_path / ADDRESS.path / "record.json"
    old = {key: value for key, value in artifact.record.items() if key != "sha256"}
    record.write_text(json.dumps({**old, "schema": 1}))
    assert store.get(ADDRESS).path("sub/hello.bin").read_bytes() == b"hello"


def test_what_is_discarded_is_gone_and_can_be_made_again(store):
    publish(store)
    other = publish(store, address=Address("data", "stage", "beef"))
    store.discard(ADDRESS)
    store.discard(ADDRESS)  # nothing to do
    assert store.find(ADDRESS) is None
    assert not any(ADDRESS.path in path for path in store.files())
    assert [artifact.address for artifact in store.artifacts("data", "stage")] == [other.address]
    assert publish(store).path("sub/hello.bin").read_bytes() == b"hello"
