"""Measurements as a person sees them: a table and the machine."""

import json

import pytest
from rich.console import Console

from flows import bench


@pytest.mark.slow  # five methods, each in a process of its own
def test_bench_neighbours_prints_a_row_a_method(command):
    sizes = ("--rows", "1000", "--dim", "8", "--k", "9", "--repeats", "1")
    code, out, err = command("bench", "neighbours", *sizes)
    assert code == 0, err
    for word in ("method", "exact", "faiss", "hnsw", "CPUs"):
        assert word in out


@pytest.mark.slow  # eight students
def test_bench_batch_size_says_what_each_mined_batch_is_worth(command, tmp_path):
    sizes = ("--size", "64", "--size", "128", "--seeds", "1", "--pairs", "1500")
    where = ("--store", tmp_path / "store", "--json")
    code, out, err = command("bench", "batch-size", *sizes, *where)
    assert code == 0, err
    rows = json.loads(out)["rows"]
    arms = ("random", "paper", "paper-curriculum", "b3")
    assert [(row["arm"], row["batch_size"]) for row in rows] == [
        (arm, size) for size in (64, 128) for arm in arms
    ]
    for row in rows:
        assert 0 < row["low"] < row["mrr"] < row["high"] < 1
        assert row["worth"] in (64, 128, None)
    code, out, _ = command("bench", "batch-size", *sizes, *where[:2])
    assert code == 0
    assert "less random" in out


@pytest.mark.slow  # three whole pipelines
def test_bench_cost_has_every_stage_at_every_size(command):
    code, out, err = command("bench", "cost", "--rows", "1000", "--rows", "2000", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["rows"]) == 2 * len(found["exponents"]) == 16
    ranks = [row for row in found["rows"] if row["stage"] == "ranks"]
    assert [row["rows"] for row in ranks] == [1000, 2000]
    for row in found["rows"]:
        assert row["seconds"] > 0 and 100 < row["peak_mb"] < 5000, row


@pytest.mark.slow  # probes, and a whole pipeline
@pytest.mark.timeout(1200)
def test_bench_plan_sets_every_prediction_beside_what_it_was(command):
    sizes = ("--pairs", "1500", "--probe-seconds", "1", "--json")
    code, out, err = command("bench", "plan", *sizes)
    assert code == 0, err
    found = json.loads(out)
    stages = ["pairs", "shards", "embeddings", "ranks", "graph", "communities", "manifest"]
    assert [row["stage"] for row in found["rows"]] == [
        *stages,
        *("student", "evaluation", "results"),
    ]
    for row in found["rows"]:
        assert row["real"] >= 0 and row["predicted"] > 0, row
        judged = max(row["real"], row["predicted"]) >= 2
        assert row["within"] is (0.7 <= row["predicted"] / row["real"] <= 1.3 if judged else None)
        if row["stage"] in {"embeddings", "ranks", "manifest"}:  # files follow from rows alone
            assert row["predicted_mb"] == pytest.approx(row["real_mb"], rel=0.15, abs=0.2), row
    assert found["total"]["ratio"] > 0


@pytest.mark.slow  # reads the corpus and mines it twice
def test_bench_remine_tells_what_changed_from_what_was_done(command, tmp_path):
    sizes = ("--pairs", "4000", "--store", tmp_path / "store", "--json")
    code, out, err = command("bench", "remine", *sizes)
    assert code == 0, err
    found = json.loads(out)
    assert 0 < found["fresh"] == found["embedded"] < 0.01 * found["rows"]
    assert found["touched"] < 0.3 * found["communities"]
    assert found["window"] > 0.95 * found["window_from_scratch"]
    code, out, _ = command("bench", "remine", *sizes[:-1])
    assert code == 0
    assert "touched" in out and "communities" in out


@pytest.mark.slow  # writes a manifest of as many rows as three files hold
def test_bench_manifest_reads_twice_whatever_the_size(command, gateway_bucket):
    sizes = ("--rows", "1200000", "--batch", "12345", "--repeats", "2")
    code, out, err = command("bench", "manifest", *sizes, "--store", gateway_bucket, "--json")
    assert code == 0, err
    ours, theirs = json.loads(out)["results"]
    assert ours["reads"] == 2 and not ours["copied"] and theirs["copied"]
    assert ours["first_batch_seconds"] < 2
    assert ours["bytes_a_row"] < theirs["bytes_a_row"]


@pytest.mark.slow  # reads the corpus, and trains twice
def test_bench_train_compares_both(command, tmp_path):
    sizes = ("--pairs", "500", "--model", "tokens", "--static-steps", "3", "--repeats", "1")
    where = ("--store", tmp_path / "store")
    code, out, err = command("bench", "train", *sizes, *where, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["method"] for row in found["rows"]] == ["b3", "sentence-transformers"]
    for row in found["rows"]:
        assert (row["model"], row["batch_size"], row["steps"]) == ("tokens", 64, 3)
        assert row["steps_per_second"] > 0 and 200 < row["peak_mb"] < 3000
    ratio = found["ratios"]["b3_over_sentence_transformers"]["tokens, 64, plain"]
    assert 0 < ratio["low"] == ratio["median"] == ratio["high"]
    assert found["machine"]["cpus"] >= 1


def test_the_table_of_trainings_fits_a_terminal(capsys):
    row = {"method": "sentence-transformers", "model": "minilm", "batch_size": 1024}
    row |= {"loss": "cached", "max_length": 8, "steps": 250, "steps_per_second": 0.0432}
    row |= {"low": 0.0421, "high": 0.0443, "peak_mb": 4321, "data_wait_share": 0.0021}
    row |= {"tokenise_share": 0.0, "mean_loss": 3.4}
    ratio = {"median": 1.0123, "low": 0.9912, "high": 1.0234}
    ratios = {
        "b3_over_sentence_transformers": {"minilm, 1024, cached": ratio},
        "cached_over_plain": {"sentence-transformers: minilm, 1024": ratio},
    }
    machine = {"cpus": 2, "cpu": "one", "versions": {}}
    outcome = {"rows": [row], "ratios": ratios, "machine": machine}
    bench._show_train(Console(width=80), outcome)
    said = capsys.readouterr().out
    assert "…" not in said
    assert "4321" in said and "cached over plain" in said and "1.01" in said
    assert max(map(len, said.splitlines())) <= 80


def test_a_corpus_that_is_not_there_is_named(command, tmp_path):
    code, _, err = command("demo", "--corpus", "music", "--store", tmp_path)
    assert code == 2
    assert "music" in err


def test_the_table_of_partitions_fits_a_terminal(capsys):
    figures = dict.fromkeys(
        ("window", "mutual", "too_hard", "similarity", "similarity_spread", "exact_k"), 1.2345
    )
    row = {"method": "kaminpar-union", "seed": 0, **figures, "seconds": 33.5, "peak_mb": 1632}
    rows = [{**row, "digest": "0" * 16, "tolerance": None}]
    machine = {"cpus": 2, "cpu": "one", "versions": {}}
    bench._show_partition(Console(width=80), {"rows": rows, "above": ["metis"], "machine": machine})
    said = capsys.readouterr().out
    assert "…" not in said
    assert "kaminpar-union" in said and "1632" in said and "curve of leiden-union: metis" in said
