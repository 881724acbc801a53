import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from b3_core.artifacts import Address
from b3_core.communities import Partition
from b3_core.config import BatchSpec, DatasetSpec, EvalSpec, MiningSpec, Phase
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.errors import CorruptArtifactError, InputError
from b3_core.manifest import Manifest, verify, verify_before_training
from b3_core.mine import Communities, Graph, ManifestOf
from b3_core.negatives import Negatives
from b3_core.ranking import Ranks, ranking_of
from b3_core.stage import Stage
from b3_core.store import ArtifactStore
from b3_core.teacher import Embeddings
from tests.conftest import topic_table

MINING = MiningSpec(p=2, m=10, k=4)


@dataclasses.dataclass(frozen=True)
class Vectors(Stage):
    """Seeded vectors in place of a teacher's."""

    ref: PairsRef
    name = "embeddings"
    version = 1
    dataset = property(lambda self: self.ref.spec.name)
    settings = property(lambda self: {})
    inputs = property(lambda self: {"pairs": self.ref.digest, "weights": "seeded"})

    def build(self, store, draft, progress):
        sides = np.random.default_rng(0).normal(size=(2, self.ref.rows, 16))
        sides /= np.linalg.norm(sides, axis=2, keepdims=True)
        Embeddings(*sides.astype(np.float32)).save(draft)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with every artifact of one small mining, and the manifest's stage; to look at."""
    phases = (Phase(random_share=1), Phase(epochs=2))
    return mine(tmp_path_factory.mktemp("made"), BatchSpec(batch_size=8, curriculum=phases))


@pytest.fixture
def mined(made, tmp_path):
    """A copy of it, to spoil."""
    store, stage = made
    shutil.copytree(store.root, tmp_path / "store")
    return ArtifactStore(str(tmp_path / "store")), stage


def mine(tmp_path, batching, *tables, seed=0):
    """Mine the tables as datasets faq, forum, ...; without any, 130 rows as faq."""
    specs = []
    for name, table in zip(("faq", "forum"), tables or (topic_table(130),), strict=False):
        file = tmp_path / f"{name}.parquet"
        pq.write_table(table, file)
        specs.append(DatasetSpec(name=name, uri=str(file), query="question", positive="answer"))
    return mine_datasets(tmp_path, batching, specs, seed=seed)


def mine_datasets(tmp_path, batching, specs, *, seed=0):
    store = ArtifactStore(str(tmp_path / "store"))
    parts = []
    for spec in specs:
        ref = PairsRef.of(spec, Pairs.of(spec, EvalSpec()).run(store))
        ranks = Ranks(ref, Vectors(ref).run(store).address, 12)
        graph = Graph(ref, ranks, MINING)
        parts.append(tuple(Communities(ref, graph, v, seed) for v in MINING.variants(batching)))
        for each in (ranks, graph, *parts[-1]):
            each.run(store)
    stage = ManifestOf("small", tuple(parts), MINING, batching, seed)
    stage.run(store)
    return store, stage


def forged(store, stage, **changes):
    """Put one that is whole as files go, but holds something else, in the manifest's place."""
    manifest = dataclasses.replace(Manifest.load(store.get(stage.address)), **changes)
    shutil.rmtree(Path(store.root, stage.address.path))
    with store.draft(stage.address, lineage={}, settings={}) as draft:
        manifest.save(draft, [ref.table(store) for ref in stage.refs])
    return store.get(stage.address)


def test_negatives_are_in_the_manifest_and_checked(tmp_path):
    store, stage = mine(tmp_path, BatchSpec(batch_size=8, negatives=2))
    artifact = store.get(stage.address)
    manifest = Manifest.load(artifact)
    row_SBH = manifest.negatives.row_SBH
    assert row_SBH.shape == (*manifest.plan.row_SB.shape, 2)
    assert (row_SBH >= 0).mean() > 0.9
    assert manifest.head["negatives_short"] == (row_SBH < 0).sum()
    table = pq.read_table(artifact.path("batches-00000.parquet"))
    assert table["negatives"].to_pylist()[9] == row_SBH[1, 1].tolist()
    assert verify(artifact)
    members = np.broadcast_to(manifest.plan.row_SB[..., None], row_SBH.shape)
    with pytest.raises(CorruptArtifactError, match="batch 0, slot 0, negative 0: .*group"):
        verify(forged(store, stage, negatives=Negatives(np.ascontiguousarray(members))))


