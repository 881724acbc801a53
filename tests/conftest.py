"""Small real data, and commands run the way a person runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]


def topic_table(rows: int, *, topics: int = 24, seed: int = 0) -> pa.Table:
    """Questions and answers about a few topics, every text different."""
    rng = np.random.default_rng(seed)
    nouns = ["river", "engine", "violin", "harbour", "library", "orchard", "tunnel", "market"]
    verbs = ["open", "repair", "measure", "paint", "close", "visit", "describe", "rent"]
    picks = rng.integers(0, topics, rows)
    queries = [
        f"how do I {verbs[t % 8]} the {nouns[t // 3 % 8]} number {i} in week {i % 52}"
        for i, t in enumerate(picks)
    ]
    positives = [
        f"to {verbs[t % 8]} {nouns[t // 3 % 8]} {i}, call the {nouns[(t + i) % 8]} at {i * 7}"
        for i, t in enumerate(picks)
    ]
    return pa.table({"question": queries, "answer": positives})


@pytest.fixture
def dataset(tmp_path):
    """A parquet file of 600 pairs."""
    file = tmp_path / "pairs.parquet"
    pq.write_table(topic_table(600), file)
    return file


@pytest.fixture
def write_config(tmp_path, dataset):
    """Return a function that writes a small CONFIG with some keys changed."""

    def write(name="config.yaml", **changes):
        config = {
            "name": "small",
            "datasets": [
                {"name": "faq", "uri": str(dataset), "query": "question", "positive": "answer"}
            ],
            "mining": {"p": 2, "m": 20, "k": 8},
            "batches": {"batch_size": 32, "epochs": 2, "random_epochs": 1},
            "train": {"dim": 32},
            "arms": ["random", "paper", "b3"],
            "seeds": [0],
            "store": {"root": str(tmp_path / "store")},
            "compute": {"workers": 1, "shard_rows": 256},
        } | changes
        file = tmp_path / name
        file.write_text(json.dumps(config))  # JSON is YAML
        return file

    return write


@pytest.fixture
def prefect_home(tmp_path_factory):
    """One Prefect database for all commands of the test run: migrating one takes seconds."""
    return tmp_path_factory.getbasetemp() / "prefect"


@pytest.fixture
def b3(prefect_home):
    """Return a function that runs ``b3`` as a person would, in a process of its own."""

    def run(*arguments, check=True, timeout=280, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "flows", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "PREFECT_HOME": str(prefect_home), **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run
