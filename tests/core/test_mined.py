"""What a user opens by a manifest's URI is the plan and its rows, of which no text is in memory."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import s3fs
from datasets import Dataset
from datasets.table import MemoryMappedTable

from b3_core import mined as module
from b3_core.artifacts import Address
from b3_core.config import BatchSpec
from b3_core.errors import CorruptArtifactError, InputError
from b3_core.manifest import Manifest
from b3_core.mined import MinedBatches
from b3_core.pairs import NOBODY, PairTable, RowGroups
from tests.conftest import topic_table
from tests.core.test_manifest import mine
from tests.trainers import small_manifest


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    """Arrow files are named by content: a test must not find another run's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "cache_folder", lambda: folder)
        yield folder


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return small_manifest(tmp_path_factory.mktemp("mined"))[0]


@pytest.fixture(scope="module")
def mined(artifact):
    return MinedBatches.open(artifact.uri)


def test_media_of_a_dataset_that_is_not_there_are_refused(artifact):
    with pytest.raises(InputError, match="media names dataset fqa, which manifest .* is not of"):
        MinedBatches.open(artifact.uri, media={"fqa": "/pictures"})


def pair_tables(artifact):
    """The tables, read as the pipeline does, in memory."""
    entries = Manifest.read_head(artifact)["datasets"]
    return [
        PairTable.load(artifact.store.get(Address(e["name"], "pairs", e["pairs"])), "train")
        for e in entries
    ]


def test_it_tells_the_plans_size(mined, artifact):
    plan = Manifest.load(artifact).plan
    tables = pair_tables(artifact)
    assert mined.datasets == ["faq", "forum"]
    assert mined.lengths == tuple(map(len, tables))
    assert (mined.batch_size, mined.batches, mined.epochs) == (8, len(plan.row_SB), 3)
    assert len(mined.slots) == plan.row_SB.size


def test_rows_are_those_of_all_tables(mined, artifact):
    tables = pa.concat_tables([table.table for table in pair_tables(artifact)])
    for name in ("row_id", "query", "positive"):
        assert mined.rows[name][:] == tables[name].to_pylist()
    expected = [table.table["row_id"].to_pylist() for table in pair_tables(artifact)]
    assert [ids.tolist() for ids in mined.row_ids] == expected


def test_slots_are_the_plans_texts_negatives_and_groups(mined, artifact):
    manifest, tables = Manifest.load(artifact), pair_tables(artifact)
    plan, hard = manifest.plan, manifest.negatives.row_SBH
    for slot in range(0, len(mined.slots), 5):
        s, b = divmod(slot, 8)
        table, row = tables[plan.dataset_S[s]], plan.row_SB[s, b]
        first = plan.dataset_S[s] * (tables[0].group_N.max() + 1)
        texts = table.positives.to_pylist()
        item = mined.slots[slot]
        assert item["query"] == table.queries[row].as_py()
        assert item["positive"] == texts[row]
        groups = [table.group_N[row] + first]
        for number, negative in enumerate(hard[s, b] if (hard[s] >= 0).any() else [], start=1):
            assert item[f"negative_{number}"] == texts[row if negative < 0 else negative]
            groups.append(NOBODY if negative < 0 else table.group_N[negative] + first)
        assert item["label"] == groups


def test_samplers_yield_the_plan(mined):
    plan = mined.plan
    numbers = np.arange(plan.row_SB.size).reshape(-1, 8)
    assert list(mined.sampler(one_pass=True)) == numbers.tolist()
    first = numbers[plan.epoch_S == 0]
    assert sum(mined.sampler(processes=2), []) == first.ravel().tolist()
    start = np.array([0, mined.lengths[0]])[plan.dataset_S]
    positions = (plan.row_SB + start[:, None]).tolist()
    assert list(mined.sampler(one_pass=True, items="rows")) == positions
    make = mined.batch_sampler(processes=4)
    assert list(make(mined.slots, batch_size=2, seed=1)) == numbers.reshape(-1, 2).tolist()
    with pytest.raises(InputError, match="no sampler of texts; expected slots or rows"):
        mined.sampler(items="texts")


def test_ones_own_rows_take_the_place_of_texts(mined):
    own = Dataset.from_dict({"query": mined.rows["query"][:], "positive": list(range(93))})
    assert sum(mined.lengths) == 93
    slots = mined.slots_over(own)
    for slot in (0, 77, len(slots) - 1):
        at, *hard = mined.places.rows([slot])[0].tolist()
        item = slots[slot]
        assert (item["query"], item["positive"]) == (mined.rows[at]["query"], at)
        assert [item[f"negative_{number}"] for number in range(1, len(hard) + 1)] == hard
        assert item["label"] == mined.slots[slot]["label"]
    with pytest.raises(InputError, match="a dataset of 92 rows .*expected 93 rows"):
        mined.slots_over(own.select(range(92)))
    with pytest.raises(InputError, match="no column positive in a dataset"):
        mined.slots_over(own.select_columns("query"))


