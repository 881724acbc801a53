"""The recipe for triplets, whole, on a small real corpus: mined, trained, compared."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from b3_core import corpus
from b3_core.manifest import Manifest
from b3_core.store import open_artifact
from deployments.bootstrap import RECIPES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def of_prose(pairs: int) -> pa.Table:
    """Documented operations of web services, each with the text of another one of its service."""
    read = corpus.read_corpus(corpus.KINDS["prose"], pairs).train
    package = np.array(read["package"].to_pylist())
    positive = read["positive"].to_pylist()
    rng = np.random.default_rng(0)
    other = np.arange(len(read))
    for name in np.unique(package):
        places = np.flatnonzero(package == name)
        other[places] = np.roll(rng.permutation(places), 1)[np.argsort(np.argsort(places))]
    kept = [i for i, j in enumerate(other) if positive[i] != positive[j]]
    return pa.table(
        {
            "anchor": read["query"].take(kept),
            "positive": read["positive"].take(kept),
            "negative": [positive[other[i]] for i in kept],
        }
    )


def test_the_recipe_runs_end_to_end(b3, tmp_path):
    pq.write_table(of_prose(3000), tmp_path / "triplets.parquet")
    recipe = yaml.safe_load((RECIPES / "nli.yaml").read_text())
    recipe["datasets"][0]["uri"] = str(tmp_path / "triplets.parquet")
    recipe["teacher"] = {"model": "static"}
    recipe["train"] |= {"student": "tokens", "pooling": None, "precision": "fp32"}
    recipe["batches"] |= {"batch_size": 64}
    recipe |= {"store": {"root": str(tmp_path / "store")}, "compute": {"workers": 1}}
    config = tmp_path / "nli.yaml"
    config.write_text(yaml.safe_dump(recipe))
    found = json.loads(b3("run", config, "--json", timeout=1000).stdout)
    assert [row["arm"] for row in found["arms"]] == ["random", "paper", "b3", "b3++"]
    assert {"b3 - random", "b3++ - random", "b3 - b3++"} <= found["differences"].keys()
    assert len({row["examples_seen"] for row in found["arms"]}) == 1
    assert all(0 < row["mrr"] < 1 and len(row["seeds"]) == 3 for row in found["arms"])
    hard = [Manifest.read_head(open_artifact(uri))["negatives"] for uri in found["manifests"]]
    assert hard == [0] * 9 + [5] * 3
    print("\n" + json.dumps({"arms": found["arms"], "differences": found["differences"]}, indent=1))
