"""``b3 init``: a CONFIG that loads and runs; questions where somebody can be asked."""

import io
import json
import os
import pty
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import s3fs
import yaml

from b3_core.config import load_config
from tests.conftest import ROOT, topic_table


def test_suggestions_are_taken_and_the_next_command_is_named(command, dataset, tmp_path):
    output = tmp_path / "config.yaml"
    code, out, err = command("init", dataset, "--yes", "-o", output)
    assert code == 0 and err == ""
    assert f"b3 plan {output}" in out and f"b3 run {output}" in out
    spec = load_config(output)
    assert spec.datasets[0].uri == str(dataset)
    assert (spec.datasets[0].query, spec.datasets[0].positive) == ("question", "answer")
    assert "uri: pairs.parquet" in output.read_text()  # moves with its folder


def test_where_nobody_can_be_asked_that_is_said(command, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    code, out, err = command("init", dataset, "-o", tmp_path / "c.yaml", "--json")
    assert code == 0 and "nobody to ask" in err
    found = json.loads(out)
    assert found["rows"] == 600 and found["dataset"]["query"] == "question"
    assert found["next"] == [f"b3 plan {tmp_path}/c.yaml", f"b3 run {tmp_path}/c.yaml"]


def test_a_file_that_is_there_is_kept_without_force(command, dataset, tmp_path):
    output = tmp_path / "config.yaml"
    output.write_text("mine")
    code, _, err = command("init", dataset, "--yes", "-o", output)
    assert code == 2 and "is there already" in err and "--force" in err
    assert output.read_text() == "mine"
    assert command("init", dataset, "--yes", "-o", output, "--force")[0] == 0
    assert load_config(output).datasets[0].query == "question"


def test_options_answer_beforehand(command, dataset, tmp_path):
    output = tmp_path / "config.yaml"
    options = ["--query", "answer", "--positive", "question", "--k", 8, "--batch-size", 24]
    options += ["--teacher", "minilm", "--student", "static", "--task", "vqa", "--name", "mine"]
    options += ["--p", 1, "--m", 9, "--store", "s3://bucket/store"]
    assert command("init", dataset, "--yes", "-o", output, *options)[0] == 0
    spec = load_config(output)
    assert (spec.datasets[0].query, spec.datasets[0].task) == ("answer", "vqa")
    assert (spec.mining.k, spec.mining.p, spec.mining.m) == (8, 1, 9)
    assert (spec.batches.batch_size, spec.teacher.model) == (24, "minilm")
    assert (spec.train.student, spec.store.root) == ("static", "s3://bucket/store")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--query", "qeustion"], "'qeustion' is not in .*question, answer.*--query"),
        (["--batch-size", 50, "--k", 8], "50, which is no multiple of k = 8"),
        (["--name", "a b"], "'datasets.0..name'|'name' in CONFIG"),
    ],
)
def test_answers_that_cannot_be_are_refused(command, dataset, tmp_path, options, said):
    output = tmp_path / "config.yaml"
    code, _, err = command("init", dataset, "--yes", "-o", output, *options)
    assert code == 2 and not output.exists()
    assert re.search(said, err), err


def typed(keys, file, output, *options):
    """Run ``b3 init`` on a pseudo-terminal, as a person types: (exit code, stdout, stderr)."""
    leader, follower = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "flows", "init", str(file), "-o", str(output), *options],
        cwd=ROOT,
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(follower)
    os.write(leader, keys)
    out, err = done.communicate(timeout=120)
    os.close(leader)
    return done.returncode, out, err


def test_a_person_is_asked_and_may_say_otherwise(dataset, tmp_path):
    # query, positive: the other way round; one that is none; task, teacher; batch, k.
    keys = b"answer\nreply\nquestion\n\nminilm\n32\n8\n"
    code, out, err = typed(keys, dataset, tmp_path / "c.yaml")
    assert code == 0, err
    assert "'reply' is none of them" in err and "written:" in out
    spec = load_config(tmp_path / "c.yaml")
    assert (spec.datasets[0].query, spec.datasets[0].positive) == ("answer", "question")
    assert (spec.teacher.model, spec.batches.batch_size, spec.mining.k) == ("minilm", 32, 8)


@pytest.mark.parametrize(
    ("keys", "options", "said", "sizes"),
    [
        # After query, positive, task and teacher: batches of 50, and a k that is suggested.
        (b"\n\n\n\n50\n\n", [], r"several \[25\]", (50, 25)),
        (
            b"\n\n\n\n1\nx\n50\n32\n10\n",
            [],
            r"'1' is no whole .*'x' is no whole .*of 32 each: 2, 5, 10, 25, 50 can",
            (50, 10),
        ),
        (b"\n\n\n\n20\n24\n", ["--k", "8"], "20 is no multiple of k = 8", (24, 8)),
    ],
)
def test_a_size_that_cannot_be_is_asked_for_again(dataset, tmp_path, keys, options, said, sizes):
    code, _, err = typed(keys, dataset, tmp_path / "c.yaml", *options)
    assert code == 0, err
    assert re.search(said, err, re.DOTALL), err
    spec = load_config(tmp_path / "c.yaml")
    assert (spec.batches.batch_size, spec.mining.k) == sizes


def test_data_in_a_bucket(command, s3_bucket, dataset, tmp_path):
    s3fs.S3FileSystem().put_file(str(dataset), f"{s3_bucket}/data/faq.parquet")
    output = tmp_path / "config.yaml"
    code, _, err = command("init", f"{s3_bucket}/data/", "--yes", "-o", output)
    assert code == 0, err
    spec = load_config(output)
    assert (spec.datasets[0].uri, spec.datasets[0].name) == (f"{s3_bucket}/data/", "data")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("student", ["static", "tokens"])
def test_what_is_written_runs(b3, tmp_path, student):
    file = tmp_path / "faq.parquet"
    pq.write_table(topic_table(400), file)
    output = tmp_path / "config.yaml"
    b3("init", file, "--yes", "--student", student, "-o", output)
    assert yaml.safe_load(output.read_text())["store"] == {"root": ".b3"}
    found = json.loads(b3("run", output, "--json", timeout=800).stdout)
    assert [row["arm"] for row in found["arms"]] == ["random", "b3"]
    assert (tmp_path / ".b3").is_dir()
