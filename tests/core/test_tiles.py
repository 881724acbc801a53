"""Ranks by tiles against sorting everything, and against mteb's and sentence-transformers' own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from b3_core.errors import InputError
from b3_core.evaluate import tiles
from b3_core.evaluate.captions import rank_metrics
from b3_core.evaluate.tiles import Parts, ranks_in_lists, ranks_of_best
from tests.conftest import examples


@pytest.fixture(autouse=True, params=["fp32", "bf16"])
def scored(request, monkeypatch):
    """In bf16 too where the CPU has no matrix units: products are the same, only slower."""
    found = torch if request.param == "bf16" else None
    monkeypatch.setattr(tiles, "torch_on_amx", lambda: found)


def parts(lists) -> Parts:
    end_Q = np.cumsum([len(each) for each in lists], dtype=np.int64)
    start_Q = np.concatenate([[0], end_Q[:-1]]).astype(np.int64)
    return Parts(start_Q, end_Q, np.concatenate(lists).astype(np.int64))


def unit(vector_ND) -> np.ndarray:
    return (vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)).astype(np.float32)


def exact(query_D, vector_CD) -> np.ndarray:
    """Scores of equal vectors are equal: a sum of exact products, row by row in one order."""
    return np.array([sum(map(float, np.float64(query_D) * vector_D)) for vector_D in vector_CD])


def slow_best(query_QD, corpus_CD, lists) -> list[int]:
    ranks = []
    for query_D, own in zip(query_QD, lists, strict=True):
        order = np.argsort(-exact(query_D, corpus_CD), kind="stable")
        mine = np.isin(order, own)
        ranks.append(1 + int(np.count_nonzero(~mine[: np.flatnonzero(mine)[0]])))
    return ranks


def slow_list(query_QD, corpus_CD, lists) -> list[int]:
    ranks = []
    for query_D, own in zip(query_QD, lists, strict=True):
        score = exact(query_D, corpus_CD[own])
        ranks.append(1 + int(((score >= score[0]) & (np.asarray(own) != own[0])).sum()))
    return ranks


@settings(deadline=None, max_examples=examples(25))
@given(st.integers(0, 10_000), st.sampled_from([5, 17, 60, 1000]), st.booleans())
def test_slow_twins(seed, block, whole):
    rng = np.random.default_rng(seed)
    queries, corpus, width = rng.integers(1, 9), rng.integers(2, 30), rng.integers(1, 20)
    if whole:  # products are exact, and many scores are equal
        query_QD = rng.integers(-2, 3, (queries, width)).astype(np.float32)
        corpus_CD = rng.integers(-2, 3, (corpus, width)).astype(np.float32)
    else:  # every third entry repeats another, so equal scores that fp32 may tell apart
        query_QD = unit(rng.standard_normal((queries, width)))
        corpus_CD = unit(rng.standard_normal((corpus, width)))
        corpus_CD[::3] = corpus_CD[rng.integers(0, corpus)]
    lists = [np.sort(rng.permutation(corpus)[: rng.integers(1, 5)]) for _ in range(queries)]
    best = ranks_of_best(query_QD, corpus_CD, parts(lists), block=block)
    assert best.dtype == np.int64
    assert best.tolist() == slow_best(query_QD, corpus_CD, lists)
    ragged = [rng.integers(0, corpus, rng.integers(1, 9)) for _ in range(queries)]
    listed = ranks_in_lists(query_QD, corpus_CD, parts(ragged))
    assert listed.dtype == np.int64
    assert listed.tolist() == slow_list(query_QD, corpus_CD, ragged)


def test_a_list_by_hand():
    query_QD = np.array([[1, 0], [0, 1]], np.float32)
    candidate_CD = np.array([[0.5, 9], [0.7, 8], [0.5, 9], [0.1, 7]], np.float32)
    # 0.5 against 0.7, an equal 0.5 and 0.1; 8 against itself, given twice, and 7.
    lists = [np.array([0, 1, 2, 3]), np.array([1, 1, 3])]
    assert ranks_in_lists(query_QD, candidate_CD, parts(lists)).tolist() == [3, 1]


def test_a_model_to_which_all_are_alike_is_wrong_everywhere():
    same_CD = np.ones((5, 3), np.float32)
    lists = [np.array([0, 1, 2]), np.array([3, 4])]
    assert ranks_in_lists(same_CD[:2], same_CD, parts(lists)).tolist() == [3, 2]


def near_ties() -> tuple[np.ndarray, np.ndarray, Parts]:
    """Many entries differ from the positive by less than fp32 can tell."""
    rng = np.random.default_rng(5)
    query_QD, corpus_CD = unit(rng.standard_normal((8, 64))), unit(rng.standard_normal((400, 64)))
    corpus_CD[100:] = corpus_CD[7]
    flip = rng.integers(100, 400, 200), rng.integers(0, 64, 200)
    corpus_CD[flip] = np.nextafter(corpus_CD[flip], np.float32(1))
    return query_QD, corpus_CD, parts([[150]] * 8)


def test_scores_that_fp32_cannot_tell_apart_are_compared_exactly():
    query_QD, corpus_CD, own = near_ties()
    slow = slow_best(query_QD, corpus_CD, [[150]] * 8)
    assert ranks_of_best(query_QD, corpus_CD, own).tolist() == slow
    score_QC = query_QD @ corpus_CD.T
    naive = 1 + (score_QC > score_QC[:, [150]]).sum(1)
    assert (naive != slow).sum() >= 4  # in fp32 alone they are ranked otherwise


@pytest.mark.parametrize("scale", [1, 2.0**-70])
@pytest.mark.parametrize("side", ["query", "corpus"])
def test_what_either_side_loses_by_rounding_is_made_up_for(side, scale):
    rng = np.random.default_rng(2)
    query_QD, corpus_CD = (unit(rng.standard_normal((n, 32))) for n in (40, 300))
    rounded = query_QD if side == "corpus" else corpus_CD
    rounded[:] = torch.from_numpy(rounded).bfloat16().float().numpy()
    if side == "query":
        query_QD *= np.float32(scale)  # squares of what is lost are less than fp32 has
    else:
        corpus_CD *= np.float32(scale)
    lists = [[at] for at in rng.integers(0, 300, 40)]
    slow = slow_best(query_QD, corpus_CD, lists)
    assert ranks_of_best(query_QD, corpus_CD, parts(lists)).tolist() == slow
    in_bf16 = (
        torch.from_numpy(query_QD).bfloat16() @ torch.from_numpy(corpus_CD).bfloat16().T
    ).float()
    naive = 1 + (in_bf16 > in_bf16.gather(1, torch.tensor(lists))).sum(1)
    assert (naive.numpy() != slow).sum() >= 5


def test_where_all_are_alike_the_next_tiles_are_scored_in_fp32(monkeypatch):
    rng = np.random.default_rng(4)
    query_QD, corpus_CD = (unit(1 + 0.01 * rng.standard_normal((n, 16))) for n in (30, 200))
    lists = [[at] for at in range(30)]
    in_fp32, whole = [], tiles._Cpu.add
    monkeypatch.setattr(tiles, "torch_on_amx", lambda: torch)
    monkeypatch.setattr(tiles._Cpu, "add", lambda *of: in_fp32.append(of) or whole(*of))
    ranks = ranks_of_best(query_QD, corpus_CD, parts(lists), block=30 * 50)
    assert ranks.tolist() == slow_best(query_QD, corpus_CD, lists)
    assert len(in_fp32) == 3  # of four


def test_vectors_too_long_for_bf16_are_scored_in_fp32(monkeypatch):
    monkeypatch.setattr(tiles, "torch_on_amx", lambda: torch)
    assert tiles._amx(1.0) is torch
    assert tiles._amx(2.0**60) is None


def test_the_counting_on_a_gpu_is_the_same(monkeypatch):
    query_QD, corpus_CD, own = near_ties()
    monkeypatch.setattr(tiles, "_Gpu", lambda: _real_gpu("cpu"))
    ranks = ranks_of_best(query_QD, corpus_CD, own, block=900, gpu=True)
    assert ranks.tolist() == ranks_of_best(query_QD, corpus_CD, own, gpu=False).tolist()


_real_gpu = tiles._Gpu


def test_long_and_tiny_vectors():
    rng = np.random.default_rng(0)
    query_QD, corpus_CD = (rng.standard_normal((n, 16)).astype(np.float32) for n in (5, 50))
    lists = [[at] for at in range(5)]
    slow = slow_best(query_QD, corpus_CD, lists)
    assert len(set(slow)) > 2
    # Squares of the first are less than fp32 has; entries times 1e-39 are not normal in it.
    for factor, other in ((1e-22, 1e-22), (1e-18, 1e-18), (1e10, 1e10), (1e17, 1e-39)):
        scaled = corpus_CD * np.float32(other)
        few = query_QD * np.float32(factor)
        assert ranks_of_best(few, scaled, parts(lists)).tolist() == slow_best(few, scaled, lists)


def test_progress_and_steps():
    told = []
    vector_ND = np.eye(6, dtype=np.float32)
    own = parts([[at] for at in range(6)])
    ranks_of_best(vector_ND, vector_ND, own, block=12, progress=lambda *at: told.append(at))
    assert told == [(12, 36), (24, 36), (36, 36)]
    assert tiles._steps(5000, 100_000, 1 << 23) == (1024, 8192)


def test_what_is_refused():
    two = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match="no width in common"):
        ranks_of_best(two, np.eye(3, dtype=np.float32), parts([[0], [1]]))
    with pytest.raises(ValueError, match="no entry that is its own"):
        ranks_of_best(two, two, parts([[0], []]))
    with pytest.raises(ValueError, match="none of the 2 entries"):
        ranks_in_lists(two, two, parts([[0], [2]]))
    with pytest.raises(InputError, match="the vector of candidate 1 is not finite"):
        ranks_in_lists(two, np.array([[0, 1], [np.nan, 0]], np.float32), parts([[0], [1]]))


class Stored:
    """What sentence-transformers' evaluator asks of a model: here vectors that are there."""

    similarity_fn_name = "cosine"

    def __init__(self, query_QD, corpus_CD) -> None:
        self.query, self.corpus = torch.from_numpy(query_QD), torch.from_numpy(corpus_CD)

    def encode_query(self, texts, **_):
        return self.query[[int(text) for text in texts]]

    def encode_document(self, texts, **_):
        return self.corpus[[int(text) for text in texts]]

    def similarity(self, a, b):
        return a @ b.T


