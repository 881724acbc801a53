"""Ranks by hand, by a slow twin, and by sentence-transformers' evaluator."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from b3_core.artifacts import Address
from b3_core.errors import InputError
from b3_core.evaluate.retrieval import (
    EvalReport,
    distinct,
    rank_of_positive,
    retrieval_metrics,
)
from b3_core.packaged import static_teacher
from b3_core.store import ArtifactStore
from tests.conftest import examples


def f32(rows) -> np.ndarray:
    return np.array(rows, np.float32)


def groups(*values) -> np.ndarray:
    return np.array(values, np.int32)


# One query along x; corpus scores are the x coordinates.
QUERY = f32([[1, 0]])


def rank(scores, *, group_C, group=0, **settings) -> int:
    corpus_CD = f32([[score, 9] for score in scores])
    return rank_of_positive(
        QUERY, corpus_CD, group_Q=groups(group), group_C=groups(*group_C), **settings
    ).item()


def test_rank_counts_better_competitors():
    assert rank([0.9, 0.5, 0.7, 0.1], group_C=[0, 1, 2, 3]) == 1
    assert rank([0.5, 0.9, 0.7, 0.1], group_C=[0, 1, 2, 3]) == 3
    assert rank([0.1, 0.9, 0.7, 0.5], group_C=[0, 1, 2, 3]) == 4


def test_the_best_positive_counts_and_the_others_do_not_compete():
    # The group's entries are at 0, 2 and 3; of the others only 0.8 beats its best, 0.6.
    assert rank([0.1, 0.8, 0.6, 0.5, 0.2], group_C=[0, 1, 0, 0, 2]) == 2
    assert rank([0.9, 0.8, 0.7, 0.6], group_C=[0, 0, 0, 1]) == 1


def test_an_equal_competitor_is_ahead_only_if_earlier():
    assert rank([0.5, 0.5, 0.5], group_C=[0, 1, 2]) == 1
    assert rank([0.5, 0.5, 0.5], group_C=[1, 0, 2]) == 2
    assert rank([0.5, 0.5, 0.5], group_C=[1, 2, 0]) == 3
    # Two equal positives: the earlier one stands for the group.
    assert rank([0.5, 0.5, 0.5, 0.5], group_C=[1, 0, 2, 0]) == 2


def slow_rank(query_QD, corpus_CD, group_Q, group_C) -> list[int]:
    """Sort the whole row, drop the group's lesser entries, look the first one up."""
    ranks = []
    for query_D, group in zip(query_QD, group_Q, strict=True):
        order = np.argsort(-(corpus_CD @ query_D), kind="stable")
        own = group_C[order] == group
        first = int(np.flatnonzero(own)[0])
        ranks.append(1 + int(np.count_nonzero(~own[:first])))
    return ranks


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_slow_twin(seed, block):
    rng = np.random.default_rng(seed)
    queries, corpus, width = rng.integers(1, 9), rng.integers(1, 30), rng.integers(1, 4)
    # Small whole numbers: products are exact, so equal scores are equal, and there are many.
    query_QD = rng.integers(-2, 3, (queries, width)).astype(np.float32)
    corpus_CD = rng.integers(-2, 3, (corpus, width)).astype(np.float32)
    group_C = rng.integers(0, 6, corpus).astype(np.int32)
    group_Q = rng.choice(group_C, queries)
    fast = rank_of_positive(query_QD, corpus_CD, group_Q=group_Q, group_C=group_C, block=block)
    assert fast.dtype == np.int64
    assert fast.tolist() == slow_rank(query_QD, corpus_CD, group_Q, group_C)


