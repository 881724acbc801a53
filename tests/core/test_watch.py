"""What changed in a dataset since that was last said."""

import os
import shutil

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from b3_core.config import DatasetSpec, EvalSpec
from b3_core.dataset_stage import Pairs
from b3_core.errors import InputError
from b3_core.store import ArtifactStore
from b3_core.watch import Watched
from tests.conftest import topic_table


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(topic_table(60), folder / "part-0.parquet")
    return folder


@pytest.fixture
def dataset(place):
    return DatasetSpec(name="faq", uri=str(place), query="question", positive="answer")


@pytest.fixture
def watched(tmp_path):
    return Watched(ArtifactStore(str(tmp_path / "store")), "pipeline", EvalSpec())


def look(watched, dataset, now=0.0, patience=100.0):
    return watched.look(dataset, now=now, patience=patience)


def mined(watched, dataset):
    """Somebody acts: the pairs are read into the store."""
    Pairs.of(dataset, watched.evaluate).run(watched.store)


def test_a_dataset_is_new_once(watched, dataset):
    change = look(watched, dataset)
    assert change.dataset == "faq"
    assert look(watched, dataset) == change, "not remembered yet: it is said again"
    watched.remember(change, now=0)
    assert look(watched, dataset, now=50) is None


def test_what_was_mined_before_anybody_watched_is_no_change(watched, dataset):
    mined(watched, dataset)
    assert look(watched, dataset) is None
    assert look(watched, dataset, now=1e9) is None


def test_appended_edited_and_removed_files_are_changes(watched, dataset, place):
    seen = [look(watched, dataset)]

    def expect_change():
        watched.remember(seen[-1], now=0)
        assert look(watched, dataset) is None

    expect_change()
    for act in (
        lambda: pq.write_table(topic_table(9, seed=1), place / "part-1.parquet"),
        lambda: pq.write_table(topic_table(9, seed=2), place / "part-1.parquet"),
        (place / "part-1.parquet").unlink,
    ):
        act()
        seen.append(look(watched, dataset))
        assert seen[-1] is not None
        expect_change()
    assert seen[-1].content == seen[0].content, "back where it was, and yet a change"


def test_the_same_bytes_written_again_are_no_change(watched, dataset, place):
    watched.remember(look(watched, dataset), now=0)
    file = place / "part-0.parquet"
    shutil.copy(file, place / "copy")
    (place / "copy").replace(file)
    os.utime(file, (1, 1))
    assert look(watched, dataset) is None


def test_unchanged_listings_read_no_file(watched, dataset, place, monkeypatch):
    watched.remember(look(watched, dataset), now=0)
    read = []
    monkeypatch.setattr(Pairs, "of", classmethod(lambda *_: read.append(1)))
    assert look(watched, dataset) is None
    assert not read


def test_what_nobody_acts_on_is_said_again(watched, dataset):
    watched.remember(look(watched, dataset), now=0)
    assert look(watched, dataset, now=99) is None
    assert look(watched, dataset, now=100) is not None, "never lost"


def test_what_somebody_acted_on_is_not_said_again(watched, dataset):
    watched.remember(look(watched, dataset), now=0)
    mined(watched, dataset)
    assert look(watched, dataset, now=100) is None
    assert look(watched, dataset, now=1e9) is None


def test_two_configs_remember_on_their_own(watched, dataset):
    watched.remember(look(watched, dataset), now=0)
    other = Watched(watched.store, "other", watched.evaluate)
    assert look(other, dataset) is not None


def test_held_out_files_count(watched, dataset, tmp_path):
    held = tmp_path / "held.parquet"
    pq.write_table(topic_table(20, seed=3), held)
    dataset = dataset.model_copy(update={"eval_uri": str(held)})
    watched.remember(look(watched, dataset), now=0)
    pq.write_table(topic_table(20, seed=4), held)
    assert look(watched, dataset) is not None


def test_a_dataset_that_is_gone_is_an_error(watched, dataset, place):
    watched.remember(look(watched, dataset), now=0)
    shutil.rmtree(place)
    with pytest.raises(InputError, match="no file matches"):
        look(watched, dataset)


@pytest.mark.parametrize("noted", ["", "{", "[1]", "null"])
def test_a_note_that_cannot_be_read_is_none(watched, dataset, noted):
    watched.remember(look(watched, dataset), now=0)
    root = watched.store.root
    (file,) = [os.path.join(at, f) for at, _, names in os.walk(root) for f in names]
    with open(file, "w") as stream:
        stream.write(noted)
    assert look(watched, dataset) is not None


def test_a_note_in_a_bucket(s3_bucket):
    store = ArtifactStore(f"{s3_bucket}/store")
    assert store.note("a/b") is None
    store.set_note("a/b", {"n": 1})
    store.set_note("a/b", {"n": 2})
    assert store.note("a/b") == {"n": 2}


def test_a_memory_dataset(watched):
    fs = fsspec.filesystem("memory")
    with fs.open("/watched/a.parquet", "wb") as stream:
        pq.write_table(pa.table({"question": ["a", "b"], "answer": ["c", "d"]}), stream)
    dataset = DatasetSpec(name="m", uri="memory://watched", query="question", positive="answer")
    watched.remember(look(watched, dataset), now=0)
    assert look(watched, dataset) is None
