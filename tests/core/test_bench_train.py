"""Our training beside sentence-transformers': the arithmetic by hand, and that both train alike."""

import pyarrow.parquet as pq
import pytest
from transformers import Trainer

from b3_core.bench import train as bench
from b3_core.bench.train import METHODS, Case, Stopwatch, bench_train, cases, ratios, summary
from b3_core.config import DatasetSpec, EvalSpec
from b3_core.dataset_stage import Pairs
from b3_core.loss import GroupedInfoNCE
from b3_core.store import ArtifactStore
from tests import tiny
from tests.conftest import topic_table


def run(method, repeat, seconds, *, loss="plain", model="minilm", size=64, **changes):
    return {
        "method": method,
        "model": model,
        "batch_size": size,
        "loss": loss,
        "max_length": 32,
        "steps": 20,
        "repeat": repeat,
        "step_seconds": seconds,
        "peak_mb": 100.4,
        "data_wait_share": 0.01,
        "tokenise_share": 0.0,
        "mean_loss": 1.0,
        **changes,
    }


RUNS = [
    run("b3", 0, 0.5),
    run("sentence-transformers", 0, 0.25),
    run("b3", 1, 0.2, peak_mb=101.6, data_wait_share=0.03),
    run("sentence-transformers", 1, 0.4),
    run("b3", 2, 0.1, mean_loss=2.0),
    run("sentence-transformers", 2, 0.1),
]


def test_a_row_has_the_median_and_the_range_of_its_repeats():
    ours, theirs = summary(RUNS)
    assert ours == {
        "method": "b3",
        "model": "minilm",
        "batch_size": 64,
        "loss": "plain",
        "max_length": 32,
        "steps": 20,
        "steps_per_second": 5.0,
        "low": 2.0,
        "high": 10.0,
        "peak_mb": 102,
        "data_wait_share": 0.01,
        "tokenise_share": 0.0,
        "mean_loss": 2.0,
    }
    assert (theirs["method"], theirs["steps_per_second"]) == ("sentence-transformers", 4.0)


def test_ratios_are_of_runs_of_one_repeat():
    found = ratios(RUNS)
    assert found["b3_over_sentence_transformers"] == {
        "minilm, 64, plain": {"median": 1.0, "low": 0.5, "high": 2.0}
    }
    assert found["cached_over_plain"] == {}


def test_cached_is_compared_with_plain_of_the_same_method_and_size():
    large = [
        run("b3", 0, 2.0, size=1024),
        run("b3", 0, 3.0, size=1024, loss="cached"),
        run("sentence-transformers", 0, 4.0, size=1024, loss="cached"),
    ]
    assert ratios([*RUNS, *large]) == {
        "b3_over_sentence_transformers": {
            "minilm, 64, plain": {"median": 1.0, "low": 0.5, "high": 2.0},
            "minilm, 1024, cached": {"median": 0.75, "low": 0.75, "high": 0.75},
        },
        "cached_over_plain": {"b3: minilm, 1024": {"median": 1.5, "low": 1.5, "high": 1.5}},
    }


def test_waiting_is_told_from_steps_and_tokenising_is_spread_over_all():
    # Steps begin at 0, 10, 12, 14, 18 and wait 5, 1, 1, 1, 0: the first is warm-up, the last ends.
    watch = Stopwatch([0, 10, 12, 14, 18], [5, 11, 13, 15, 18])
    found = watch.figures(1)
    assert found["step_seconds"] == pytest.approx(8 / 3)
    assert found["data_wait_share"] == pytest.approx(3 / 8)
    assert found["tokenise_share"] == 0
    found = watch.figures(1, before=10.0)
    assert found["step_seconds"] == pytest.approx(8 / 3 + 2)
    assert found["data_wait_share"] == pytest.approx(3 / 8)
    assert found["tokenise_share"] == pytest.approx(2 / (8 / 3 + 2))


def test_large_batches_are_of_transformers():
    sizes = {(case.model, case.batch_size, case.loss) for case in cases(["minilm", "tokens"])}
    assert sizes == {
        ("minilm", 64, "plain"),
        ("minilm", 1024, "plain"),
        ("minilm", 1024, "cached"),
        ("tokens", 64, "plain"),
    }
    assert [case.batch_size for case in cases(["minilm"], large=0)] == [64]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The URI of a small pair table, and a tiny transformer without dropout."""
    folder = tmp_path_factory.mktemp("small")
    table = topic_table(400)
    pq.write_table(table, folder / "pairs.parquet")
    spec = DatasetSpec(
        name="faq", uri=str(folder / "pairs.parquet"), query="question", positive="answer"
    )
    made = Pairs.of(spec, EvalSpec()).run(ArtifactStore(str(folder / "store")))
    texts = table["question"].to_pylist() + table["answer"].to_pylist()
    return made.uri, str(tiny.bert(texts, folder, dropout=0.0))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["plain", "cached"])
def test_both_train_alike(small, loss):
    pairs, model = small
    case = Case(model, 90, loss, steps=2, warm_up=1)  # no row twice: ours would mask it
    plain = Trainer.get_batch_samples
    ours, theirs = (
        bench._measure({"pairs": pairs, "method": method, "case": vars(case)}) for method in METHODS
    )
    assert Trainer.get_batch_samples is plain
    assert ours["mean_loss"] == pytest.approx(theirs["mean_loss"], abs=1e-5)
    for run in (ours, theirs):
        assert run["step_seconds"] > 0 and 0 < run["data_wait_share"] < 1
        assert run["tokenise_share"] == 0


@pytest.mark.slow
def test_ours_of_a_static_student_counts_its_tokenising(small):
    case = Case("tokens", 64, "plain", steps=2, warm_up=1)
    ours = bench._measure({"pairs": small[0], "method": "b3", "case": vars(case)})
    assert 0 < ours["tokenise_share"] < 1


@pytest.mark.slow
def test_plain_is_plain_whatever_the_size_and_cached_is_not(small, monkeypatch):
    seen = []
    init = GroupedInfoNCE.__init__

    def spy(self, *args, **settings):
        seen.append(settings["chunk_rows"])
        init(self, *args, **settings)

    monkeypatch.setattr(GroupedInfoNCE, "__init__", spy)
    pairs, model = small
    for loss in ("plain", "cached"):
        case = Case(model, 300, loss, steps=1, warm_up=0)
        bench._measure({"pairs": pairs, "method": "b3", "case": vars(case)})
    assert seen == [None, 64]


@pytest.mark.slow  # two processes that import torch
def test_each_run_has_a_process_of_its_own(small):
    pairs, model = small
    told = []
    case = Case(model, 32, "plain", steps=2, warm_up=1)
    found = bench_train(
        pairs, [case], threads=1, repeats=1, progress=lambda *state: told.append(state)
    )
    assert [row["method"] for row in found["rows"]] == list(METHODS)
    for row in found["rows"]:
        assert row["low"] <= row["steps_per_second"] <= row["high"]
        assert 200 < row["peak_mb"] < 2000
    assert told == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.slow  # a process that imports torch
def test_a_run_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)b3 failed on .*steps.*Error"):
        bench_train(str(tmp_path / "none"), [Case("tokens", 64, "plain", 1, 0)], repeats=1)
