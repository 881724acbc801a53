"""Mining in cells: the same contract as in one piece, from ranks to a manifest that verifies."""

import shutil

import numpy as np
import pytest

from b3_core import cells, seams
from b3_core.celled import CelledRanks, CellRanks
from b3_core.communities import Partition
from b3_core.errors import InputError
from b3_core.graph import link, too_hard
from b3_core.manifest import Manifest, verify
from b3_core.neighbours import RankTable
from b3_core.seams import CelledCommunities, Linked, Seam, communities_of
from b3_core.stage import cost_of
from tests.conftest import topic_table
from tests.core.test_incremental import Mining

pytestmark = pytest.mark.usefixtures("one_teacher")

ROWS = 540
CELLED = {"p": 2, "m": 20, "k": 8, "cell_rows": 135}


@pytest.fixture(autouse=True, scope="module")
def small_lists():
    """Lists of so few rows that a small dataset has many; all are probed unless a test says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "LIST_ROWS", 20)
        yield


def mined(folder, like=None, **changes):
    """Mine in a folder, going on from ``like`` where that was mined with the same settings."""
    folder.mkdir(exist_ok=True)
    if like is not None:
        # How many cells are together is in no address: communities are made anew.
        ignore = shutil.ignore_patterns("*communities", "manifest", "seam")
        shutil.copytree(like[0].store.root, folder / "store", ignore=ignore)
    mining = Mining(folder, **{"mining": CELLED, **changes})
    plan, made = mining.run(topic_table(ROWS))
    return mining, plan, made


@pytest.fixture(scope="module")
def in_cells(small_lists, one_teacher, tmp_path_factory):
    """Mined once, for who only looks: (mining, plan, what was made)."""
    return mined(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def in_one_piece(one_teacher, tmp_path_factory):
    return mined(tmp_path_factory.mktemp("whole"), mining=CELLED | {"cell_rows": None})


def test_all_lists_probed_give_the_ranks_of_one_piece(in_cells, in_one_piece):
    mining, plan, _ = in_cells
    whole, one, _ = in_one_piece
    ranks, same = plan.legs[0].ranks[0], one.legs[0].ranks[0]
    assert isinstance(ranks, CelledRanks) and not isinstance(same, CelledRanks)
    made = mining.store.get(ranks.address)
    assert made.counts["cells"] == 4
    assert made.counts["window_recall"] == 1.0
    table = RankTable.load(made)
    expected = RankTable.load(whole.store.get(same.address))
    assert np.array_equal(
        table.neighbour_NM[:, : ranks.width], expected.neighbour_NM[:, : ranks.width]
    )
    assert np.array_equal(table.score_NM[:, : ranks.width], expected.score_NM[:, : ranks.width])


def test_edges_counted_are_those_of_one_piece(in_cells, in_one_piece):
    mining, plan, _ = in_cells
    whole, one, _ = in_one_piece
    counted = mining.store.get(plan.legs[0].graphs[0].address).counts
    assert counted == whole.store.get(one.legs[0].graphs[0].address).counts


@pytest.mark.parametrize(
    ("together", "settings"),
    [
        (1, {}),
        (32, {}),
        (2, {"graph": "union", "repulsion": 1.0}),
        (2, {"swap_rounds": 0}),
    ],
)
def test_communities_are_exact_and_keep_most_of_what_one_piece_keeps(
    tmp_path, monkeypatch, in_cells, in_one_piece, settings, together
):
    monkeypatch.setattr(seams, "TOGETHER", together)
    mining, plan, _ = mined(tmp_path / "cells", in_cells, mining=CELLED | settings)
    alone = CELLED | settings | {"cell_rows": None}
    whole, one, _ = mined(tmp_path / "whole", in_one_piece, mining=alone)
    stage, same = plan.legs[0].communities[0], one.legs[0].communities[0]
    assert isinstance(stage, CelledCommunities)
    Partition.load(mining.store.get(stage.address))  # checks that every size is k, but the last
    found, kept = mining.store.get(stage.address).counts, whole.store.get(same.address).counts
    least = 0.95 if together == 32 else 0.7
    assert found["window"] > max(least * kept["window"], 2 * found["random_window"])
    assert verify(mining.manifest(plan))["rows"] > 0


@pytest.mark.parametrize("together", [2, pytest.param(32, marks=pytest.mark.slow)])
def test_a_size_that_is_no_multiple_leaves_one_short_community(tmp_path, monkeypatch, together):
    monkeypatch.setattr(seams, "TOGETHER", together)
    folder = tmp_path / "odd"
    folder.mkdir()
    mining = Mining(
        folder,
        mining=CELLED | {"k": 7},
        batches={"batch_size": 28, "curriculum": [{"epochs": 1}]},
    )
    plan, _ = mining.run(topic_table(ROWS + 3))
    stage = plan.legs[0].communities[0]
    label_N = Partition.load(mining.store.get(stage.address)).label_N
    size_C = np.bincount(label_N)
    assert (size_C[:-1] == 7).all() and size_C[-1] == (len(label_N) - 1) % 7 + 1


def test_arms_with_other_k_share_cells(tmp_path, in_cells):
    changes = {
        "batches": {
            "batch_size": 48,
            "curriculum": [{"epochs": 1, "k": 6}, {"epochs": 1, "k": 8}],
        }
    }
    mining, plan, _ = mined(tmp_path / "two", in_cells, **changes)
    (ranks,) = plan.legs[0].ranks
    assert ranks.unit == 24
    sizes = {Partition.load(mining.store.get(each.address)).k for each in plan.legs[0].communities}
    assert sizes == {6, 8}


@pytest.mark.parametrize(("together", "repulsion"), [(1, 0.0), (2, 0.5)])
def test_seams_raise_what_is_kept(tmp_path, monkeypatch, in_cells, together, repulsion):
    monkeypatch.setattr(seams, "TOGETHER", together)
    settings = {"evenness": 0.0, "repulsion": repulsion}
    mining, plan, _ = mined(tmp_path / "cells", in_cells, mining=CELLED | settings)
    stage = plan.legs[0].communities[0]
    waves = list(stage.own_waves(mining.store))
    found = [part for wave in waves for part in wave if isinstance(part, Seam)]
    assert found
    ranks = RankTable.load(mining.store.get(plan.legs[0].ranks[0].address))
    attract, repel = link(ranks, p=2, m=20, mode="mutual"), too_hard(ranks, p=2)

    def inside(graph, label_N):
        row_E = np.repeat(np.arange(graph.rows), np.diff(graph.indptr))
        return float(graph.weight[label_N[row_E] == label_N[graph.indices]].sum())

    def worth(label_N):
        return (inside(attract, label_N) - repulsion * inside(repel, label_N)) / 2

    before_N = np.empty(attract.rows, np.int32)
    base = 0
    for part in waves[0]:
        seats = mining.store.get(part.address).array("seats.npy")
        before_N[seats] = base + np.arange(len(seats)) // 8
        base += -(-len(seats) // 8)
    after = Partition.load(mining.store.get(stage.address))
    assert worth(after.label_N) > worth(before_N)
    assert after.objective == pytest.approx(worth(after.label_N))


@pytest.mark.parametrize("weights", ["count", "score"])
def test_rows_of_a_part_are_linked_as_in_the_whole(tmp_path, in_cells, weights):
    mining, plan, _ = in_cells
    if weights == "score":  # in units of the mean of all rows, not of those that are looked at
        weighed = CELLED | {"weights": weights}
        mining, plan, _ = mined(tmp_path / "cells", in_cells, mining=weighed)
    leg = plan.legs[0]
    ranks = RankTable.load(mining.store.get(leg.ranks[0].address))
    row_R = np.sort(np.random.default_rng(0).choice(graph_rows(leg), 200, replace=False))
    found = Linked.of(mining.store, leg.graphs[0], row_R.astype(np.int32))
    for own, whole in (
        (found.attract, link(ranks, p=2, m=20, mode="mutual", weights=weights)),
        (found.repel, too_hard(ranks, p=2)),
    ):
        expected = whole.to_scipy()[row_R][:, row_R]
        assert expected.nnz == own.to_scipy().nnz > 0
        assert np.allclose(own.to_scipy().toarray(), expected.toarray(), rtol=1e-5)


def graph_rows(leg):
    return leg.ranks[0].ref.rows


def test_a_part_that_is_there_is_not_made_again_and_changes_nothing(tmp_path, in_cells):
    mining, plan, _ = mined(tmp_path / "cells", in_cells)
    leg = plan.legs[0]
    parts = [part for wave in leg.ranks[0].waves(mining.store) for part in wave]
    lost = [part for part in parts if isinstance(part, CellRanks)][1]
    hashes = {
        name: file.sha256 for name, file in mining.store.get(leg.ranks[0].address).files.items()
    }
    for stage in (lost, leg.ranks[0]):
        shutil.rmtree(f"{mining.spec.store.root}/{stage.address.path}")
    again = type(mining.store)(mining.spec.store.root)
    made = [part for part in parts if again.find(part.address) is None]
    assert made == [lost]
    leg.ranks[0].run(again)
    assert hashes == {
        name: file.sha256 for name, file in again.get(leg.ranks[0].address).files.items()
    }


def test_a_part_of_finished_ranks_that_is_gone_is_made_for_another_seed(tmp_path, in_cells):
    mining, plan, _ = mined(tmp_path / "cells", in_cells)
    leg = plan.legs[0]
    parts = leg.ranks[0].parts(mining.store)
    shutil.rmtree(f"{mining.spec.store.root}/{parts[0].address.path}")
    store = type(mining.store)(mining.spec.store.root)
    other = communities_of(leg.ranks[0], leg.communities[0].mining, 7).run(store)
    assert store.find(parts[0].address) and other.counts["window"] > 0


def test_what_a_stage_took_includes_its_parts(in_cells):
    mining, plan, _ = in_cells
    for stage in (plan.legs[0].ranks[0], plan.legs[0].communities[0]):
        made = mining.store.get(stage.address)
        cost = cost_of(made)
        parts = made.counts["parts"]
        assert cost["parts"] == parts["count"] >= 1
        assert cost["seconds"] == made.record["seconds"] + parts["seconds"] > parts["seconds"] > 0
        assert cost["bytes"] > parts["bytes"] > 0
        assert made.counts.get("moved", 0) <= ROWS
    head = Manifest.read_head(mining.manifest(plan))
    assert "parts" not in head["datasets"][0]["quality"][0]  # a manifest's bytes carry no time


def test_few_lists_lose_a_part_and_say_which(tmp_path, in_cells):
    mining, plan, _ = mined(tmp_path / "cells", in_cells, mining=CELLED | {"cell_lists": 4})
    assert 0.3 < mining.store.get(plan.legs[0].ranks[0].address).counts["window_recall"] < 1.0
    assert verify(mining.manifest(plan))["rows"] > 0


def test_a_small_dataset_is_mined_in_one_piece(tmp_path, in_one_piece):
    _, plan, _ = mined(tmp_path / "cells", in_one_piece, mining=CELLED | {"cell_rows": ROWS})
    assert not isinstance(plan.legs[0].ranks[0], CelledRanks)
    assert type(communities_of(plan.legs[0].ranks[0], plan.legs[0].graphs[0].mining, 0)) is type(
        plan.legs[0].communities[0]
    )


def test_cells_and_another_search_are_refused(tmp_path):
    with pytest.raises(InputError, match="search: ivf beside cell_rows"):
        mined(tmp_path / "both", mining=CELLED | {"search": "ivf"})
