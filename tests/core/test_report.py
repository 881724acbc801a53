"""The figures of a report: by hand, by a slow twin, and where half of a store is gone."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core.config import BatchSpec, DatasetSpec, EvalSpec, Phase
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.errors import CorruptArtifactError, InputError
from b3_core.inputs import PACKED, Shelf
from b3_core.manifest import Manifest
from b3_core.mine import Communities, Graph, ManifestOf
from b3_core.ranking import ranking_of
from b3_core.report.advice import advise, gravest
from b3_core.report.dataset import Options
from b3_core.report.describe import describe
from b3_core.report.meetings import BINS, Looked, RankSight, by_epoch, figures, meet
from b3_core.report.repeats import Edges, kept, meeting, read_texts
from b3_core.report.samples import ROWS, Album, why
from b3_core.report.stored import Sides
from b3_core.store import ArtifactStore, open_artifact
from tests.conftest import examples, topic_table
from tests.core.test_incremental import Mining
from tests.core.test_manifest import MINING, Vectors, forged, mine
from tests.media import png

# Tests of the eight points that the README's figure is drawn from (docs/eight_points.py).
QUERY_ANGLES = np.array([0.0, 30.0, 90.0, 120.0, 180.0, 210.0, 270.0, 300.0])
RANDOM = np.array([[0, 2, 4, 6], [1, 3, 5, 7]], np.int32)
MINED = np.array([[0, 1, 4, 5], [2, 3, 6, 7]], np.int32)
TOPICS = np.array([[0, 0, 1, 1], [2, 2, 3, 3]], np.int32)


def on_circle(degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def eight_points(group_N=None):
    sides = Sides(on_circle(QUERY_ANGLES), on_circle(QUERY_ANGLES + 4))
    score_NN = sides.query_ND @ sides.positive_ND.T
    np.fill_diagonal(score_NN, -np.inf)
    nearest_NM = np.argsort(-score_NN, axis=1, kind="stable")[:, :3].astype(np.int32)
    return Looked(sides, RankSight(nearest_NM, p=0, m=1), group_N)


def cos(degrees):
    return np.cos(np.deg2rad(degrees))


def test_eight_points_by_hand():
    """A topic's rows are 30 degrees apart, topics 60 or more, a positive 4 from its query.

    So a topic's first row has its partner's positive at 34 degrees, the second at 26, and all else
    is at 56 or more: each row's nearest positive is its partner's.
    """
    mined = figures(meet(MINED, TOPICS, eight_points()))
    assert (mined["batches"], mined["rows"], mined["pairs"]) == (2, 8, 24)
    assert mined["hardest"]["mean"] == pytest.approx((cos(34) + cos(26)) / 2, abs=1e-6)
    assert mined["inside_similarity"] == pytest.approx((cos(34) + cos(26)) / 2, abs=1e-6)
    assert mined["window"]["mean"] == mined["window"]["inside_mean"] == 1.0
    assert mined["window"]["rows_with"] == [0, 8]
    assert mined["too_hard"]["mean"] == 0.0
    # The own positive scores cos 4 = .9976: 0.95 of it is .948, 0.9 of it .8978 < cos 26 = .8988.
    found = mined["false_negatives"]
    assert found["share_of_pairs"] == found["share_of_rows"] == found["partners_a_row"] == 0
    assert found["share_of_pairs_at"] == {"0.90": 4 / 24, "0.95": 0.0, "1.00": 0.0}
    assert found["rows_judged"] == 1.0

    random = figures(meet(RANDOM, np.full_like(RANDOM, -1), eight_points()))
    assert random["window"]["mean"] == 0.0 and random["window"]["none"] == 1.0
    assert random["inside_similarity"] is None and random["window"]["inside_mean"] is None
    # On a circle the others add up to what is opposite, whoever they are: the mean tells nothing,
    # which is why distributions are shown.
    for found in (mined, random):
        assert found["similarity"]["mean"] == pytest.approx(-cos(4) / 3, abs=1e-6)
    assert random["hardest"]["mean"] == pytest.approx(cos(86), abs=1e-6)
    assert sum(random["similarity"]["shares"]) == pytest.approx(1, abs=1e-5)


def test_a_row_of_the_own_group_is_no_pair():
    group_N = np.arange(8, dtype=np.int32) // 2
    mined = figures(meet(MINED, TOPICS, eight_points(group_N)))
    assert mined["pairs"] == 16
    assert mined["window"]["mean"] == 0.0
    assert mined["hardest"]["mean"] < cos(56) + 1e-6
    none = figures(meet(MINED[:0], TOPICS[:0], eight_points()))
    assert none == {"batches": 0, "rows": 0, "pairs": 0}
    alone = figures(meet(MINED, TOPICS, eight_points(np.zeros(8, np.int32))))
    assert alone["pairs"] == 0 and "similarity" not in alone


def slow(row_SB, community_SB, looked, ranks, p, m):
    """Look at all pairs of every batch, one after the other."""
    found = dict.fromkeys(("pairs", "score", "inside", "window", "too_hard", "judged", "likely"), 0)
    for s, row_B in enumerate(row_SB):
        for a, b in itertools.permutations(range(len(row_B)), 2):
            i, j = int(row_B[a]), int(row_B[b])
            if looked.group_N[i] == looked.group_N[j]:
                continue
            score = float(looked.sides.query_ND[i].astype(np.float64) @ looked.sides.positive_ND[j])
            own = float(looked.sides.query_ND[i].astype(np.float64) @ looked.sides.positive_ND[i])
            rank = ranks[i].tolist().index(j) if j in ranks[i] else 10**6
            found["pairs"] += 1
            found["score"] += score
            found["inside"] += community_SB[s, a] == community_SB[s, b] >= 0
            found["window"] += p <= rank < p + m
            found["too_hard"] += rank < p
            found["judged"] += own > 0
            found["likely"] += own > 0 and score >= 0.95 * own
    return found


@settings(deadline=None, max_examples=examples(25))
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(0, 3), st.integers(1, 6))
def test_meetings_and_their_slow_twin(seed, size, p, m):
    rng = np.random.default_rng(seed)
    rows, batches = 4 * size, 3
    sides = Sides(*rng.normal(size=(2, rows, 3)).astype(np.float32))
    rank_NM = np.array([rng.permutation(np.delete(np.arange(rows), i))[:9] for i in range(rows)])
    rank_NM = rank_NM.astype(np.int32)
    rank_NM[rng.random(rows) < 0.2, -1] = -1
    row_SB = rng.permutation(rows)[: batches * size].reshape(batches, size).astype(np.int32)
    community_SB = rng.integers(-1, 2, (batches, size)).astype(np.int32)
    group_N = rng.integers(0, rows, rows).astype(np.int32)
    looked = Looked(sides, RankSight(rank_NM, p=p, m=m), group_N)
    met, expected = (
        meet(row_SB, community_SB, looked),
        slow(row_SB, community_SB, looked, rank_NM, p, m),
    )
    assert met.pairs_S.sum() == expected["pairs"] == met.score_X.sum()
    assert met.inside_S.sum() == expected["inside"]
    assert met.sums["score"].sum() == pytest.approx(expected["score"], abs=1e-4)
    for name in ("window", "too_hard", "likely"):
        assert met.counts[name].sum() == expected[name], name
    assert met.sums["judged"].sum() == expected["judged"]
    assert len(by_epoch(met)) == 1


def test_quantiles_are_those_of_the_pairs_to_a_bin():
    rng = np.random.default_rng(0)
    sides = Sides(
        *(v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, 64, 4)))
    )
    row_SB = np.arange(64, dtype=np.int32).reshape(2, 32)
    found = figures(meet(row_SB, np.zeros_like(row_SB), Looked(sides, None, None)))
    scores = np.concatenate([
        (sides[0][row] @ sides[1][row].T)[~np.eye(32, dtype=bool)] for row in row_SB
    ])  # fmt: skip
    for q in (10, 50, 90, 99):
        assert found["similarity"][f"q{q}"] == pytest.approx(
            np.quantile(scores, q / 100), abs=2.5 / BINS
        )
    assert "window" not in found


def test_duplicates_that_meet_by_hand():
    row_SB = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    text_N = np.array([7, 7, 7, 1, 2, 1])
    group_N = np.array([0, 0, 1, 2, 3, 2])
    assert meeting(row_SB, group_N) == 4  # rows 0 and 1, rows 3 and 5
    assert meeting(row_SB, text_N) == 5
    assert meeting(row_SB, text_N, group_N) == 3  # 0 and 1 meet 2; 3 and 5 are of one group


def test_edges_that_are_kept_by_hand():
    # The path 0 - 1 - 2 - 3, and row 4 alone.
    edges = Edges(np.array([0, 1, 3, 5, 6, 6]), np.array([1, 0, 2, 1, 3, 2], np.int32))
    assert kept(edges, np.array([0, 0, 1, 1, 1], np.int32)) == pytest.approx(2 / 3)
    assert kept(edges, np.array([0, 0, -1, -1, 0], np.int32)) == pytest.approx(1 / 3)
    empty = Edges(np.zeros(6, np.int64), np.zeros(0, np.int32))
    assert kept(empty, np.zeros(5, np.int32)) is None


@pytest.mark.parametrize(
    ("own", "other", "rank", "same_group", "relation", "words"),
    [
        (4, 4, 7, False, "window", "window, rank 7 of 2 to 11; same community"),
        (4, 5, 1, False, "too_hard", "too hard, rank 1 of the first 2; drawn with another"),
        (4, -1, -1, False, "beyond", "beyond the window; drawn at random"),
        (4, 4, 12, False, "beyond", "beyond the window; same community"),
        (4, 4, -1, True, "group", "same group, masked in the loss; same community"),
        (-1, -1, 3, False, "window", "window, rank 3 of 2 to 11; drawn at random"),
        (4, 4, None, False, "unknown", "rank unknown; same community"),
    ],
)
def test_why_a_pair_is_there(own, other, rank, same_group, relation, words):
    sight = RankSight(np.zeros((1, 12), np.int32), p=2, m=10)
    found = why(own, other, rank=rank, same_group=same_group, sight=sight)
    assert found["relation"] == relation and found["why"].startswith(words)


SOUND = {
    "name": "faq", "rows": 1000, "p": 30, "m": 100, "k": 32, "labelled": False,
    "partitioner": "leiden", "moved_share": 0.2, "left_out_share": 0.01,
    "cautions": {}, "edges": {"isolated": 0.02}, "teacher": {"hit@1": 0.4, "window_recall": 0.99},
    "communities": {"window": 5.0, "random_window": 1.0, "too_hard": 1.0},
    "repeats": {"slots": 1000, "same_group": 0, "same_query": 0, "same_positive": 0},
    "batches": {
        "mined": {"false_negatives": {"share_of_pairs": 0.05, "threshold": 0.95}},
        "random": {"false_negatives": {"share_of_pairs": 0.04}},
    },
}  # fmt: skip
FAULTS = {
    "12% of rows have no window edge": {"edges": {"isolated": 0.12}},
    "a row has 1.10 window partners in its community, at random 1.00": {
        "communities": {"window": 1.1, "random_window": 1.0, "too_hard": 0.1}
    },
    "ranks below p = 30, beside 5.00": {
        "communities": {"window": 5.0, "random_window": 1.0, "too_hard": 3.0}
    },
    "12.0% of in-batch pairs": {
        "batches": {
            "mined": {"false_negatives": {"share_of_pairs": 0.12, "threshold": 0.95}},
            "random": {"false_negatives": {"share_of_pairs": 0.04}},
        }
    },
    "batches hold duplicates: 4 of 1,000 slots": {"repeats": {**SOUND["repeats"], "same_group": 4}},
    "40 of 1,000 slots meet the same query": {"repeats": {**SOUND["repeats"], "same_query": 40}},
    "4 of 9 held-out rows": {"cautions": {"overlap": "4 of 9 held-out rows are trained on"}},
    "3 rows left out": {"cautions": {"skipped": "3 rows left out for bad images or videos"}},
    "60% of rows were moved": {"moved_share": 0.6},
    "leaves out 6% of the rows": {"left_out_share": 0.06},
    "first for 4.0% of rows": {"teacher": {"hit@1": 0.04}},
    "a window of 100 ranks is 33% of the 300 rows": {"rows": 300},
    "found 50% of the windows": {"teacher": {"window_recall": 0.5}},
}


def test_a_sound_plan_is_not_warned_of():
    assert advise(SOUND) == []
    unknown = {**SOUND, "edges": {}, "teacher": {}, "repeats": None, "moved_share": None}
    unknown["batches"] = {"mined": {}, "random": {}, "paper": None}
    assert advise(unknown) == []


@pytest.mark.parametrize(("says", "fault"), FAULTS.items())
def test_each_fault_is_said_with_its_number_and_a_remedy(says, fault):
    (found,) = advise(SOUND | fault)
    assert says in found["says"] and found["remedy"] and found["dataset"] == "faq"


@pytest.mark.parametrize(
    ("rows", "p", "m", "isolated", "says", "remedy"),
    [
        (1000, 30, 100, 0.6, "the window too narrow", "or a larger mining.m"),
        (1000, 30, 300, 0.6, "the window too narrow", "mining.graph: union"),
        (190, 160, 50, 0.6, "p = 160 leaves a window of 29 ranks, not 50", "a smaller mining.p"),
        (190, 300, 50, 1.0, "p = 300 leaves no window in 190 rows", "a smaller mining.p"),
    ],
)
def test_remedies_for_a_window_do_not_contradict_one_another(rows, p, m, isolated, says, remedy):
    drawn = {**SOUND["batches"]["mined"], "false_negatives": {"share_of_pairs": 0.0}}
    found = advise(
        SOUND
        | {"rows": rows, "p": p, "m": m, "edges": {"isolated": isolated}}
        | {"batches": {**SOUND["batches"], "random": drawn}}
    )
    first = found[0]
    assert first["kind"] == "isolated" and says in first["says"] and remedy in first["remedy"]
    remedies = " ".join(each["remedy"] for each in found)
    assert not ("larger mining.m" in remedies and "smaller mining.m" in remedies)
    assert not ("raise mining.p " in remedies and "smaller mining.p" in remedies)
    assert "false-negatives" in {each["kind"] for each in found}


def test_the_gravest_is_that_mining_came_to_next_to_nothing():
    few = ("name", "rows", "labelled", "p", "m", "partitioner", "edges", "communities")
    figures = {key: SOUND[key] for key in few}
    assert gravest(figures) == gravest(figures | {"edges": {"isolated": 0.2}}) == []
    lost = figures | {"edges": {"isolated": 0.6}}
    assert gravest(lost) == [
        "faq: 60% of rows have no window edge: the teacher may be weak, or the window too narrow; "
        "try a stronger teacher, mining.graph: union, or a larger mining.m"
    ]
    alike = {"communities": {"window": 1.1, "random_window": 1.0, "too_hard": 0.1}}
    (said,) = gravest(figures | alike)
    assert "mining found next to nothing" in said
    assert len(gravest(lost | alike)) == 1


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """Two datasets, of which one repeats its answers, an epoch at random and two mined."""
    answers = topic_table(90, seed=1)["answer"].to_pylist()[:10]
    forum = topic_table(90, seed=1).set_column(1, "answer", pa.array(answers * 9))
    batching = BatchSpec(
        batch_size=16, curriculum=(Phase(random_share=1), Phase(epochs=2)), negatives=2
    )
    return mine(tmp_path_factory.mktemp("report"), batching, topic_table(130), forum)


@pytest.fixture(scope="module")
def whole(mined):
    """What is said of it, once: METIS is a process for each dataset."""
    store, stage = mined
    return describe(store.get(stage.address))


@pytest.fixture
def copied(mined, tmp_path):
    store, stage = mined
    shutil.copytree(store.root, tmp_path / "store")
    return open_artifact(f"{tmp_path}/store/{stage.address.path}")


def test_a_manifest_is_described_alike_each_time_and_as_plain_json(mined, whole):
    store, stage = mined
    found = whole
    again = describe(open_artifact(store.get(stage.address).uri))
    assert json.dumps(found, allow_nan=False) == json.dumps(again, allow_nan=False)
    assert [data["name"] for data in found["datasets"]] == ["faq", "forum"]
    plan = Manifest.load(store.get(stage.address)).plan
    assert found["plan"]["batches"] == len(plan.row_SB)
    assert found["plan"]["duplicates"] == plan.duplicates
    assert found["gone"] == []
    faq, forum = found["datasets"]
    assert faq["exact"] and [row["epoch"] for row in faq["epochs"]] == [0, 1, 2]
    assert [row["random_share"] for row in faq["epochs"]] == [1.0, 0.0, 0.0]
    assert faq["batches"]["mined"]["batches"] == sum(row["batches"] for row in faq["epochs"][1:])
    assert faq["sources"]["paper"].startswith("METIS at its defaults on the same ranks")
    assert faq["repeats"]["same_group"] == 0 and faq["repeats"]["rows_in_groups"] == 0
    assert (
        forum["repeats"]["rows_in_groups"]
        == forum["rows"]
        == forum["repeats"]["repeated_positives"]
    )
    assert forum["repeats"]["same_positive"] == 0  # the same positive is the same group
    assert {"groups"} <= {each["kind"] for each in forum["advice"]}
    assert set(found["totals"]) == {"seconds", "money", "bytes", "peak_mb", "gone"}
    assert found["totals"]["gone"] == 0 and found["totals"]["money"] is None


def test_all_rows_in_full_communities_have_the_figures_of_their_record(tmp_path):
    store, stage = mine(tmp_path, BatchSpec(batch_size=4), topic_table(135))
    found = describe(store.get(stage.address))
    (data,) = found["datasets"]
    met, quality = data["batches"]["mined"], data["communities"]
    assert data["rows"] == 128 and data["left_out"] == 0
    assert met["window"]["inside_mean"] == pytest.approx(quality["window"])
    assert met["too_hard"]["inside_mean"] == pytest.approx(quality["too_hard"])
    assert met["window"]["mean"] == met["window"]["inside_mean"]  # a batch is one community
    edges = data["edges"]
    assert edges["in_batches"] == edges["in_communities"] > 3 * edges["random_in_communities"]
    assert quality["mutual"] * 128 / 2 == pytest.approx(edges["in_communities"] * edges["edges"])


def test_batches_to_read_are_the_plans(mined, whole):
    store, stage = mined
    found, plan = whole, Manifest.load(store.get(stage.address)).plan
    tables = [ref.table(store) for ref in stage.refs]
    assert len(found["batches"]) == 8
    assert {batch["random"] for batch in found["batches"]} == {True, False}
    for batch in found["batches"]:
        row_B = plan.row_SB[batch["batch"]]
        table = tables[plan.dataset_S[batch["batch"]]]
        assert batch["dataset"] == table.dataset and batch["size"] == 16
        for row in batch["rows"]:
            at = int(row_B[row["slot"]])
            assert row["query"] == table.queries[at].as_py()
            assert row["positive"] == table.positives[at].as_py()
            assert row["community"] == plan.community_SB[batch["batch"], row["slot"]]
            scores = [near["score"] for near in row["partners"]]
            assert scores == sorted(scores, reverse=True) and len(scores) == 5
            for near in row["partners"]:
                if near["relation"] == "group":
                    assert table.group_N[int(row_B[near["slot"]])] == table.group_N[at]


def test_a_sample_is_named_and_close_to_the_whole(mined, whole):
    store, stage = mined
    few = Options(rows=16 * 9, make_paper=False)
    full = whole["datasets"][0]
    some, other = (
        describe(store.get(stage.address), options)["datasets"][0]
        for options in (few, dataclasses.replace(few, seed=1))
    )
    assert full["exact"] and not some["exact"]
    assert some["batches"]["mined"]["batches"] == 6
    assert some["batches"]["mined"]["window"]["mean"] == pytest.approx(
        full["batches"]["mined"]["window"]["mean"], rel=0.2
    )
    assert other["batches"]["mined"] != some["batches"]["mined"]


GONE = {
    "pairs": ("faq: the pairs are not in the store", "repeats"),
    "embeddings": ("no similarity is measured", None),
    "ranks": ("no partner is known by its rank", None),
    "graph": ("no edges are counted", "edges"),
    "communities": ("no edges are counted", "edges"),
}


@pytest.mark.parametrize("stage", GONE)
def test_what_is_gone_is_said_and_the_rest_is_shown(copied, whole, stage):
    shutil.rmtree(Path(copied.store.root, "faq", stage))
    found = describe(open_artifact(copied.uri))
    says, lacking = GONE[stage]
    assert any(says in sentence for sentence in found["gone"]), found["gone"]
    assert found["totals"]["gone"] == 1
    faq, forum = found["datasets"]
    if lacking:
        assert not faq[lacking]
    met = faq["batches"]["mined"]
    assert ("similarity" in met) == (stage != "embeddings")
    assert ("window" in met) == (stage != "ranks")
    assert len([b for b in found["batches"] if b["dataset"] == "faq"]) == (stage != "pairs") * 4
    assert forum["batches"] == whole["datasets"][1]["batches"]


def test_everything_upstream_may_be_gone(copied):
    for name in ("faq", "forum"):
        shutil.rmtree(Path(copied.store.root, name))
    found = describe(open_artifact(copied.uri))
    assert len(found["gone"]) == 8 and found["batches"] == []
    assert found["totals"]["gone"] == 10
    assert found["datasets"][0]["communities"]["window"] > 0  # the head has these


def test_spoilt_bytes_upstream_are_said(copied):
    file = next(Path(copied.store.root, "faq", "embeddings").rglob("query.*.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    found = describe(open_artifact(copied.uri))
    assert any("is not what was recorded" in sentence for sentence in found["gone"])


def test_a_manifest_that_is_spoilt_or_none_is_refused(mined, copied, tmp_path):
    store, stage = mined
    with pytest.raises(InputError, match="communities artifact"):
        describe(store.get(stage.partitions[0][0].address))
    plan = Manifest.load(copied).plan
    row_SB = np.where(plan.row_SB == 3, 4, plan.row_SB)
    spoilt = forged(copied.store, stage, plan=dataclasses.replace(plan, row_SB=row_SB))
    with pytest.raises(CorruptArtifactError, match="row 3 is there 0 times"):
        describe(spoilt)


def test_over_s3(mined, whole, s3_bucket):
    store, stage = mined
    s3fs.S3FileSystem().put(store.root, f"{s3_bucket}/store", recursive=True)
    here = dict(whole)
    there = describe(open_artifact(f"{s3_bucket}/store/{stage.address.path}"))
    assert there.pop("manifest").startswith("s3://") and here.pop("manifest")
    assert there == here


def mined_of(ref, store):
    """Mine one dataset, stage by stage, and return its manifest."""
    ranks = ranking_of(ref, Vectors(ref).run(store).address, MINING)
    graph = Graph(ref, ranks, MINING)
    part = Communities(ref, graph, MINING, 0)
    stage = ManifestOf("small", ((part,),), MINING, BatchSpec(batch_size=8), 0)
    for each in (ranks, graph, part, stage):
        each.run(store)
    return store.get(stage.address)


def test_a_classification_is_known_by_labels(tmp_path):
    labels = [f"a label of kind {row % 12}" for row in range(144)]
    table = topic_table(144).set_column(1, "answer", pa.array(labels))
    file = tmp_path / "labels.parquet"
    pq.write_table(table, file)
    spec = DatasetSpec(
        name="kinds", uri=str(file), query="question", positive="answer", task="classification"
    )
    store = ArtifactStore(str(tmp_path / "store"))
    ref = PairsRef.of(spec, Pairs.of(spec, EvalSpec()).run(store))
    found = describe(mined_of(ref, store))
    (data,) = found["datasets"]
    met = data["batches"]["mined"]
    assert data["labelled"] and met["too_hard"]["mean"] == 0
    assert met["window"]["inside_mean"] == pytest.approx(data["communities"]["window"], rel=0.02)
    assert data["batches"]["paper"] is None and "classification" in data["sources"]["paper"]
    partners = [n for b in found["batches"] for r in b["rows"] for n in r["partners"]]
    assert {"its label is near", "its label is not near"} <= {
        n["why"].split(";")[0] for n in partners
    }
    shutil.rmtree(Path(store.root, "kinds", "labels"))
    assert any(
        "by its label" in said for said in describe(open_artifact(found["manifest"]))["gone"]
    )


def test_pictures_are_shown_small_and_as_many_as_fit(tmp_path):
    colours = [(row, 40, 200 - row) for row in range(130)]
    table = topic_table(130).append_column("picture", pa.array([png(each) for each in colours]))
    file = tmp_path / "pictures.parquet"
    pq.write_table(table, file)
    spec = DatasetSpec(name="faq", uri=str(file), query_image="picture", positive="answer")
    store = ArtifactStore(str(tmp_path / "store"))
    ref = PairsRef.of(spec, Pairs.of(spec, EvalSpec()).run(store))
    found = describe(mined_of(ref, store))
    pictures = [row["query_picture"] for batch in found["batches"] for row in batch["rows"]]
    assert all(picture.startswith(("data:image/png", "data:image/jpeg")) for picture in pictures)
    assert len(set(pictures)) > 30
    assert {row["positive_picture"] for batch in found["batches"] for row in batch["rows"]} == {
        None
    }
    few = Album(Shelf(None, store.get(ref.address).path(PACKED)), left=2000)
    media = ref.table(store).table["query_medium"].to_pylist()
    drawn = [few.thumbnail(medium) for medium in media]
    assert 2 <= sum(map(bool, drawn)) < 20 and set(drawn[20:]) == {""}
    assert few.thumbnail(media[0]) == drawn[0]  # once drawn, it is there


@pytest.mark.slow
def test_the_papers_arm_is_taken_from_the_store_and_shards_are_counted(tmp_path):
    mining = Mining(tmp_path, arms=["paper", "b3"])
    plan, _ = mining.run(topic_table(300))
    uri = {
        arm: mining.store.get(stage.address).uri
        for (arm, _), stage in plan.legs[0].manifests.items()
    }
    found = describe(open_artifact(uri["b3"]))
    paper = uri["paper"].rsplit("/", 1)[1]
    (data,) = found["datasets"]
    assert data["sources"]["paper"] == f"manifest {paper} of the same store, seed 0"
    own = describe(open_artifact(uri["paper"]))["datasets"][0]
    assert own["sources"]["paper"] == "this manifest is mined by its recipe"
    assert own["batches"]["mined"] == data["batches"]["paper"]
    later, _ = mining.run(topic_table(330, seed=1))
    other = {
        arm: mining.store.get(stage.address) for (arm, _), stage in later.legs[0].manifests.items()
    }
    says = describe(other["b3"], Options(batches=0))["datasets"][0]["sources"]["paper"]
    assert says == f"manifest {other['paper'].fingerprint} of the same store, seed 0"
    by_stage = {line["stage"]: line for line in found["stages"]}
    assert list(by_stage) == [
        "pairs", "shards", "embeddings", "ranks", "graph", "communities", "manifest"
    ]  # fmt: skip
    assert by_stage["shards"]["parts"] == 2 and by_stage["shards"]["seconds"] > 0
    assert 0 < data["teacher"]["hit@1"] < 1


def test_texts_are_alike_whatever_their_case_and_spaces(tmp_path):
    table = topic_table(60)
    asked = ["How do I open it", " how  do I OPEN it "] + table["question"].to_pylist()[2:]
    store, stage = mine(
        tmp_path, BatchSpec(batch_size=4), table.set_column(0, "question", pa.array(asked))
    )
    (ref,) = stage.refs
    texts = read_texts(store.get(ref.address), [0, 1, 5])
    assert sorted(texts.shown) == [0, 1, 5]
    held = ref.table(store).queries.to_pylist()
    same = [row for row, text in enumerate(held) if "open it" in text.lower()]
    assert len(same) == 2 and texts.query_N[same[0]] == texts.query_N[same[1]]
    assert len(np.unique(texts.query_N)) == len(held) - 1


def test_a_wide_batch_is_shown_in_part(tmp_path):
    store, stage = mine(tmp_path, BatchSpec(batch_size=64))
    found = describe(store.get(stage.address), Options(batches=1))
    (batch,) = found["batches"]
    assert batch["size"] == 64 and len(batch["rows"]) == ROWS
