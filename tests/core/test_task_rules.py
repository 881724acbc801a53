"""What a dataset's task changes, on real data: digits with labels, questions with short answers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from b3_core import corpus, labels, packaged
from b3_core.balance import balance
from b3_core.communities import find_communities
from b3_core.config import BatchSpec, DatasetSpec, EvalSpec, MiningSpec, TeacherSpec
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.embed import Vectors
from b3_core.graph import CsrGraph
from b3_core.groups import group_ids
from b3_core.manifest import Manifest
from b3_core.mine import Communities, Graph, ManifestOf
from b3_core.neighbours import rank
from b3_core.pairs import PairTable
from b3_core.quality import describe
from b3_core.ranking import ranking_of
from b3_core.store import ArtifactStore


def mined(folder: Path, kind: str, task: str, rows: int, *, k: int, **columns: str):
    """Mine a corpus by a task's rules; return its rows, the plan, and what links rows."""
    made = corpus.read_corpus(corpus.KINDS[kind], rows)
    source = folder / f"{kind}.parquet"
    pq.write_table(made.train, source)
    spec = DatasetSpec(
        name=kind, uri=str(source), **(columns or corpus.KINDS[kind].columns), task=task
    )
    store = ArtifactStore(str(folder / task))
    ref = PairsRef.of(spec, Pairs.of(spec, EvalSpec()).run(store))
    teacher = TeacherSpec(reads="both" if columns else "positive")
    vectors = Vectors.of(store, ref, teacher, 4096)
    mining, batching = MiningSpec(k=k), BatchSpec(batch_size=k)
    ranks = ranking_of(ref, vectors.address, mining)
    communities = Communities(ref, Graph(ref, ranks, mining), mining, 0)
    stage = ManifestOf("rules", ((communities,),), mining, batching, 0)
    for each in (*vectors.shards, vectors, ranks, communities.graph, communities, stage):
        each.run(store)
    table = PairTable.load(store.get(ref.address), "train")
    plan = Manifest.load(store.get(stage.address)).plan
    return table, plan, ranks.link(store, mining)[0]


def test_digits_are_linked_to_near_labels_by_the_rule_for_labels_alone(tmp_path: Path) -> None:
    """By rows, the first p are an arbitrary part of one label, and the window sees hardly another.

    Labels whose nearest ones have nearer ones of their own are alone by either rule.
    """
    alone, met = {}, {}
    for task in ("classification", "retrieval"):
        table, _, attract = mined(tmp_path, "digits", task, 1000, k=4)
        degree_N = np.diff(attract.indptr)
        label_E = table.group_N[np.repeat(np.arange(attract.rows), degree_N)]
        pairs = np.unique(np.column_stack([label_E, table.group_N[attract.indices]]), axis=0)
        assert (pairs[:, 0] != pairs[:, 1]).all()  # its own label never
        alone[task], met[task] = float((degree_N == 0).mean()), len(pairs) // 2
    print(f"\nrows without a partner: {alone}; pairs of labels that meet: {met}")
    assert alone["classification"] < 0.3 and alone["retrieval"] > 0.6
    assert min(met.values()) >= 3


@pytest.mark.slow
def test_answers_that_nearly_repeat_are_kept_out_by_the_rule_for_questions(tmp_path: Path) -> None:
    """Hundreds of numbers are nearly the answer: p = 70 keeps out what p = 30 lets in."""
    found = {}
    for task in ("vqa", "retrieval"):
        columns = {"query": "query", "positive": "text"}
        table, plan, _ = mined(tmp_path, "tables", task, 3000, k=16, **columns)
        model = packaged.static_teacher()
        sides = (table.queries, table.positives)
        query_ND, positive_ND = (
            model.encode(texts.to_pylist(), normalize_embeddings=True) for texts in sides
        )
        ranks = rank(query_ND, positive_ND, group_N=table.group_N, width=170)
        found[task] = describe(plan, ranks, p=70, m=100)["too_hard"]
    print(f"\npartners among the 70 nearest answers: {found}")
    assert found["vqa"] < 0.6 * found["retrieval"]


def test_both_corpora_are_of_their_task() -> None:
    assert corpus.KINDS["digits"].task == "classification"
    assert corpus.KINDS["tables"].task == "vqa"


@pytest.mark.slow
def test_leiden_finds_near_labels_in_a_thinned_graph(tmp_path: Path) -> None:
    """By the resolution of graphs of ranks it finds single rows, and swaps end far below."""
    rng = np.random.default_rng(0)
    topic_LD = np.repeat(np.eye(20, dtype=np.float32), 15, axis=0)  # 15 labels of each of 20 topics
    label_LD = topic_LD + rng.normal(0, 0.05, topic_LD.shape).astype(np.float32)
    label_LD /= np.linalg.norm(label_LD, axis=1, keepdims=True)
    group_N = np.repeat(np.arange(300, dtype=np.int32), 20)
    near = labels.rank_labels(label_LD[group_N], label_LD[group_N], group_N=group_N, share=0.05)
    attract = labels.link_labels(near, edges=100, rng=rng)
    partners = {}
    for name, resolution in (("rows", None), ("labels", labels.resolution(attract))):
        spec = MiningSpec(k=8, resolution=resolution)
        found_N = find_communities(attract, spec, rng=np.random.default_rng(0))
        partition = balance(
            found_N, attract=attract, repel=CsrGraph.empty(attract.rows), group_N=group_N,
            spec=spec, rng=np.random.default_rng(0),
        )  # fmt: skip
        partners[name] = labels.describe_labels(partition.label_N, near)["mutual"]
    print(f"\npartners of near labels, of 7: {partners}")
    assert partners["labels"] > 6 > 1.5 * partners["rows"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["icons", "tables"])
def test_densities_that_suit_real_labels(kind: str) -> None:
    """The table of docs/decisions.md: first words of icons' names, and answers, as labels."""
    rows = corpus.read_corpus(corpus.KINDS[kind], 10_000).train
    texts = rows["text"].to_pylist()
    if kind == "icons":
        queries, names = texts, [text.split()[0].strip(",") for text in texts]
    else:
        queries, names = rows["query"].to_pylist(), texts
    group_N = group_ids(pa.chunked_array([pa.array(names)]))
    model = packaged.static_teacher()
    query_ND, label_ND = (
        model.encode(side, normalize_embeddings=True) for side in (queries, names)
    )
    near = labels.rank_labels(query_ND, label_ND, group_N=group_N)
    attract = labels.link_labels(near, edges=100, rng=np.random.default_rng(0))
    density = labels.resolution(attract) / labels.RESOLUTION
    for k in (8, 32):
        mutual = {}
        for times in (None, 2, 3, 4, labels.RESOLUTION, 6, 8):
            spec = MiningSpec(k=k, resolution=None if times is None else times * density)
            found_N = find_communities(attract, spec, rng=np.random.default_rng(0))
            partition = balance(
                found_N, attract=attract, repel=CsrGraph.empty(attract.rows), group_N=group_N,
                spec=spec, rng=np.random.default_rng(0),
            )  # fmt: skip
            mutual[times] = labels.describe_labels(partition.label_N, near)["mutual"]
        print(f"\n{kind}, {group_N.max() + 1} labels, k = {k}:", mutual)
        ours = mutual.pop(labels.RESOLUTION)
        assert ours > mutual.pop(None)
        assert ours > 0.9 * max(mutual.values())
