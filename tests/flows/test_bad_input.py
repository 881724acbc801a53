"""Bad input is one line naming value, expectation and remedy; exit code 2; nothing published."""

import logging
import os
import re
import signal
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants as hub
from ray.exceptions import RayError

from b3_core.errors import InputError
from b3_core.teacher import Embeddings
from flows.running import run_command
from tests.conftest import topic_table, use_s3
from tests.system.fault_proxy import FaultProxy


def refused(command, tmp_path, config, *patterns):
    code, out, err = command("mine", config)
    assert code == 2, (out, err)
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("b3: ")]
    assert len(lines) == 1 and err.strip().splitlines()[-1] == lines[0], err
    for pattern in patterns:
        assert re.search(pattern, lines[0]), lines[0]
    published = list((tmp_path / "store").glob("*/*/*/record.json"))
    assert not [file for file in published if file.parts[-3] not in ("pairs", "shard")]


def faq(uri, **changed):
    return [{"name": "faq", "uri": str(uri), "query": "question", "positive": "answer"} | changed]


def test_a_missing_file(command, tmp_path, write_config):
    config = write_config(datasets=faq(tmp_path / "nowhere.parquet"))
    refused(command, tmp_path, config, r"nowhere\.parquet", "expected", "check the path")


def test_a_missing_column(command, tmp_path, write_config, dataset):
    config = write_config(datasets=faq(dataset, query="qeustion"))
    refused(command, tmp_path, config, "qeustion", "question, answer", "did you mean 'question'")


@pytest.mark.parametrize(
    "value", [None, *(pytest.param(blank, marks=pytest.mark.slow) for blank in ("", "  \n"))]
)
def test_null_or_empty_text(command, tmp_path, write_config, value):
    table = topic_table(100).to_pydict()
    table["answer"][41] = value
    file = tmp_path / "holes.parquet"
    pq.write_table(pa.table(table), file)
    config = write_config(datasets=faq(file))
    refused(command, tmp_path, config, "'answer'", "row 41", "expected", "fill or remove")


def test_fewer_rows_than_a_community(command, tmp_path, write_config):
    file = tmp_path / "few.parquet"
    pq.write_table(topic_table(20), file)
    config = write_config(datasets=faq(file), mining={"k": 32, "p": 2, "m": 10})
    refused(command, tmp_path, config, "19 training rows", "at least 32", "smaller")


def test_a_cutoff_beyond_the_last_rank(command, tmp_path, write_config):
    config = write_config(mining={"k": 8, "p": 600, "m": 10})
    refused(command, tmp_path, config, "p = 600 leaves no window in the 57. .* faq", "smaller")
    code, out, err = command("plan", config)
    assert (code, out) == (2, "") and "mining.p = 600 leaves no window" in err


def test_all_rows_one_group(command, tmp_path, write_config):
    table = topic_table(100).to_pydict() | {"answer": ["the same answer"] * 100}
    file = tmp_path / "same.parquet"
    pq.write_table(pa.table(table), file)
    config = write_config(datasets=faq(file))
    refused(command, tmp_path, config, "same positive or group", "expected", "check")


def test_an_unknown_key(command, tmp_path, write_config):
    config = write_config(minning={"k": 8})
    refused(command, tmp_path, config, "minning", "did you mean 'mining'")


def test_a_teacher_that_does_not_exist(command, tmp_path, write_config):
    config = write_config(teacher="no-such-model")
    refused(command, tmp_path, config, "no-such-model", "'static', 'minilm', a folder")


def test_a_hub_teacher_without_a_commit(command, tmp_path, write_config):
    config = write_config(teacher={"model": "org/model", "revision": "main"})
    refused(command, tmp_path, config, "org/model", "40 hex digits", "set revision")