def test_the_order_of_datasets_is_part_of_what_a_manifest_is(tmp_path):
    store, stage = mine(tmp_path, BatchSpec(batch_size=8), topic_table(50), topic_table(75))
    turned = dataclasses.replace(stage, partitions=stage.partitions[::-1])
    assert turned.address != stage.address
    turned.run(store)
    for each in (stage, turned):
        assert verify(store.get(each.address))


def test_a_manifest_of_several_datasets_without_their_order_is_of_an_older_version(tmp_path):
    store, stage = mine(tmp_path, BatchSpec(batch_size=8), topic_table(50), topic_table(75))
    head = Manifest.read_head(store.get(stage.address))
    older = {name: value for name, value in head["settings"].items() if name != "order"}
    address = dataclasses.replace(stage.address, fingerprint="0" * 20)
    with store.draft(address, lineage={}, settings={}) as draft:
        draft.write_json("manifest.json", head | {"schema": 5, "settings": older})
    with pytest.raises(InputError, match="has schema version 5; expected version 6; mine again"):
        Manifest.read_head(store.get(address))
    assert stage.version // 10_000 == 6  # an address of its own, or the older one would be found


def test_batches_across_datasets_are_kept_and_checked_slot_by_slot(tmp_path):
    at_random = (Phase(epochs=2, random_share=1),)
    batching = BatchSpec(batch_size=8, mixing="across", negatives=1, curriculum=at_random)
    store, stage = mine(tmp_path, batching, topic_table(50), topic_table(75))
    artifact = store.get(stage.address)
    manifest = Manifest.load(artifact)
    plan = manifest.plan
    assert plan.is_across
    for epoch in range(2):
        left = (plan.left_out[:, 0] == epoch).sum()
        assert 8 * (plan.epoch_S == epoch).sum() + left == stage.refs[0].rows + stage.refs[1].rows
        assert left < 8
    assert verify(artifact)
    table = pq.read_table(artifact.path("batches-00000.parquet"))
    assert table["dataset"].to_pylist()[:8] == [["faq", "forum"][d] for d in plan.dataset_SB[0]]
    slot_SB = plan.slots_of(1)
    assert 0 < slot_SB[0].sum() < 8
    moved = dataclasses.replace(plan, dataset_SB=np.where(slot_SB, 0, 1).astype(np.int16))
    with pytest.raises(CorruptArtifactError, match="epoch 0, dataset [01]: "):
        verify(forged(store, stage, plan=moved))


def test_phases_with_their_own_k_have_their_own_communities(tmp_path):
    phases = (Phase(random_share=1), Phase(k=2), Phase(k=8))
    store, stage = mine(tmp_path, BatchSpec(batch_size=8, curriculum=phases))
    artifact = store.get(stage.address)
    manifest = Manifest.load(artifact)
    assert manifest.head["variant_of_epoch"] == [0, 0, 1]
    assert len(manifest.head["datasets"][0]["communities"]) == 2
    assert verify(artifact)
    plan = manifest.plan
    runs = [len(set(row)) for row in plan.community_SB.tolist()]
    assert [
        np.mean([r for r, e in zip(runs, plan.epoch_S, strict=True) if e == epoch])
        for epoch in range(3)
    ] == pytest.approx([1, 4, 1], abs=0.6)
    swapped = dict(manifest.head, variant_of_epoch=[0, 1, 0])
    with pytest.raises(CorruptArtifactError, match=r"variant_of_epoch is \[0, 1, 0\]; expected"):
        verify(forged(store, stage, head=swapped))


