import dataclasses
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from b3_core import manifest as module
from b3_core.config import BatchSpec, Phase
from b3_core.errors import CorruptArtifactError, InputError
from b3_core.manifest import Layout, Manifest
from b3_core.store import ArtifactStore
from b3_core.stream import ManifestReader
from tests.conftest import topic_table
from tests.core.test_manifest import mine


def make_files_small(patch):
    patch.setattr(module, "GROUP_SLOTS", 16)
    patch.setattr(module, "FILE_SLOTS", 48)


@pytest.fixture
def small_files(monkeypatch):
    """Row groups of two batches and files of six, so that a small manifest has several."""
    make_files_small(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    phases = (Phase(random_share=1), Phase(epochs=2))
    with pytest.MonkeyPatch.context() as patch:
        make_files_small(patch)
        folder = tmp_path_factory.mktemp("made")
        return mine(folder, BatchSpec(batch_size=8, curriculum=phases, negatives=2))


@pytest.fixture
def mined(made, tmp_path, small_files):
    store, stage = made
    shutil.copytree(store.root, tmp_path / "store")
    return ArtifactStore(str(tmp_path / "store")), stage


def counted(artifact):
    """Return the artifact with a store that notes each range it is asked for."""
    reads = []

    class Counting(type(artifact.store)):
        def read(self, path, start, stop):
            reads.append((path, start, stop))
            return super().read(path, start, stop)

    return dataclasses.replace(artifact, store=Counting(artifact.store.root)), reads


def same(batch, manifest, number):
    plan = manifest.plan
    assert batch.batch == number
    assert batch.epoch == plan.epoch_S[number]
    assert batch.dataset_B.tolist() == [manifest.datasets[d] for d in plan.dataset_SB[number]]
    assert (batch.row_B == plan.row_SB[number]).all()
    assert (batch.community_B == plan.community_SB[number]).all()
    assert (batch.negative_BH == manifest.negatives.row_SBH[number]).all()


def test_a_batch_across_datasets_names_each_rows_own(tmp_path, small_files):
    at_random = (Phase(epochs=2, random_share=1),)
    batching = BatchSpec(batch_size=8, mixing="across", curriculum=at_random)
    store, stage = mine(tmp_path, batching, topic_table(50), topic_table(75))
    artifact = store.get(stage.address)
    manifest, reader = Manifest.load(artifact), ManifestReader.open(artifact.uri)
    for number, batch in enumerate(reader.batches()):
        same(batch, manifest, number)
    several = int((manifest.plan.dataset_SB.min(axis=1) == 0).argmax())
    with pytest.raises(InputError, match=f"batch {several} has rows of several.*dataset_B"):
        _ = reader[several].dataset


def test_any_batch_is_what_the_whole_manifest_has(mined):
    store, stage = mined
    artifact = store.get(stage.address)
    manifest, reader = Manifest.load(artifact), ManifestReader.open(artifact.uri)
    names = [name for name in artifact.files if name.startswith("batches-")]
    assert len(names) > 3
    assert len(reader) == len(manifest.plan.row_SB)
    for number in np.random.default_rng(0).permutation(len(reader)):
        same(reader[int(number)], manifest, number)
    (table,) = [ref.table(store) for ref in stage.refs]
    batch = reader[len(reader) - 1]
    assert batch.key_B == tuple(table.table["key"].take(batch.row_B).to_pylist())
    assert (batch.row_id_B == table.table["row_id"].to_numpy()[batch.row_B]).all()


@pytest.mark.parametrize(("start", "stop"), [(0, None), (7, None), (5, 9), (3, 3), (40, 10_000)])
def test_batches_come_in_order_from_any_on(mined, start, stop):
    store, stage = mined
    artifact = store.get(stage.address)
    manifest, reader = Manifest.load(artifact), ManifestReader(artifact)
    expected = range(start, min(stop or len(reader), len(reader)))
    found = list(reader.batches(start, stop))
    assert len(found) == len(expected)
    for batch, number in zip(found, expected, strict=True):
        same(batch, manifest, number)


def test_two_readings_of_one_reader_do_not_disturb_each_other(mined):
    store, stage = mined
    artifact = store.get(stage.address)
    manifest, reader = Manifest.load(artifact), ManifestReader(artifact)
    half = len(reader) // 2
    for _ in range(10):
        for one, two in zip(reader.batches(0, half), reader.batches(half), strict=False):
            same(one, manifest, one.batch)
            same(two, manifest, two.batch)
            same(reader[two.batch], manifest, two.batch)


def test_a_batch_is_two_reads(mined):
    store, stage = mined
    artifact, reads = counted(store.get(stage.address))
    reader = ManifestReader(artifact)
    assert not reads  # the head is a small file, read whole
    reader[13]
    assert len(reads) == 2  # footer, row group
    reader[12]
    assert len(reads) == 2  # of the same row group
    reader[17]
    assert len(reads) == 3  # of the same file


def test_no_such_batch(mined):
    store, stage = mined
    reader = ManifestReader(store.get(stage.address))
    for batch in (-1, len(reader)):
        with pytest.raises(
            InputError, match=rf"no batch {batch} .*expected 0 to {len(reader) - 1}"
        ):
            reader[batch]


def test_a_flipped_byte_is_noticed_where_it_is_read(mined):
    store, stage = mined
    artifact = store.get(stage.address)
    entry = artifact.files["batches-00000.parquet"]
    path = artifact.path("batches-00000.parquet").parent / entry.path.rsplit("/", 1)[-1]
    body = bytearray(path.read_bytes())
    found = 0
    for place in range(4, 200, 7):
        flipped = bytearray(body)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        try:
            batch = ManifestReader(artifact)[0]
        except CorruptArtifactError:
            found += 1
        else:  # what was not read does not matter
            path.write_bytes(body)
            same(batch, Manifest.load(artifact), 0)
    path.write_bytes(body)
    assert found > 20


def rewrite(artifact, change):
    """Write the first file anew, as a program would that knows nothing of the record."""
    path = artifact.path("batches-00000.parquet")
    group = Manifest.read_head(artifact)["layout"]["group_batches"] * 8
    pq.write_table(change(pq.read_table(path)), path, row_group_size=group)
    # The reader trusts the recorded size for where the footer is.
    entry = {**artifact.record["files"]["batches-00000.parquet"], "size": path.stat().st_size}
    files = {**artifact.record["files"], "batches-00000.parquet": entry}
    return dataclasses.replace(artifact, record={**artifact.record, "files": files})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: pa.concat_tables([table.slice(16), table.slice(0, 16)]), "is batch 2"),
        (lambda table: table.slice(0, 8), "holds 8 slots .*expected 16"),
        (lambda table: table.drop_columns("key"), "with the columns of schema version"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(mined, change, said):
    store, stage = mined
    artifact = rewrite(store.get(stage.address), change)
    with pytest.raises(CorruptArtifactError, match=said):
        ManifestReader(artifact)[0]


def test_files_and_groups_hold_whole_batches():
    for batch_size in (2, 8, 64, 1000, 20_000):
        layout = Layout.of(batch_size)
        assert layout.group_batches * batch_size <= max(module.GROUP_SLOTS, batch_size)
        assert layout.file_batches % layout.group_batches == 0
        assert layout.file_batches * batch_size <= max(module.FILE_SLOTS, batch_size)
    files = Layout(6, 2).files(14)
    assert [name for name, _ in files] == [f"batches-0000{n}.parquet" for n in range(3)]
    assert [list(batches)[-1] for _, batches in files] == [5, 11, 13]
    assert [Layout(6, 2).name(batch) for batch in (0, 5, 6)] == [files[0][0]] * 2 + [files[1][0]]