def test_texts_stay_on_disk(tmp_path):
    table = topic_table(130)
    long = pa.array([f"{text.as_py()} {'x' * 100_000}" for text in table["answer"]])
    store, stage = mine(tmp_path, BatchSpec(batch_size=8), table.set_column(1, "answer", long))
    uri = store.get(stage.address).uri
    MinedBatches.open(uri).slots[0]  # what is imported and made once
    before = pa.total_allocated_bytes()
    opened = MinedBatches.open(uri)
    assert pa.total_allocated_bytes() - before < 200_000  # of 13 MB
    assert isinstance(opened.rows.data, MemoryMappedTable)
    (file,) = opened.rows.cache_files
    assert Path(file["filename"]).stat().st_size > 12_000_000
    again = pickle.dumps(opened.slots)  # as workers of a loader get it
    assert len(again) < 200_000
    assert pickle.loads(again)[3] == opened.slots[3]


def test_the_arrow_file_is_written_once_and_named_by_content(artifact, mined, tmp_path, _own_cache):
    names = sorted(file.name for file in _own_cache.glob("*.arrow"))
    moved = tmp_path / "a [strange] pl*ce?"
    shutil.copytree(artifact.store.root, moved)

    def written(*files):
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_write_arrow", written)
        opened = MinedBatches.open(f"{moved}/{artifact.address.path}")
    assert opened.slots[5] == mined.slots[5]
    assert sorted(file.name for file in _own_cache.glob("*.arrow")) == names


@pytest.mark.slow
def test_processes_open_one_manifest_at_once(artifact, mined, tmp_path):
    code = (
        "import sys; from b3_core.mined import MinedBatches; assert 'torch' not in sys.modules;"
        "m = MinedBatches.open(sys.argv[1]); print(m.slots[9])"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, artifact.uri],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=100) for process in processes]
    assert said == [(f"{mined.slots[9]}\n", "")] * 2
    (cache,) = tmp_path.glob("b3-cache-*")
    assert sorted(file.suffix for file in cache.iterdir()) == [".arrow"] * 2 + [".lock"] * 2


def test_over_s3(tmp_path, s3_bucket, artifact, mined):
    s3fs.S3FileSystem().put(artifact.store.root, f"{s3_bucket}/store", recursive=True)
    opened = MinedBatches.open(f"{s3_bucket}/store/{artifact.address.path}")
    assert opened.slots[11] == mined.slots[11]


class TestRefused:
    def test_no_manifest(self, artifact, tmp_path):
        entry = Manifest.read_head(artifact)["datasets"][0]
        pairs = artifact.store.get(Address("faq", "pairs", entry["pairs"]))
        with pytest.raises(InputError, match="is a pairs artifact; expected a manifest"):
            MinedBatches.open(pairs.uri)
        with pytest.raises(InputError, match="no whole artifact at"):
            MinedBatches.open(str(tmp_path))

    def test_another_store(self, artifact, tmp_path):
        target = tmp_path / artifact.address.path
        shutil.copytree(Path(artifact.store.root, artifact.address.path), target)
        with pytest.raises(InputError, match=r"was mined from faq/pairs/\w+, which is not in"):
            MinedBatches.open(str(target))

    @pytest.fixture
    def copied(self, artifact, tmp_path):
        """A store to spoil: the URI of its manifest, its pairs' folder."""
        shutil.copytree(artifact.store.root, tmp_path / "store")
        entry = Manifest.read_head(artifact)["datasets"][0]
        folder = tmp_path / "store" / "faq" / "pairs" / entry["pairs"]
        return f"{tmp_path}/store/{artifact.address.path}", folder

    def test_flipped_pairs(self, copied):
        uri, folder = copied
        (file,) = folder.glob("train.*.parquet")
        body = bytearray(file.read_bytes())
        body[len(body) // 2] ^= 1
        file.write_bytes(body)
        with pytest.raises(CorruptArtifactError, match="train.*is not what was recorded"):
            MinedBatches.open(uri)

    def test_pairs_of_other_rows(self, copied, artifact):
        """Whole as files go, but no rows of this plan."""
        uri, folder = copied
        other = pair_tables(artifact)[0]
        store = type(artifact.store)(uri.rsplit("/", 3)[0])
        address = Address("faq", "pairs", folder.name)
        shutil.rmtree(folder)
        with store.draft(address, lineage={}, settings={}) as draft:
            PairTable("faq", other.table.slice(0, len(other) - 1)).save(draft, "train")
        with pytest.raises(CorruptArtifactError, match="dataset faq: rows is"):
            MinedBatches.open(uri)

    @pytest.mark.parametrize("broken", ["no parquet", "other columns"])
    def test_pairs_that_are_no_table_of_pairs(self, broken, copied, artifact):
        uri, folder = copied
        store = type(artifact.store)(uri.rsplit("/", 3)[0])
        shutil.rmtree(folder)
        address = Address("faq", "pairs", folder.name)
        with store.draft(address, lineage={}, settings={}) as draft:
            if broken == "no parquet":
                draft.path("train.parquet").write_bytes(b"PAR1 or not")
            else:
                pa.parquet.write_table(topic_table(3), draft.path("train.parquet"))
        with pytest.raises(CorruptArtifactError, match="train.parquet cannot be read: .*delete"):
            MinedBatches.open(uri)


def test_groups_are_read_without_texts(artifact):
    for table, entry in zip(
        pair_tables(artifact), Manifest.read_head(artifact)["datasets"], strict=True
    ):
        pairs = artifact.store.get(Address(entry["name"], "pairs", entry["pairs"]))
        found = RowGroups.read(pairs.path("train.parquet"))
        assert (found.dataset, found.digest, len(found)) == (
            table.dataset,
            table.digest,
            len(table),
        )
        assert (found.group_N == table.group_N).all()
