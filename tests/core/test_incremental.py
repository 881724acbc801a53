"""A dataset that changes, mined again in the same store: the plan's stages, one after another."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from b3_core.communities import Partition
from b3_core.config import parse_config
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.manifest import Manifest, verify
from b3_core.plan import Plan
from b3_core.store import ArtifactStore
from b3_core.teacher import Embeddings, load_model
from tests.conftest import topic_table

pytestmark = pytest.mark.usefixtures("one_teacher")


class Mining:
    """A CONFIG whose one file changes."""

    def __init__(self, folder, **changes):
        self.file = folder / "pairs.parquet"
        self.spec = parse_config(
            {
                "datasets": [
                    {
                        "name": "faq",
                        "uri": str(self.file),
                        "query": "question",
                        "positive": "answer",
                    }
                ],
                "teacher": "static",
                "mining": {"p": 2, "m": 20, "k": 8},
                "batches": {"batch_size": 32, "curriculum": [{"epochs": 1}]},
                "arms": ["b3"],
                "compute": {"shard_rows": 256},
                "store": {"root": str(folder / "store")},
            }
            | changes,
            base=folder,
        )
        self.store = ArtifactStore(self.spec.store.root)

    def plan(self):
        refs = [
            PairsRef.of(d, Pairs.of(d, self.spec.evaluate).run(self.store))
            for d in self.spec.datasets
        ]
        return Plan.of(self.spec, refs, self.store)

    def run(self, table):
        """Mine ``table``; return the plan and which stages were made now."""
        pq.write_table(table, self.file)
        plan = self.plan()
        (leg,) = plan.legs
        (vectors,) = leg.vectors
        made = []
        for stage in itertools.chain(
            () if self.store.find(vectors.address) else vectors.shards,
            leg.vectors,
            leg.ranks,
            leg.graphs,
            leg.communities,
            leg.manifests.values(),
        ):
            if self.store.find(stage.address) is None:
                stage.run(self.store)
                made.append(stage)
        return plan, made

    def manifest(self, plan, arm="b3"):
        return self.store.get(plan.legs[0].manifests[arm, 0].address)


def changed(table, *, gone, fresh, seed=9):
    """Return the table without its first rows, and with others at the end."""
    return pa.concat_tables([table.slice(gone), topic_table(fresh + 40, seed=seed).slice(40)])


def embedded(made):
    return sum(stage.stop - stage.start for stage in made if stage.name == "shard")


@pytest.fixture
def table():
    return topic_table(700)


def test_only_fresh_rows_are_embedded_and_nothing_is_done_twice(tmp_path, table):
    mining = Mining(tmp_path)
    first, made = mining.run(table)
    assert embedded(made) == first.legs[0].vectors[0].ref.rows
    second, made = mining.run(changed(table, gone=9, fresh=12))
    (vectors,) = second.legs[0].vectors
    counts = mining.store.get(vectors.address).counts
    assert embedded(made) == counts["rows"] - counts["carried"]
    assert 0 < embedded(made) <= 12
    head = Manifest.read_head(mining.manifest(second))
    assert head["datasets"][0]["earlier"]["pairs"] == first.legs[0].vectors[0].ref.digest
    for manifest in second.legs[0].manifests.values():
        assert verify(mining.store.get(manifest.address))
    again, made = mining.run(changed(table, gone=9, fresh=12))
    assert not made
    assert again.legs[0].manifests == second.legs[0].manifests


def test_vectors_and_ranks_are_those_of_a_run_from_scratch(tmp_path, table):
    """The static teacher embeds each row by itself, so that even the bits are."""
    one, other = Mining(tmp_path), Mining(tmp_path / "other")
    (tmp_path / "other").mkdir()
    one.run(table)
    after = changed(table, gone=20, fresh=10)
    carried, scratch = one.run(after)[0], other.run(after)[0]
    sides = [
        Embeddings.load(mining.store.get(plan.legs[0].vectors[0].address))
        for mining, plan in ((one, carried), (other, scratch))
    ]
    assert (sides[0].query_ND == sides[1].query_ND).all()
    assert (sides[0].positive_ND == sides[1].positive_ND).all()
    graphs = [
        [mining.store.get(graph.address).files for graph in plan.legs[0].graphs]
        for mining, plan in ((one, carried), (other, scratch))
    ]
    assert graphs[0] == graphs[1]


def test_communities_are_mended_but_the_paper_s_are_the_paper_s(tmp_path, table):
    mining = Mining(tmp_path, arms=["random", "paper", "b3"])
    mining.run(table)
    plan, _ = mining.run(changed(table, gone=5, fresh=5))
    counts = {
        arm: mining.store.get(plan.legs[0].manifests[arm, 0].partitions[0][0].address).counts
        for arm in ("random", "paper", "b3")
    }
    assert 0 < counts["b3"]["touched"] < 40  # of 71
    assert "touched" not in counts["paper"] and "touched" not in counts["random"]
    (communities,) = plan.legs[0].manifests["b3", 0].partitions[0]
    assert counts["b3"]["window"] > 2 * counts["b3"]["random_window"]
    assert communities.earlier is not None


def test_rows_held_out_otherwise_are_no_change_of_the_data(tmp_path, table):
    """What was embedded serves, as when ``b3 tune`` kept other rows back; communities are new."""
    Mining(tmp_path, evaluate={"kept_back": 0.15}).run(table)
    after = Mining(tmp_path)
    _, made = after.run(table)
    assert 0 < embedded(made) < 0.2 * len(table)
    (found,) = (stage for stage in made if stage.name == "communities")
    assert found.graph.ranks.earlier is not None and found.earlier is None
    (tmp_path / "alone").mkdir()
    alone = Mining(tmp_path / "alone")
    alone.run(table)
    label_N, expected_N = (
        Partition.load(mining.store.get(stage.address)).label_N
        for mining in (after, alone)
        for stage in mining.plan().legs[0].communities
    )
    assert (label_N == expected_N).all()


def test_vectors_are_named_by_the_prompts_that_a_model_brings(tmp_path, table):
    model = load_model("minilm")
    model.prompts = {"query": "q: ", "passage": "p: "}
    model.save(str(tmp_path / "model"))
    mining = Mining(tmp_path, teacher={"model": str(tmp_path / "model"), "positive_prompt": "x: "})
    pq.write_table(table, mining.file)
    (vectors,) = mining.plan().legs[0].vectors
    for stage in (vectors, *vectors.shards):
        assert (stage.settings["query_prompt"], stage.settings["positive_prompt"]) == ("q: ", "x: ")


@pytest.mark.slow
def test_changes_upon_changes_and_the_way_back(tmp_path, table):
    mining = Mining(tmp_path)
    first, _ = mining.run(table)
    for step in range(1, 4):
        plan, made = mining.run(changed(table, gone=3 * step, fresh=4 * step, seed=step))
        assert embedded(made) < 40
        assert verify(mining.manifest(plan))
    back, made = mining.run(table)
    assert not made
    assert back.legs[0].manifests == first.legs[0].manifests


@pytest.mark.slow
@pytest.mark.parametrize("how", ["many rows are new", "it is switched off", "no earlier pairs"])
def test_from_scratch_where(tmp_path, table, how):
    mining = Mining(tmp_path, **({"incremental": False} if how == "it is switched off" else {}))
    mining.run(table)
    after = changed(table, gone=5, fresh=5)
    if how == "many rows are new":
        after = changed(table, gone=200, fresh=200)
    if how == "no earlier pairs":
        for artifact in mining.store.artifacts("faq", "pairs"):
            mining.store.remove(f"{artifact.address.path}/record.json")
    plan, made = mining.run(after)
    rows = plan.legs[0].vectors[0].ref.rows
    assert plan.legs[0].vectors[0].earlier is None
    assert embedded(made) == rows if how != "no earlier pairs" else embedded(made) > 0
    other = Mining(tmp_path / "other")
    (tmp_path / "other").mkdir()
    fresh, _ = other.run(after)
    assert fresh.legs[0].manifests["b3", 0].address == plan.legs[0].manifests["b3", 0].address


@pytest.mark.slow
def test_a_row_that_moves_is_not_a_new_one(tmp_path, table):
    mining = Mining(tmp_path)
    mining.run(table)
    order = np.random.default_rng(0).permutation(len(table))
    plan, made = mining.run(table.take(order))
    assert embedded(made) == 0
    assert verify(mining.manifest(plan))


def test_the_state_with_most_of_the_rows_is_begun_with(tmp_path, table):
    mining = Mining(tmp_path)
    first, _ = mining.run(table)
    mining.run(table.slice(0, 300))  # mined later, with less in common
    plan, made = mining.run(changed(table, gone=4, fresh=4))
    assert plan.legs[0].vectors[0].earlier.address == first.legs[0].vectors[0].address
    assert embedded(made) <= 4


WIDE = {"name": "wide", "mining": {"p": 4, "m": 60, "k": 16}}


def test_an_arm_leaves_what_others_were_mined_to_as_it_is(tmp_path, table):
    mining = Mining(tmp_path)
    before, _ = mining.run(table)
    more = Mining(tmp_path, arms=["b3", WIDE, "random"])
    after, made = more.run(table)
    assert [stage.width for stage in made if stage.name == "ranks"] == [64]
    assert after.legs[0].manifests["b3", 0] == before.legs[0].manifests["b3", 0]
    assert {stage.width for stage in after.legs[0].ranks} == {22, 64}  # random's are b3's
