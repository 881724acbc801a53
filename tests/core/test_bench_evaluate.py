import numpy as np
import pytest

from b3_core.bench import evaluate as bench
from b3_core.bench.evaluate import METHODS, bench_evaluate
from b3_core.bench.neighbours import clustered_pairs


@pytest.fixture
def same_process(monkeypatch):
    """Leave the processes out: a fresh interpreter a method takes seconds."""

    def measured(folder, name, threads):
        bench._measure(folder, name)
        return bench.json.loads(bench.Path(folder, "found.json").read_text())

    monkeypatch.setattr(bench, "_in_a_process", measured)


@pytest.mark.slow
def test_every_method_says_the_same(same_process):
    pytest.importorskip("mteb")
    told = []
    found = bench_evaluate(
        queries=60, corpus=700, dim=16, repeats=1, progress=lambda *at: told.append(at)
    )
    assert told[-1] == (3, 3)
    assert [row["method"] for row in found["results"]] == list(METHODS)
    for row in found["results"]:
        assert row["largest_difference"] <= 1e-6
        assert row["seconds"] > 0
    ours = found["results"][0]
    assert 0.05 < ours["hit@1"] < ours["hit@10"] < 1
    assert ours["times_ours"] == 1
    assert found["machine"]["versions"]["mteb"]


def test_ours_by_hand():
    query_QD = np.eye(3, dtype=np.float32)
    corpus_CD = np.array([[1, 0, 0], [0, 1, 2], [0, 0, 1], [0, 0, 1]], np.float32)
    metrics = METHODS["b3"](query_QD, corpus_CD)  # the third finds the second before its own
    assert metrics["hit@1"] == pytest.approx(2 / 3)
    assert metrics["mrr@100"] == pytest.approx(2.5 / 3)


def test_what_is_refused():
    for wrong in ({"queries": 0}, {"queries": 11}, {"methods": ["faiss"]}):
        with pytest.raises(ValueError, match="cannot bench"):
            bench_evaluate(**{"queries": 5, "corpus": 10, "dim": 4, **wrong})


@pytest.mark.slow
def test_a_process_of_its_own(tmp_path):
    query_CD, corpus_CD = clustered_pairs(300, dim=8, seed=0)
    np.save(tmp_path / "query.npy", query_CD[:20])
    np.save(tmp_path / "corpus.npy", corpus_CD)
    found = bench._in_a_process(str(tmp_path), "b3", 1)
    assert found["seconds"] > 0
    assert found["peak_mb"] > found["peak_above_mb"] >= 0
    with pytest.raises(RuntimeError, match="no such method failed"):
        bench._in_a_process(str(tmp_path), "no such method", 1)
