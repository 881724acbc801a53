"""A large dataset goes through ``b3 mine`` in cells, in bounded memory.

``B3_LARGE_ROWS=1000000 pytest -m slow -s tests/system/test_large.py`` takes about an hour on two
cores; the default is a size that ends in minutes. Rows are made from the demo's code: each is a
real pair whose texts lack some of their words.
"""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from b3_core import usage
from b3_core.corpus import KINDS, read_corpus
from tests.system.test_kill import records

ROWS = int(os.environ.get("B3_LARGE_ROWS", "60000"))
CELL_ROWS = min(32_768, ROWS // 4)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def thinned(text, rng):
    """A text without about a tenth of its words."""
    words = text.split(" ")
    kept = rng.random(len(words)) > 0.1
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep) or text


def write_rows(file, rows):
    """Write pairs, 20,000 at a time: no process here holds them all."""
    real = read_corpus(KINDS["code"], 65_536).train
    queries, positives = (real.column(name).to_pylist() for name in ("query", "positive"))
    rng = np.random.default_rng(0)
    schema = pa.schema({"query": pa.string(), "positive": pa.string()})
    with pq.ParquetWriter(file, schema) as out:
        for start in range(0, rows, 20_000):
            picks = rng.integers(len(queries), size=min(20_000, rows - start))
            columns = [[thinned(of[at], rng) for at in picks] for of in (queries, positives)]
            out.write_table(pa.table(columns, schema=schema))


def test_it_is_mined_within_8_gb(b3, tmp_path):
    write_rows(tmp_path / "rows.parquet", ROWS)
    config = tmp_path / "config.yaml"
    columns = {"name": "code", "query": "query", "positive": "positive"}
    config.write_text(
        json.dumps(
            {
                "name": "large",
                "datasets": [{"uri": str(tmp_path / "rows.parquet"), **columns}],
                "mining": {"cell_rows": CELL_ROWS},
                "arms": ["b3"],
                "store": {"root": str(tmp_path / "store")},
            }
        )
    )
    with usage.tree_peak() as peak:
        said = json.loads(b3("mine", config, "--json", timeout=7000).stdout)
    b3("verify", said["manifest"], timeout=1000)
    for path, record in sorted(
        records(tmp_path / "store").items(), key=lambda each: each[1]["finished"]
    ):
        if "/cell-ranks/" not in path:
            counts = record["counts"]
            print(path, record["seconds"], "s", record["peak_mb"], "MB", counts.get("rows"))
    ranks = next(
        record for record in records(tmp_path / "store").values() if record["stage"] == "ranks"
    )
    print(
        f"{ROWS:,} rows: {peak.mb:,.0f} MB at most, windows {ranks['counts']['window_recall']:.3f}"
    )
    assert ranks["counts"]["cells"] >= 4
    assert ranks["counts"]["window_recall"] > 0.9
    assert peak.mb < 8_000