def caption_vectors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """40 media of 5 captions each; some captions and media are there twice, bit by bit."""
    rng = np.random.default_rng(1)
    medium_FD = unit(rng.standard_normal((40, 32)))
    owner_C = np.repeat(np.arange(40), 5)
    text_CD = unit(medium_FD[owner_C] + 2.5 * unit(rng.standard_normal((200, 32))))
    # Repeated ones come later than those they repeat and are of the same medium: how others break
    # ties between media is not ours.
    text_CD[1::10] = text_CD[0::10]
    return text_CD, medium_FD, owner_C


def ranked(direction):
    """Vectors, each query's own entries, and our figures of them."""
    text_CD, medium_FD, owner_C = caption_vectors()
    lists = [np.flatnonzero(owner_C == medium) for medium in range(40)]
    query_QD, corpus_CD, own = (
        (text_CD, medium_FD, [[owner] for owner in owner_C])
        if direction == "t2i"
        else (medium_FD, text_CD, lists)
    )
    ours = rank_metrics(ranks_of_best(query_QD, corpus_CD, parts(own)))
    assert 0.2 < ours["hit@1"] < 0.95
    return query_QD, corpus_CD, own, ours


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_metrics_equal_those_of_sentence_transformers(direction):
    query_QD, corpus_CD, own, ours = ranked(direction)
    evaluator = InformationRetrievalEvaluator(
        queries={f"q{at:03}": str(at) for at in range(len(query_QD))},
        corpus={f"c{at:03}": str(at) for at in range(len(corpus_CD))},
        relevant_docs={f"q{at:03}": {f"c{row:03}" for row in rows} for at, rows in enumerate(own)},
        mrr_at_k=[len(corpus_CD)],
        accuracy_at_k=[1, 5, 10],
        write_csv=False,
    )
    model = Stored(query_QD, corpus_CD)
    evaluator.score_functions = {"cosine": model.similarity}
    evaluator.score_function_names = ["cosine"]
    theirs = evaluator.compute_all_metrics(model)["cosine"]
    for k in (1, 5, 10):
        assert ours[f"hit@{k}"] == pytest.approx(theirs["accuracy@k"][k], abs=1e-6)
    assert ours["mrr"] == pytest.approx(theirs["mrr@k"][len(corpus_CD)], abs=1e-6)


@pytest.mark.slow  # mteb imports all of its tasks
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_metrics_equal_those_of_mteb(direction):
    query_QD, corpus_CD, own, ours = ranked(direction)
    metrics = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    score_QC = (query_QD @ corpus_CD.T).astype(float)
    found = metrics.calculate_retrieval_scores(
        {
            f"q{q}": {f"c{c}": score_QC[q, c] for c in range(len(corpus_CD))}
            for q in range(len(query_QD))
        },
        {f"q{q}": {f"c{c}": 1 for c in rows} for q, rows in enumerate(own)},
        [1, 5, 10, len(corpus_CD)],
    )
    each = found.all_scores.values()  # the means are rounded to five digits
    for k in (1, 5, 10):
        hit = np.mean([scores[f"success_{k}"] for scores in each])
        assert ours[f"hit@{k}"] == pytest.approx(hit, abs=1e-6)
    mrr = np.mean(found.mrr[f"MRR@{len(corpus_CD)}"])
    assert ours["mrr"] == pytest.approx(mrr, abs=1e-6)
    if direction == "i2t":  # the trap: 1 of 5 captions found is a fifth of them
        assert np.mean([scores["recall_1"] for scores in each]) <= 0.2 < ours["hit@1"]
