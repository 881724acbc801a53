import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from b3_core.artifacts import Address
from b3_core.communities import Partition
from b3_core.config import BatchSpec, DatasetSpec, EvalSpec, MiningSpec
from b3_core.embed import Pairs, PairsRef
from b3_core.errors import CorruptArtifactError, InputError
from b3_core.manifest import Manifest, verify
from b3_core.mine import Communities, Graph, ManifestOf, Ranks
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


@pytest.fixture
def mined(tmp_path):
    """A store with every artifact of one small mining, and the manifest's stage."""
    store = ArtifactStore(str(tmp_path / "store"))
    file = tmp_path / "pairs.parquet"
    pq.write_table(topic_table(130), file)
    spec = DatasetSpec(name="faq", uri=str(file), query="question", positive="answer")
    evaluate = EvalSpec()
    ref = PairsRef.of(spec, Pairs.of(spec, evaluate).run(store))
    vectors = Vectors(ref).run(store)
    ranks = Ranks(ref, vectors.address, 12)
    graph = Graph(ref, ranks, MINING)
    part = Communities(ref, graph, MINING, 0)
    stage = ManifestOf("small", (part,), MINING, BatchSpec(batch_size=8, epochs=3), 0)
    for each in (ranks, graph, part, stage):
        each.run(store)
    return store, stage


def test_a_manifest_is_read_back_as_it_was_planned(mined):
    store, stage = mined
    artifact = store.get(stage.address)
    manifest = Manifest.load(artifact)
    rows = stage.refs[0].rows
    assert manifest.datasets == ["faq"]
    assert manifest.plan.row_SB.shape == (3 * (rows // 8), 8)
    manifest.plan.check([rows])
    table = pq.read_table(artifact.path("batches.parquet")).to_pandas()
    source = stage.refs[0].table(store).table.to_pandas()
    assert (source.row_id[table.row].to_numpy() == table.row_id).all()
    assert (source.key[table.row].to_numpy() == table.key).all()
    assert (table.community[table.epoch == 0] == -1).all()
    label_N = Partition.load(store.get(stage.partitions[0].address)).label_N
    later = table[table.epoch > 0]
    assert (label_N[later.row] == later.community).all()


def test_the_head_says_what_it_was_made_from(mined):
    store, stage = mined
    head = Manifest.read_head(store.get(stage.address))
    assert {path.split("/")[1] for path in head["lineage"]} == {
        "pairs", "embeddings", "ranks", "graph", "communities",
    }  # fmt: skip
    assert head["datasets"][0]["quality"]["window"] > 0
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
    manifest = Manifest.load(store.get(stage.address))
    plan = dataclasses.replace(manifest.plan, **change(manifest.plan))
    address = dataclasses.replace(stage.address, fingerprint="forged")
    table = stage.refs[0].table(store)
    with store.draft(address, lineage={}, settings={}) as draft:
        dataclasses.replace(manifest, plan=plan).save(draft, [table])
    with pytest.raises(CorruptArtifactError, match=message):
        verify(store.get(address))


def test_another_artifact_is_no_manifest(mined):
    store, stage = mined
    with pytest.raises(InputError, match="communities artifact; expected a manifest"):
        verify(store.get(stage.partitions[0].address))
