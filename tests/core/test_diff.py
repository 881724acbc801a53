"""Manifests compared: by hand, and against what was changed."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from b3_core.config import BatchSpec
from b3_core.diff import compare_partitions, diff
from b3_core.errors import InputError
from tests.conftest import topic_table
from tests.core.test_manifest import mine


def codes(*labels):
    return np.array(labels, np.int64)


def test_partitions_by_hand():
    same = compare_partitions(codes(0, 0, 1, 1), codes(7, 7, 3, 3))
    assert same == {"variation_of_information": 0.0, "partners_kept": 1.0}
    # Two pairs crossed: each side tells nothing of the other, one bit each way.
    crossed = compare_partitions(codes(0, 0, 1, 1), codes(0, 1, 0, 1))
    assert crossed == pytest.approx({"variation_of_information": 2.0, "partners_kept": 0.0})
    # Of the three pairs of {0, 1, 2} one is left.
    split = compare_partitions(codes(0, 0, 0), codes(0, 0, 1))
    assert split["partners_kept"] == pytest.approx(1 / 3)
    assert split["variation_of_information"] == pytest.approx(0.9183, abs=1e-4)
    assert compare_partitions(codes(), codes())["partners_kept"] == 1.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_the_distance_is_symmetric_and_its_slow_twin(rows):
    before_N, after_N = np.array(rows, np.int64).T
    found = compare_partitions(before_N, after_N)
    back = compare_partitions(after_N, before_N)
    assert found["variation_of_information"] == pytest.approx(
        back["variation_of_information"], abs=1e-9
    )
    assert found["variation_of_information"] >= -1e-9
    together = [(i, j) for i in range(len(rows)) for j in range(i) if before_N[i] == before_N[j]]
    kept = [after_N[i] == after_N[j] for i, j in together]
    assert found["partners_kept"] == pytest.approx(np.mean(kept) if kept else 1.0)


def test_a_manifest_does_not_differ_from_itself(tmp_path):
    store, stage = mine(tmp_path, BatchSpec(batch_size=8))
    artifact = store.get(stage.address)
    found = diff(artifact, artifact)
    assert found["settings"] == found["libraries"] == {}
    data = found["datasets"]["faq"]
    rows = data["rows"]["before"]
    assert data["rows"] == {"before": rows, "after": rows, "kept": rows, "added": 0, "removed": 0}
    assert data["inputs"] == {}
    assert data["communities"] == {"variation_of_information": 0.0, "partners_kept": 1.0}


def test_another_seed_and_other_rows_show(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    store, stage = mine(tmp_path / "a", BatchSpec(batch_size=8))
    seeded = dataclasses.replace(
        stage,
        seed=1,
        partitions=tuple(
            tuple(dataclasses.replace(part, seed=1) for part in variants)
            for variants in stage.partitions
        ),
    )
    for each in (*seeded.partitions[0], seeded):
        each.run(store)
    found = diff(store.get(stage.address), store.get(seeded.address))
    assert found["settings"] == {"seed": [0, 1]}
    assert found["datasets"]["faq"]["communities"]["variation_of_information"] > 0
    assert 0 < found["datasets"]["faq"]["communities"]["partners_kept"] < 1

    reordered = topic_table(130).slice(7).take(list(reversed(range(123))))
    other, fewer = mine(tmp_path / "b", BatchSpec(batch_size=4), reordered)
    found = diff(store.get(stage.address), other.get(fewer.address))
    rows = found["datasets"]["faq"]["rows"]
    assert rows["added"] == 0 and rows["kept"] == rows["after"]
    assert 0 < rows["removed"] == rows["before"] - rows["after"] <= 7
    assert found["settings"]["batches.batch_size"] == [8, 4]
    assert list(found["datasets"]["faq"]["inputs"]) == ["data"]


def test_what_is_no_manifest_is_refused(tmp_path):
    store, stage = mine(tmp_path, BatchSpec(batch_size=8))
    part = store.get(stage.partitions[0][0].address)
    with pytest.raises(InputError, match="communities artifact"):
        diff(store.get(stage.address), part)