def test_a_hub_teacher_that_is_not_here(command, tmp_path, write_config, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    config = write_config(teacher={"model": "org/no-such-model", "revision": "0" * 40})
    refused(command, tmp_path, config, "org/no-such-model", "nor.* cache", "HF_HUB_OFFLINE=0")
    assert not (tmp_path / "store").exists()


def test_a_store_that_cannot_be_written(command, tmp_path, write_config):
    (tmp_path / "occupied").write_text("a file")
    config = write_config(store={"root": str(tmp_path / "occupied" / "store")})
    refused(command, tmp_path, config, "cannot be written", "writable")


def test_an_embedding_with_nan():
    good = np.eye(4, dtype=np.float32)
    bad = good.copy()
    bad[2, 1] = np.nan
    with pytest.raises(InputError, match=r"positive in row 2 has norm nan \(1 such rows\); exp"):
        Embeddings(good, bad)


def test_usage_errors_exit_2(command):
    for arguments in (["mien"], ["mine"], ["demo", "--pairs", "many"]):
        code, _, err = command(*arguments)
        assert code == 2 and err


def test_the_exit_code_reaches_the_shell(b3, tmp_path):
    done = b3("mine", tmp_path / "none.yaml", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("b3: cannot read CONFIG") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert os.listdir(tmp_path) == []


def test_an_error_out_of_ray_says_what_went_wrong_there(capfd):
    trace = (
        "\x1b[36mray::Controller.__init__()\x1b[39m (pid=7)\n  File 'x.py', line 3\nKeyError: 'b'\n"
    )

    def work():
        raise RayError(trace)

    with pytest.raises(SystemExit) as ended:
        run_command(work, as_json=True, verbose=False)
    logging.disable(logging.NOTSET)
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert err == "b3: RayError: KeyError: 'b'; run again with -v for the traceback\n"


@pytest.mark.parametrize(
    ("kind", "fault", "nth", "said"),
    [
        ("put", "403", 4, "refused to write URI: planned AccessDenied; expected permission to w"),
        pytest.param(
            *("put", "404", 4),
            "refused to write URI: planned NoSuchBucket; expected its bucket to be",
            marks=pytest.mark.slow,
        ),
        ("get", "403", 12, "refused to read URI: planned AccessDenied; expected permission to r"),
    ],
)
def test_a_store_that_refuses_in_the_middle_of_a_run(
    command, write_config, s3_server, s3_bucket, monkeypatch, kind, fault, nth, said
):
    root = f"{s3_bucket}/store"
    config = write_config(
        store={"root": root}, arms=["random"], compute={"workers": 1, "shard_rows": 100_000}
    )
    with FaultProxy(s3_server) as proxy:
        use_s3(monkeypatch, proxy.url, key="AKIDEXAMPLE7", secret="wJalrXUtnFEMI")
        proxy.plan(kind, fault, nth=nth, times=9999)
        code, out, err = command("mine", config)
    lines = [line for line in err.splitlines() if line.startswith("b3: ")]
    assert (code, out, len(lines)) == (1, "", 1), err
    assert re.sub(rf"{root}/faq/[^:;\s]+", "URI", lines[0]).startswith(f"b3: the server {said}")
    assert err.strip().splitlines()[-1] == lines[0] and "Traceback" not in err
    assert proxy.injected and "AKIDEXAMPLE7" not in err and "wJalrXUtnFEMI" not in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.yaml", "is there already; expected a new file; name another, or replace it with"),
        (".", "is a folder; expected a file"),
        ("nowhere/tuned.yaml", "cannot be written: its folder is not there, or not to be"),
    ],
)
def test_where_tune_writes_is_looked_at_before_the_work(
    command, tmp_path, write_config, name, said
):
    config = write_config()
    before = config.read_text()
    code, out, err = command("tune", config, "--output", tmp_path / name)
    assert (code, out) == (2, "") and said in err
    assert config.read_text() == before


def test_ctrl_c_that_a_destructor_swallows_comes_again(capfd):
    class Held:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def work():
        Held()
        time.sleep(30)  # it goes on as if nothing had been
        return {}

    hook, began = sys.unraisablehook, time.monotonic()
    with pytest.raises(SystemExit) as ended:
        run_command(work, as_json=True, verbose=False)
    logging.disable(logging.NOTSET)
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (130, "") and time.monotonic() - began < 20
    assert err == "b3: interrupted\n"
    assert sys.unraisablehook is hook


@pytest.mark.parametrize(
    ("number", "word"), [("SIGINT", "interrupted"), ("SIGTERM", "told to end")]
)
@pytest.mark.parametrize(
    ("keeps", "then"), [(True, "; the same command continues where it stopped"), (False, "")]
)
def test_only_a_command_that_keeps_its_work_promises_to_go_on(capfd, number, word, keeps, then):
    def work():
        signal.raise_signal(getattr(signal, number))
        return {}

    with pytest.raises(SystemExit) as ended:
        run_command(work, as_json=True, verbose=False, keeps=keeps)
    logging.disable(logging.NOTSET)
    assert ended.value.code == 128 + getattr(signal, number)
    assert capfd.readouterr() == ("", f"b3: {word}{then}\n")
