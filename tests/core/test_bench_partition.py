import hashlib

import pytest

from b3_core.bench.partition import METHODS, above_the_curve, bench_partition, draw_frontier
from b3_core.communities import Partition
from b3_core.config import BatchSpec
from b3_core.errors import InputError
from tests.core.test_manifest import MINING, mine


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two methods on one small dataset; the manifest's stage and what was measured."""
    store, stage = mine(tmp_path_factory.mktemp("store"), BatchSpec(batch_size=8))
    ranks = stage.partitions[0][0].graph.ranks
    told = []
    result = bench_partition(
        pairs=store.get(ranks.ref.address).uri,
        ranks=store.get(ranks.address).uri,
        vectors=store.get(ranks.vectors).uri,
        mining=MINING,
        seeds=[0],
        only=["random", "leiden-even"],
        progress=lambda *state: told.append(state),
    )
    return store, stage, result, told


@pytest.mark.slow
def test_every_method_is_a_row_of_figures(measured):
    _, _, result, told = measured
    drawn, found = result["rows"]
    assert [drawn["method"], found["method"]] == ["random", "leiden-even"]
    assert drawn["exact_k"] == found["exact_k"] == 1.0
    assert found["mutual"] > 2 * drawn["mutual"]
    assert found["seconds"] > 0 and 50 < found["peak_mb"] < 2000
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert result["machine"]["cpus"] >= 1


@pytest.mark.slow
def test_what_is_measured_is_what_the_pipeline_makes(measured):
    store, stage, result, _ = measured
    part = stage.partitions[0][0]
    made = store.get(part.address)
    row = result["rows"][1]
    assert row["window"] == pytest.approx(made.counts["window"], abs=1e-4)
    label_N = Partition.load(made).label_N
    assert row["digest"] == hashlib.sha256(label_N.tobytes()).hexdigest()[:16]


def test_methods_are_settings_of_mining():
    for name, changes in METHODS.items():
        assert MINING.model_copy(update=changes).model_dump().keys() == MINING.model_dump().keys()
        assert type(MINING).model_validate(MINING.model_dump() | changes), name


def points(**at):
    """Rows of a measurement: a method's (too hard, window)."""
    return [
        {"method": name.replace("_", "-"), "too_hard": hard, "window": kept}
        for name, (hard, kept) in at.items()
    ]


def test_who_is_above_the_curve():
    ours = points(leiden_union_5=(1, 2), leiden_union=(2, 5), leiden_union_0=(3, 6))
    peers = points(
        origin=(0.5, 1.1), below=(1.5, 3.4), above=(1.5, 3.6), beyond=(3.5, 9), on=(2, 5)
    )
    assert above_the_curve(ours + peers) == ["origin", "above"]
    assert above_the_curve(peers) == []
    again = points(above=(1.5, 3.2))  # 3.4 on average: below
    assert above_the_curve(ours + peers + again) == ["origin"]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_frontier_is_drawn(tmp_path, ending):
    file = tmp_path / f"frontier.{ending}"
    draw_frontier(points(leiden_union=(1, 2), leiden_union_0=(2, 3), metis=(1, 1)), file)
    assert file.stat().st_size > 1000
    if ending == "svg":
        assert "leiden-union" in file.read_text()


def test_an_ending_that_is_no_format(tmp_path):
    with pytest.raises(InputError, match=r"frontier.yaml .* name it"):
        draw_frontier(points(leiden_union=(1, 2), metis=(1, 1)), tmp_path / "frontier.yaml")