def test_the_inputs_are_left_as_they_were():
    corpus_CD, query_QD = f32([[1, 0], [0, 1]]), f32([[0, 1]])
    rank_of_positive(query_QD, corpus_CD, group_Q=groups(1), group_C=groups(0, 1))
    assert corpus_CD.tolist() == [[1, 0], [0, 1]]
    assert query_QD.tolist() == [[0, 1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_named(bad):
    good, broken = f32([[1, 0], [0, 1]]), f32([[1, 0], [bad, 1]])
    pair = {"group_Q": groups(0, 1), "group_C": groups(0, 1)}
    with pytest.raises(InputError, match="the vector of query 1 is not finite"):
        rank_of_positive(broken, good, **pair)
    with pytest.raises(InputError, match="the vector of corpus entry 1 is not finite"):
        rank_of_positive(good, broken, **pair)


def test_a_query_without_a_positive_is_named():
    with pytest.raises(InputError, match=r"query 0 has no positive .*expected an entry of group 7"):
        rank([0.5, 0.4], group_C=[1, 2], group=7)


def test_metrics_by_hand():
    metrics = retrieval_metrics(np.array([1, 2, 5, 10, 11]))
    assert metrics == pytest.approx(
        {
            "hit@1": 1 / 5,
            "hit@5": 3 / 5,
            "hit@10": 4 / 5,
            "mrr": (1 + 1 / 2 + 1 / 5 + 1 / 10 + 1 / 11) / 5,
            "ndcg@10": (1 + 1 / math.log2(3) + 1 / math.log2(6) + 1 / math.log2(11) + 0) / 5,
        }
    )
    with pytest.raises(ValueError, match="no ranks"):
        retrieval_metrics(np.array([], np.int64))


def test_metrics_agree_with_sentence_transformers():
    topics = ["a list", "an array", "the file", "a socket", "the clock", "a matrix", "text"]
    queries = [f"{verb} {topic}" for verb in ("sort", "open", "read") for topic in topics]
    corpus = [f"a function that may {query}" for query in queries]
    corpus += [f"close {topic} or delete it" for topic in topics]
    # Shuffled, so that ranks are all over the place.
    positive_Q = np.random.default_rng(0).permutation(len(queries))
    model = static_teacher()
    rank_Q = rank_of_positive(
        model.encode(queries, normalize_embeddings=True),
        model.encode(corpus, normalize_embeddings=True),
        group_Q=positive_Q.astype(np.int32),
        group_C=np.arange(len(corpus), dtype=np.int32),
    )
    assert len(set(rank_Q.tolist())) > 5
    evaluator = InformationRetrievalEvaluator(
        queries={f"q{i}": text for i, text in enumerate(queries)},
        corpus={f"c{i}": text for i, text in enumerate(corpus)},
        relevant_docs={f"q{i}": {f"c{positive}"} for i, positive in enumerate(positive_Q)},
        mrr_at_k=[len(corpus)],
        ndcg_at_k=[10],
        accuracy_at_k=[1, 5, 10],
        precision_recall_at_k=[1],
        map_at_k=[1],
        write_csv=False,
    )
    theirs = evaluator(model)
    ours = retrieval_metrics(rank_Q)
    for name, their_name in {
        "hit@1": "cosine_accuracy@1",
        "hit@5": "cosine_accuracy@5",
        "hit@10": "cosine_accuracy@10",
        "mrr": f"cosine_mrr@{len(corpus)}",
        "ndcg@10": "cosine_ndcg@10",
    }.items():
        assert ours[name] == pytest.approx(theirs[their_name]), name


def table(**columns):
    return pa.table({**columns, "group": pa.array(columns["group"], pa.int32())})


def test_a_side_is_there_once_for_each_group():
    rows = table(
        query=["a", "b", "a", "a", "c"],
        positive=["x", "y", "x", "z", "y"],
        group=[0, 1, 0, 2, 1],
    )
    # "a" asks for x and, elsewhere, for z: two queries. x and y are there twice.
    assert distinct(rows, "query").tolist() == [0, 1, 3, 4]
    assert distinct(rows, "positive").tolist() == [0, 1, 3]


@settings(max_examples=examples(100), deadline=None)
@given(
    sides=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz")), min_size=1, max_size=30
    ),
    copies=st.lists(st.integers(0, 29), max_size=30),
)
def test_no_metric_changes_when_rows_are_repeated(sides, copies):
    """With vectors that are those of the texts, as a student's are."""
    vector_of = {c: np.random.default_rng(ord(c)).normal(size=4) for c in "abcdwxyz"}
    sides = list(dict.fromkeys(sides))

    def metrics(pairs):
        rows = table(
            query=[q for q, _ in pairs],
            positive=[p for _, p in pairs],
            group=["wxyz".index(p) for _, p in pairs],
        )
        rows = rows.take(distinct(rows, "query")), rows.take(distinct(rows, "positive"))
        vectors = [
            np.array([vector_of[c] for c in part[side].to_pylist()], np.float32)
            for part, side in zip(rows, ("query", "positive"), strict=True)
        ]
        group_Q, group_C = (part["group"].to_numpy() for part in rows)
        return retrieval_metrics(rank_of_positive(*vectors, group_Q=group_Q, group_C=group_C))

    repeated = [*sides, *(sides[copy % len(sides)] for copy in copies)]
    assert metrics(repeated) == pytest.approx(metrics(sides))


class TestEvalReport:
    def test_saved_and_loaded(self, tmp_path):
        ranks, rows, units = np.array([1, 4, 2]), np.array([0, 1, 5]), np.array([3, 3, 4])
        report = EvalReport("faq-reverse", ranks, rows, units, 9, "faq", {"student": "abc"})
        store = ArtifactStore(str(tmp_path))
        address = Address.of("d", "evaluation", version=1, settings={}, inputs={})
        with store.draft(address, lineage={}, settings={}) as draft:
            report.save(draft, report.task)
        artifact = store.get(address)
        loaded = EvalReport.load(artifact, "faq-reverse")
        assert loaded.rank_Q.tolist() == [1, 4, 2] and loaded.row_Q.tolist() == [0, 1, 5]
        assert loaded.drawn.unit_Q.tolist() == [3, 3, 4] and loaded.drawn.stratum == "faq"
        assert (loaded.task, loaded.corpus) == ("faq-reverse", 9)
        assert loaded.fingerprints == {"student": "abc"}
        assert loaded.metrics == report.metrics
        head = json.loads(artifact.path("faq-reverse/report.json").read_bytes())
        assert (head["queries"], head["corpus"]) == (3, 9)
        assert head["metrics"]["hit@1"] == pytest.approx(1 / 3)

    @pytest.mark.parametrize("ranks", [[], [0], [10]])
    def test_ranks_that_are_none(self, ranks):
        with pytest.raises(ValueError, match="are not ranks among 9 entries"):
            rank_Q = np.array(ranks, np.int64)
            EvalReport("faq", rank_Q, rank_Q, rank_Q, 9, "faq", {})

    def test_arrays_of_other_queries(self):
        rank_Q = np.array([1, 2])
        with pytest.raises(ValueError, match="2 ranks, 1 rows, 2 units"):
            EvalReport("faq", rank_Q, rank_Q[:1], rank_Q, 9, "faq", {})