def test_a_manifest_is_read_back_as_it_was_planned(mined):
    store, stage = mined
    artifact = store.get(stage.address)
    manifest = Manifest.load(artifact)
    rows = stage.refs[0].rows
    assert manifest.datasets == ["faq"]
    assert manifest.plan.row_SB.shape == (3 * (rows // 8), 8)
    manifest.plan.check([rows])
    table = pq.read_table(artifact.path("batches-00000.parquet")).to_pandas()
    source = stage.refs[0].table(store).table.to_pandas()
    assert (source.row_id[table.row].to_numpy() == table.row_id).all()
    assert (source.key[table.row].to_numpy() == table.key).all()
    assert (table.community[table.epoch == 0] == -1).all()
    label_N = Partition.load(store.get(stage.partitions[0][0].address)).label_N
    later = table[table.epoch > 0]
    assert (label_N[later.row] == later.community).all()


def test_the_head_says_what_it_was_made_from(mined):
    store, stage = mined
    head = Manifest.read_head(store.get(stage.address))
    assert {path.split("/")[1] for path in head["lineage"]} == {
        "pairs", "embeddings", "ranks", "graph", "communities",
    }  # fmt: skip
    assert head["datasets"][0]["quality"][0]["window"] > 0
    assert head["settings"]["seed"] == 0 and "igraph" in head["libraries"]
    text = json.dumps(head)
    assert store.root not in text and "seconds" not in text


def test_the_same_inputs_give_the_same_bytes(mined, tmp_path):
    store, stage = mined
    with store.draft(Address("x", "y", "z"), lineage={}, settings={}) as draft:
        stage.build(store, draft, lambda done, total: None)
    again = store.get(Address("x", "y", "z"))
    assert {n: f.sha256 for n, f in again.files.items()} == {
        n: f.sha256 for n, f in store.get(stage.address).files.items()
    }


def test_a_sound_manifest_verifies(mined):
    store, stage = mined
    assert verify(store.get(stage.address))["batches"] == 3 * (stage.refs[0].rows // 8)


def test_before_training_what_manifests_share_is_read_once(mined, tmp_path, monkeypatch):
    store, stage = mined
    other = mine(tmp_path, stage.batching, seed=1)[1]
    read, looked_up = Counter(), Counter()
    copy, find = ArtifactStore.local_copy, ArtifactStore.find

    def local_copy(self, path, entry, **options):
        read[path.split("/")[1]] += 1
        return copy(self, path, entry, **options)

    def find_counted(self, address):
        looked_up[address.stage] += 1
        return find(self, address)

    both = [store.get(each.address) for each in (stage, other)]
    monkeypatch.setattr(ArtifactStore, "local_copy", local_copy)
    monkeypatch.setattr(ArtifactStore, "find", find_counted)
    told = []
    verify_before_training(both, lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert read["pairs"] == 1 and read["communities"] == 4  # two files each
    assert not read.keys() & {"embeddings", "graph", "ranks"}
    assert looked_up == {"pairs": 1, "embeddings": 1, "ranks": 1, "graph": 1, "communities": 2}
    verify(both[0])
    assert read.keys() >= {"embeddings", "graph", "ranks"}


@pytest.mark.parametrize("upstream", ["pairs", "embeddings", "ranks", "graph", "communities"])
def test_a_flipped_byte_anywhere_upstream_is_found(mined, tmp_path, upstream):
    store, stage = mined
    file = max((tmp_path / "store/faq" / upstream).rglob("*.*.*"), key=lambda f: f.stat().st_size)
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)
    with pytest.raises(CorruptArtifactError, match=file.name.replace(".", r"\.")):
        verify(store.get(stage.address))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"row_SB": np.where(p.row_SB == 3, 4, p.row_SB)}, "row 3 is there 0 times"),
        (lambda p: {"row_SB": p.row_SB[:, ::-1]}, "batch 15 names a community"),
        (lambda p: {"epoch_S": p.epoch_S[::-1]}, "epochs"),
        (
            lambda p: {"community_SB": p.community_SB + (p.community_SB >= 0)},
            "batch 15 names a community",
        ),
    ],
)
def test_a_wrong_plan_under_right_hashes_is_refused(mined, change, message):
    """Someone writes a manifest whose files are whole but whose batches are not."""
    store, stage = mined
    plan = Manifest.load(store.get(stage.address)).plan
    with pytest.raises(CorruptArtifactError, match=message):
        verify(forged(store, stage, plan=dataclasses.replace(plan, **change(plan))))


def test_another_artifact_is_no_manifest(mined):
    store, stage = mined
    with pytest.raises(InputError, match="communities artifact; expected a manifest"):
        verify(store.get(stage.partitions[0][0].address))


def test_an_approximate_search_says_what_it_found(tmp_path):
    store, stage = mine(tmp_path, BatchSpec(batch_size=8))
    exact = stage.partitions[0][0].graph.ranks
    approximate = dataclasses.replace(exact, p=2, method="hnsw")
    assert approximate.address != exact.address
    assert "window_recall" not in store.get(exact.address).counts
    assert 0.5 < approximate.run(store).counts["window_recall"] <= 1
    mining = MINING.model_copy(update={"search": "hnsw"})
    assert ranking_of(stage.refs[0], exact.vectors, mining) == approximate
